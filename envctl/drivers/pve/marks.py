"""What our machines carry at Proxmox VE, and how it is read again: tags, the description's last line, SMBIOS. Pure.

One rule: what others wrote is kept. A template's own tags, SMBIOS strings and description stay beside ours.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from envctl.identifiers import TAG_PREFIX, is_id, tag_of

_MARK: Final = re.compile(r"envctl:([0-9a-z]{26}):([0-9]+)")
_DISK: Final = re.compile(r"(?:scsi|virtio|sata|ide)\d+")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SMBIOS_CHARACTERS_MAX: Final = 512
"""Of the whole option `smbios1` (the API's `maxLength`)."""
_TEXT_FIELDS: Final = ("manufacturer", "product", "version", "serial", "sku", "family")


@dataclass(frozen=True, slots=True)
class Mark:
    """The description's last line, `envctl:<environment id>:<generation>`."""

    environment_id: str
    generation: int

    @property
    def tag(self) -> str:
        return tag_of(self.environment_id)


def mark_of(description: str) -> Mark | None:
    """The mark in a description, or None. Proxmox VE gives a description back with a line feed added."""
    lines = description.strip().splitlines()
    found = _MARK.fullmatch(lines[-1].strip()) if lines else None
    if found is None or not is_id(found[1]):
        return None
    return Mark(found[1], int(found[2]))


def tags_of(text: str) -> tuple[str, ...]:
    """The tags of a machine. The list comes with ';', and is taken with ',' and blanks too."""
    return tuple(tag for tag in re.split(r"[;,\s]+", text) if tag)


def our_tag(text: str) -> str:
    """The tag of an environment among them, or ""."""
    return next((tag for tag in tags_of(text) if tag.startswith(TAG_PREFIX) and is_id(tag[len(TAG_PREFIX) :])), "")


def with_tag(text: str, tag: str) -> str:
    """The list with `tag` as the only one of ours: a clone inherits the tags of what it was cloned from."""
    others: Iterable[str] = (each for each in tags_of(text) if not our_tag(each))
    return ";".join(sorted({*others, tag}))


def fields_of(option: str) -> dict[str, str]:
    """An option such as `uuid=...,base64=1` or `local:vm-1-disk-0,size=8G` by its keys; what has no key is under ""."""
    fields: dict[str, str] = {}
    for part in option.split(","):
        key, equals, value = part.partition("=")
        fields[key if equals else ""] = value if equals else key
    return fields


def smbios_with(option: str, uuid: str, serial: str) -> str:
    """`smbios1` with this UUID and serial number ("": none), and what else was in it. ValueError: longer than is taken.

    The strings are in base 64 (`base64=1`), for a comma or an equals sign of a URL ends the value otherwise.
    """
    fields = {key: value for key, value in fields_of(option).items() if key}
    encoded = fields.pop("base64", "0") in ("1", "yes", "on", "true")
    for name in _TEXT_FIELDS:
        if name in fields and not encoded:
            fields[name] = base64.b64encode(fields[name].encode()).decode("ascii")
    fields["uuid"] = uuid
    fields.pop("serial", None)
    if serial:
        fields["serial"] = base64.b64encode(serial.encode()).decode("ascii")
    text = ",".join(["base64=1", *(f"{key}={value}" for key, value in sorted(fields.items()))])
    if len(text) > SMBIOS_CHARACTERS_MAX:
        raise ValueError(
            f"smbios1 would have {len(text)} characters, and {SMBIOS_CHARACTERS_MAX} are taken; shorten [envctl] url"
        )
    return text


def smbios_of(option: str) -> tuple[str, str]:
    """UUID and serial number in `smbios1`; "" for what is not there or not readable."""
    fields = fields_of(option)
    serial = fields.get("serial", "")
    if serial and fields.get("base64", "0") in ("1", "yes", "on", "true"):
        try:
            serial = base64.b64decode(serial, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            serial = ""
    return fields.get("uuid", "").lower(), serial


def boot_disk(config: Mapping[str, object]) -> str:
    """Which disk of a machine it boots from (`scsi0`), or ""."""
    order = fields_of(str(config.get("boot", ""))).get("order", "")
    candidates = [*re.split(r"[;\s]+", order), str(config.get("bootdisk", "")), "scsi0", "virtio0", "sata0", "ide0"]
    for name in candidates:
        if _DISK.fullmatch(name) and name in config and not is_cdrom(str(config[name])):
            return name
    return ""


def disks(config: Mapping[str, object]) -> dict[str, str]:
    """The disks of a machine, without CD drives: name to option."""
    return {
        name: str(value)
        for name, value in config.items()
        if (_DISK.fullmatch(name) or name in ("efidisk0", "tpmstate0")) and not is_cdrom(str(value))
    }


def is_cdrom(option: str) -> bool:
    return fields_of(option).get("media") == "cdrom"


def is_cloud_init(option: str) -> bool:
    """Is this drive Proxmox VE's own cloud-init image?"""
    volume = volume_of(option)
    return volume.endswith((":cloudinit", "-cloudinit")) or "-cloudinit." in volume


def volume_of(option: str) -> str:
    fields = fields_of(option)
    return fields.get("") or fields.get("file", "")


def storage_of(option: str) -> str:
    """The storage of a disk, or ""."""
    storage, colon, _ = volume_of(option).partition(":")
    return storage if colon else ""


def size_bytes(option: str) -> int:
    """What a disk's `size=` says; 0: nothing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", fields_of(option).get("size", ""))
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0
