"""Where the parts of a home lie in the bucket. Pure.

    env/<environment id>/head
                         snapshots/<12 hex digits of the number>
                         pins/<12 hex digits of the number>
                         trees/<sha256>       packs/<sha256>
                         doomed/<14 digits of the moment>-<8 hex digits>

One rule: a key is built from identifiers, numbers and digests alone, each checked here. Names that people chose (of files, of
environments, in notes) are contents, never keys. Keys are relative to the store of homes.
"""

import re
from typing import Final, NewType

from envctl.errors import Invalid
from envctl.identifiers import is_id

ObjectName = NewType("ObjectName", str)
"""`packs/<sha256>` or `trees/<sha256>`: an object that guests upload, relative to its home."""

NUMBER_MAX: Final = 16**12 - 1
_OBJECT = re.compile(r"(?:packs|trees)/[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9a-f]{12}")


def home(environment_id: str) -> str:
    """The folder of a home, with `/`. ValueError for what is no identifier."""
    if not is_id(environment_id):
        raise ValueError(f"{environment_id!r} is not an identifier of an environment")
    return f"env/{environment_id}/"


def head(environment_id: str) -> str:
    return home(environment_id) + "head"


def snapshot(environment_id: str, number: int) -> str:
    return f"{home(environment_id)}snapshots/{_digits(number)}"


def pin(environment_id: str, number: int) -> str:
    return f"{home(environment_id)}pins/{_digits(number)}"


def doomed(environment_id: str, at_s: float, random: bytes) -> str:
    """A list of names that nobody referred to; sorts by the moment it was made. `random`: 4 bytes."""
    return f"{home(environment_id)}doomed/{int(at_s * 1000):014d}-{random[:4].hex()}"


def content(environment_id: str, name: ObjectName) -> str:
    return home(environment_id) + name


def tree(sha256: str) -> ObjectName:
    return _of("trees", sha256)


def pack(sha256: str) -> ObjectName:
    return _of("packs", sha256)


def object_name(text: str) -> ObjectName:
    """`text`, where it is the name of an object that guests upload. Invalid."""
    if not _OBJECT.fullmatch(text):
        raise Invalid("an object is named packs/<sha256> or trees/<sha256>")
    return ObjectName(text)


def digest_of(name: ObjectName) -> str:
    return name.partition("/")[2]


def number_of(key: str) -> int | None:
    """The number at the end of a key of a snapshot or pin; None where it ends with none: not ours."""
    last = key.rpartition("/")[2]
    return int(last, 16) if _NUMBER.fullmatch(last) else None


def _digits(number: int) -> str:
    if not 0 < number <= NUMBER_MAX:
        raise ValueError(f"{number} is not the number of a snapshot")
    return f"{number:012x}"


def _of(kind: str, sha256: str) -> ObjectName:
    if not _SHA256.fullmatch(sha256):
        raise Invalid("a SHA-256 is 64 lower-case hexadecimal digits")
    return ObjectName(f"{kind}/{sha256}")
