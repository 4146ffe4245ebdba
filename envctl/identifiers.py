"""Identifiers: 26 characters that sort by the moment they were made (ULID), and the marks that a machine carries.

Randomness and time come in as arguments.
"""

import re
from typing import Final

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, in lower case, because identifiers become tags, host names and keys of objects."""
LENGTH: Final = 26
_ULID = re.compile(rf"[0-7][{ALPHABET}]{{25}}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]|[a-z]")
TAG_PREFIX: Final = "env-"


def new_id(now_s: float, random: bytes) -> str:
    """A ULID of `now_s` (Unix seconds) and 10 random bytes."""
    if len(random) != 10:
        raise ValueError("a ULID takes 10 random bytes")
    number = int(now_s * 1000) << 80 | int.from_bytes(random, "big")
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))


def is_id(text: str) -> bool:
    return _ULID.fullmatch(text) is not None


def tag_of(environment_id: str) -> str:
    """The tag of an environment's machine at the hypervisor: by it, never by its name, a machine is found again."""
    return TAG_PREFIX + environment_id


def check_name(text: str) -> str:
    """`text`, where an environment, user, group or template may be called so, else ValueError: it becomes a host name."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name: a-z, 0-9 and '-', beginning with a letter, not ending with '-', at most 40 characters"
        )
    return text
