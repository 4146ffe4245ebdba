"""Names on the mount: what a path is, and what a file that is on its way will be called.

One rule: pure, and a guess is only a guess. S3 has no rename, so an upload begins under the name that it will have;
whoever guessed wrong pays a copy by the server, nothing else.

How Proxmox VE names what is on its way (read in PVE 8.4 and 9.1):

    vzdump                       dump/vzdump-qemu-100-2026_01_31-02_00_00.vma.dat -> .vma.zst | .vma.gz | .vma.lzo
    (PVE::VZDump, the last       dump/vzdump-lxc-101-….tar.dat                    -> .tar.zst | …
    suffix becomes .dat)         dump/vzdump-qemu-100-….dat                       -> .vma   (not compressed; lxc: .tar)
    download-url                 NAME.tmp_dwnl.PID, read again for its checksum and its format, then renamed, or
    (PVE::Tools)                 unpacked to NAME.tmp_dcom.PID, that read again, then renamed
    OCI pull                     NAME.tmp.PID (skopeo writes a tar), renamed
    notes (file_set_contents)    NAME.notes.tmp.PID, renamed
    upload                       the final name itself, by cp or scp -p; done when it is closed

`dump/….tmp/` is vzdump's directory for a guest's configuration: on this host, never in the bucket.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from plugin.layout import DIRECTORIES, OWN

TEMPLATE: Final = "template"
DIRECTORY_PATHS: Final = frozenset({"", TEMPLATE, *DIRECTORIES.values()})
"""Always there, relative to the mount point."""
NAME_BYTES_MAX: Final = 255
HEAD_BYTES: Final = 512
"""So much of a file's begin is enough for `predict`."""


class Kind(Enum):
    DIRECTORY = auto()
    """Of the layout."""
    FINAL = auto()
    """A file that is an object of that name when its writer closes it."""
    ON_ITS_WAY = auto()
    """A file that becomes an object when it is renamed; its writer does not read it again."""
    READ_AGAIN = auto()
    """As ON_ITS_WAY, and it is read before it is renamed: kept whole on this host until then."""
    SCRATCH = auto()
    """A directory of vzdump or what is in it: this host's."""
    NONE = auto()
    """Nothing that there can be."""


@dataclass(frozen=True, slots=True)
class Place:
    """`path` is relative to the mount point and, for files, to the storage's prefix in the bucket."""

    kind: Kind
    path: str

    @property
    def directory(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def waits(self) -> bool:
        """Whether nothing of it is an object before it is renamed."""
        return self.kind in (Kind.ON_ITS_WAY, Kind.READ_AGAIN)


_READ_AGAIN = re.compile(r"(?P<name>.+)\.tmp_(?:dwnl|dcom)\.[0-9]+")
_ON_ITS_WAY = (
    re.compile(r"(?P<name>.+)\.tmp\.[0-9]+"),  # skopeo's target, PVE::Tools::file_set_contents
    re.compile(r"\.(?P<name>.+)\.[A-Za-z0-9]{6}"),  # rsync
    re.compile(r"(?P<name>.+)\.(?:part|partial|filepart|tmp)"),  # browsers, rsync --partial, WinSCP
)
_DAT = re.compile(r"(?P<name>.+)\.dat")
_SCRATCH = re.compile(r"dump/(?:vzdump-[^/.]+\.tmp|vzdumptmp[^/]*)")
_TOLD_BY_TYPE = re.compile(r"vzdump-(?P<type>qemu|lxc|openvz)-.*")

_COMPRESSORS: Final = (
    (b"\x28\xb5\x2f\xfd", ".zst"),  # RFC 8878 section 3.1.1
    (b"\x1f\x8b", ".gz"),  # RFC 1952 section 2.3.1
    (b"\x89LZO\x00\r\n\x1a\n", ".lzo"),  # lzop
    (b"BZh", ".bz2"),
    (b"\xfd7zXZ\x00", ".xz"),
)
_VMA: Final = b"VMA\x00"
_TAR_AT: Final = 257


def place_of(path: str) -> Place:
    """What `path` (as FUSE gives it, with a `/` in front) is by its name alone."""
    path = path.strip("/")
    if path in DIRECTORY_PATHS:
        return Place(Kind.DIRECTORY, path)
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode(errors="surrogateescape")) > NAME_BYTES_MAX for part in parts):
        return Place(Kind.NONE, path)
    if _SCRATCH.fullmatch("/".join(parts[:2])):
        return Place(Kind.SCRATCH, path)
    directory, _, name = path.rpartition("/")
    if directory not in DIRECTORIES.values() or name == OWN or not _fit_for_a_key(name):
        return Place(Kind.NONE, path)
    if _READ_AGAIN.fullmatch(name):
        return Place(Kind.READ_AGAIN, path)
    if directory == "dump" and _DAT.fullmatch(name):
        return Place(Kind.ON_ITS_WAY, path)
    if any(pattern.fullmatch(name) for pattern in _ON_ITS_WAY):
        return Place(Kind.ON_ITS_WAY, path)
    return Place(Kind.FINAL, path)


def _fit_for_a_key(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(letter) < 32 or ord(letter) == 127 for letter in name)


def predict(path: str, head: bytes) -> str:
    """The path that the file at `path`, beginning with `head` (`HEAD_BYTES` suffice), will have when it is finished."""
    directory, _, name = path.rpartition("/")
    told = _READ_AGAIN.fullmatch(name)
    if directory == "dump" and told is None and (dat := _DAT.fullmatch(name)):
        return f"{directory}/{dat['name']}{_suffix(dat['name'], head)}"
    for pattern in (None, *_ON_ITS_WAY):
        told = told or (pattern.fullmatch(name) if pattern else None)
    return f"{directory}/{told['name']}" if told else path


def _suffix(base: str, head: bytes) -> str:
    """What vzdump will put in the place of `.dat`."""
    compressor = next((suffix for magic, suffix in _COMPRESSORS if head.startswith(magic)), "")
    if base.endswith((".vma", ".tar")):
        return compressor
    if head.startswith(_VMA):
        return ".vma"
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return ".tar"
    told = _TOLD_BY_TYPE.fullmatch(base)
    if told is None:
        return compressor
    return (".vma" if told["type"] == "qemu" else ".tar") + compressor
