"""Which object a Proxmox VE volume is: names of volumes, paths on the mount and keys below a storage's prefix.

    content     volume name                 path on the mount, key below the prefix
    backup      backup/NAME                 dump/NAME
    iso         iso/NAME                    template/iso/NAME
    vztmpl      vztmpl/NAME                 template/cache/NAME
    snippets    snippets/NAME               snippets/NAME
    import      import/NAME                 import/NAME

One rule: the bucket is a tree that a Proxmox VE directory storage could be (PVE::Storage::Plugin, `get_subdir`), so any S3
tool copies it out as one. Beside a backup lie NAME.notes, NAME.protected and the log, as in such a directory. What is ours
alone lies below `.bucketworks/` and is shown nowhere else.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Content = Literal["backup", "iso", "vztmpl", "snippets", "import"]

DIRECTORIES: Final[dict[str, str]] = {
    "backup": "dump",
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "snippets": "snippets",
    "import": "import",
}
OWN: Final = ".bucketworks"
IDENTITY_KEY: Final = f"{OWN}/identity"
INDEX_DIRECTORY: Final = f"{OWN}/index"
KEYS_DIRECTORY: Final = f"{OWN}/keys"
DELETING_DIRECTORY: Final = f"{OWN}/deleting"
"""Marks of deletions under way (`plugin.protection.delete_volume`)."""
NOTES: Final = ".notes"
PROTECTED: Final = ".protected"
LOG: Final = ".log"

_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")
_SUFFIXES: Final[dict[str, re.Pattern[str]]] = {
    "backup": re.compile(r".+\.(?:tgz|(?:(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2|xz))?))"),
    "iso": re.compile(r".+\.(?:iso|img)", re.IGNORECASE),
    "vztmpl": re.compile(r".+\.(?:tar\.(?:gz|xz|zst|bz2)|tar)"),
    "import": re.compile(r".+\.(?:ova|ovf|qcow2|raw|vmdk)"),
    "snippets": re.compile(r".+"),
}
_BACKUP = re.compile(
    r"vzdump-(?P<subtype>qemu|lxc|openvz)-(?P<vmid>[1-9][0-9]{2,8})-"
    r"(?P<when>(?P<y>[0-9]{4})_(?P<m>[0-9]{2})_(?P<d>[0-9]{2})-(?P<H>[0-9]{2})_(?P<M>[0-9]{2})_(?P<S>[0-9]{2}))"
    r"\.(?P<format>.+)"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """`volname` is what follows `STORAGE:`. `format` as Proxmox VE tells it: `vma.zst`, `tar.zst`, `iso`, `tgz`, ... `vmid`
    and `subtype` (qemu, lxc, "") are those of a backup's name; `made` is the moment in it, in the local time of the node
    that wrote it (year, month, day, hour, minute, second), else empty."""

    content: str
    name: str
    format: str
    vmid: int = 0
    subtype: str = ""
    made: tuple[int, ...] = ()

    @property
    def volname(self) -> str:
        return f"{self.content}/{self.name}"

    @property
    def key(self) -> str:
        """Below the storage's prefix."""
        return f"{DIRECTORIES[self.content]}/{self.name}"


def parse_volname(volname: str) -> Volume:
    """ValueError for what is no volume of a files storage."""
    content, _, name = volname.partition("/")
    if content not in DIRECTORIES or not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{volname!r} is not a volume of this storage; one is CONTENT/NAME, such as iso/debian.iso")
    found = volume_of_key(f"{DIRECTORIES[content]}/{name}")
    if found is None:
        raise ValueError(f"{volname!r}: a name of {content} does not end so")
    return found


def volume_of_key(key: str) -> Volume | None:
    """The volume that a key below the prefix is; None for sidecars, logs, folders and what is not ours to show."""
    directory, _, name = key.rpartition("/")
    content = next((content for content, place in DIRECTORIES.items() if place == directory), None)
    if content is None or not _NAME.fullmatch(name) or not _SUFFIXES[content].fullmatch(name):
        return None
    if content == "backup":
        told = _BACKUP.fullmatch(name)
        if told is None:
            return Volume(content, name, _ending(name))
        fields = tuple(int(told[part]) for part in "ymdHMS")
        subtype = {"openvz": "lxc"}.get(told["subtype"], told["subtype"])
        return Volume(content, name, told["format"], int(told["vmid"]), subtype, fields)
    if content == "vztmpl":
        compressor = _ending(name).removeprefix("tar").removeprefix(".")
        return Volume(content, name, f"t{compressor}" if compressor else "tar")
    if content == "snippets":
        return Volume(content, name, "snippet")
    return Volume(content, name, name.rpartition(".")[2].lower())


def _ending(name: str) -> str:
    found = re.search(r"\.((?:tar|vma)(?:\.[a-z0-9]+)?|[a-z0-9]+)$", name)
    return found[1] if found else ""


def owner_of(key: str) -> str | None:
    """The key of the volume that a sidecar (notes, protected flag, archive index) belongs to; None for what is none. A log
    belongs to a backup whose suffix it does not tell: `log_key` goes the other way."""
    if key.startswith(f"{INDEX_DIRECTORY}/") and key.endswith(".index"):
        return key.removeprefix(f"{INDEX_DIRECTORY}/").removesuffix(".index")
    for suffix in (NOTES, PROTECTED):
        if key.startswith("dump/") and key.endswith(suffix):
            return key.removesuffix(suffix)
    return None


def notes_key(key: str) -> str:
    return key + NOTES


def protected_key(key: str) -> str:
    return key + PROTECTED


def index_key(key: str) -> str:
    return f"{INDEX_DIRECTORY}/{key}.index"


def log_key(key: str) -> str:
    """Of a backup: vzdump writes it beside the archive, with all of the archive's suffix replaced."""
    return re.sub(r"\.(?:tgz|(?:(?:tar|vma)(?:\.[a-z0-9]+)?))$", "", key) + LOG


def sidecars(key: str) -> tuple[str, ...]:
    """What goes when the volume of that key goes, after it."""
    own = (notes_key(key), protected_key(key), log_key(key)) if key.startswith("dump/") else ()
    return (*own, index_key(key))
