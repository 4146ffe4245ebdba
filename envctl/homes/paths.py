"""Paths of a home as text. Pure.

One rule: a path is bytes, and one text stands for one path: valid UTF-8 as it is; `%` and every byte that is no printable
UTF-8 as `%` and two hexadecimal digits. So `100%.txt` is written `100%25.txt`, and everything else that people name files
by, as it is.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from envctl.errors import Invalid

PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255


def text_of(path: bytes) -> str:
    """How `path` is shown, and asked for."""
    return "".join(
        c if c.isprintable() and c != "%" else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in path.decode("utf-8", "surrogateescape")
    )


def path_of(text: str) -> bytes:
    """The path that `text` stands for, relative to `/`; slashes at its ends do not count, "" and "/" are the root. Invalid
    for what no path of a snapshot can be."""
    try:
        path = unquote_to_bytes(text.encode()).strip(b"/")
    except UnicodeEncodeError as error:
        raise Invalid("a path is UTF-8 text, other bytes are written as %XX") from error
    if not path:
        return b""
    if len(path) > PATH_BYTES_MAX or b"\0" in path:
        raise Invalid(f"a path has at most {PATH_BYTES_MAX} bytes, and none of them is 0")
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or len(name) > NAME_BYTES_MAX:
            raise Invalid("a path has no empty names, no '.' and '..', and no name of more than 255 bytes")
    return path


def is_clean(path: bytes) -> bool:
    """Whether a path that a guest sent may go into an archive: unpacking it stays below the folder."""
    return bool(path) and b"\0" not in path and all(name not in (b"", b".", b"..") for name in path.split(b"/"))
