"""What systemd is told of a mounted volume: names of units, and the text of the mount unit. Pure.

One rule: the unit is the only record of where a volume belongs; its `[X-Bucketworks]` section, which systemd skips, names it.
"""

import string
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_KEPT = frozenset(string.ascii_letters + string.digits + ":_.")
_VOLUME = "Volume="


def daemon_unit(volume: str) -> str:
    return f"s3block@{volume}.service"


def lio_unit(volume: str) -> str:
    return f"s3block-lio@{volume}.service"


def initiator_unit(volume: str) -> str:
    return f"s3block-initiator@{volume}.service"


def mount_unit(directory: str) -> str:
    """systemd wants a mount unit to be called as its directory (systemd.mount(5))."""
    return f"{escaped(directory)}.mount"


def escaped(path: str) -> str:
    """A path in the name of a unit, as `systemd-escape --path` writes it (systemd.unit(5), "String escaping")."""
    plain = "/".join(part for part in path.split("/") if part)
    if not plain:
        return "-"
    shown = []
    for place, byte in enumerate(plain.encode()):
        character = chr(byte)
        if character == "/":
            shown.append("-")
        elif character in _KEPT and not (character == "." and place == 0):
            shown.append(character)
        else:
            shown.append(f"\\x{byte:02x}")
    return "".join(shown)


@dataclass(frozen=True, slots=True)
class MountUnit:
    """A file system on a volume. `options` are mount(8)'s, without `_netdev`."""

    volume: str
    device: Path
    directory: str
    options: str

    @property
    def name(self) -> str:
        return mount_unit(self.directory)

    def text(self) -> str:
        device, initiator = escaped(str(self.device)), initiator_unit(self.volume)
        options = ",".join(option for option in ("_netdev", self.options) if option)
        return "\n".join(
            [
                f"# Written by `s3block mount`; `s3block umount {self.volume}` removes it.",
                "",
                "[Unit]",
                f"Description=Bucketworks volume {self.volume} at {_text(self.directory)}",
                "# Whoever ends the session unmounts first. The daemon is not named: it may be restarted under the mount.",
                f"Requires={initiator}",
                f"After={initiator}",
                f"Requires=systemd-fsck@{device}.service",
                f"After=systemd-fsck@{device}.service",
                "",
                "[X-Bucketworks]",
                f"{_VOLUME}{self.volume}",
                "",
                "[Mount]",
                f"What={_text(str(self.device))}",
                f"Where={_text(self.directory)}",
                f"Options={_text(options)}",
                "# Unmounting writes what is in memory; the kernel must not be left in the middle of it.",
                "TimeoutSec=10min",
                "",
                "[Install]",
                "# The boot waits for the disk as for any (90 s), then goes on; one that comes later is mounted when it comes.",
                f"WantedBy=remote-fs.target {device}.device",
                "",
            ]
        )


def volume_of(text: str) -> str:
    """The volume that a unit's text is about; empty for a unit that is none of ours."""
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[X-Bucketworks]" and line.startswith(_VOLUME):
            return line.removeprefix(_VOLUME).strip()
    return ""


def setting(text: str, key: str) -> str:
    """The value of `key` in the section [Mount]."""
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[Mount]" and line.startswith(f"{key}="):
            return line.partition("=")[2].strip().replace("%%", "%")
    return ""


def parse(text: str) -> MountUnit | None:
    """What `MountUnit.text` was made from; None for a unit that is none of ours."""
    volume = volume_of(text)
    if not volume:
        return None
    options = setting(text, "Options").removeprefix("_netdev").removeprefix(",")
    return MountUnit(volume, Path(setting(text, "What")), setting(text, "Where"), options)


def check_directory(text: str) -> str:
    """A mount point as a unit can name it; ValueError."""
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or str(path) == "/":
        raise ValueError(f"{text!r} is no place to mount at: write an absolute path without '..', such as /srv/data")
    _check_line(str(path))
    return "/" + str(path).lstrip("/")


def check_options(text: str) -> str:
    """Options of mount(8) as a unit can hold them; ValueError."""
    _check_line(text)
    return text


def _check_line(text: str) -> None:
    # systemd takes spaces off both ends of a value, and a '\' at its end for a line that goes on (systemd.syntax(7)).
    if any(not character.isprintable() for character in text) or text != text.strip() or text.endswith("\\"):
        raise ValueError(f"{text!r} has characters that no unit can hold, or ends with one")


def _text(value: str) -> str:
    return value.replace("%", "%%")
