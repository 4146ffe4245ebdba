"""What may be asked of any store: the shape of keys, ranges and metadata, and the order keys are listed in.

One rule: every adapter checks its arguments here, so that a key or a range that one store would take and
another would not is refused by all of them, as ValueError: the caller is at fault, not the store.
"""

import re
import string
from collections.abc import Mapping, Sequence

KEY_BYTES_MAX = 900
"""S3 allows 1,024 bytes; the rest is left to the store's prefix."""
FOREIGN_KEY_BYTES_MAX = 1024
"""What S3 itself allows, for buckets that somebody else fills."""
METADATA_BYTES_MAX = 2048
"""S3's bound on the names and values of user metadata together."""
PART_NUMBER_MAX = 10_000
PAGE_KEYS_MAX = 1000

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_VALUE_CHARACTERS = frozenset(string.digits + string.ascii_letters + string.punctuation + " ")
_LAST_CHARACTER = "\U0010ffff"


def check_key(key: str) -> str:
    """Returns `key`; ValueError when no object may be called that."""
    if not key:
        raise ValueError("a key must not be empty")
    if key[0] == "/":
        raise ValueError(f"a key must not start with '/': {key!r}")
    try:
        length = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"a key must be text that UTF-8 can encode: {key!r}") from error
    if length > KEY_BYTES_MAX:
        raise ValueError(
            f"a key must be at most {KEY_BYTES_MAX} bytes of UTF-8, this one has {length}: {key[:60]!r}..."
        )
    return key


def check_foreign_key(key: str) -> str:
    """Returns `key`; ValueError when no object of any bucket may be called that (S3: 1 to 1,024 bytes of UTF-8)."""
    try:
        length = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"a key must be text that UTF-8 can encode: {key!r}") from error
    if not 1 <= length <= FOREIGN_KEY_BYTES_MAX:
        raise ValueError(f"a key must have 1 to {FOREIGN_KEY_BYTES_MAX:,} bytes of UTF-8, not {length:,}: {key[:60]!r}")
    return key


def check_range(offset: int, length: int) -> None:
    """ValueError unless `offset` >= 0 and `length` > 0 (HTTP cannot ask for an empty range)."""
    if offset < 0 or length <= 0:
        raise ValueError(f"a range needs an offset of at least 0 and a length of at least 1, not {offset} and {length}")


def check_part_number(number: int) -> None:
    if not 1 <= number <= PART_NUMBER_MAX:
        raise ValueError(f"a part's number must be from 1 to {PART_NUMBER_MAX}, not {number}")


def check_span(offset: int, length: int) -> None:
    """ValueError unless `offset` >= 0 and `length` > 0 or -1, all the rest."""
    if offset < 0 or (length < 1 and length != -1):
        raise ValueError(
            f"a range begins at 0 or later and has at least 1 byte, or -1 for the rest: {offset}, {length}"
        )


def check_parts(key: str, parts: Sequence[tuple[int, str]]) -> None:
    """ValueError unless there are parts, ascending by number."""
    numbers = [number for number, _ in parts]
    if not numbers or numbers != sorted(set(numbers)):
        raise ValueError(f"{key}: an upload is completed from at least one part, ascending by number: {numbers[:10]}")


def check_max_keys(max_keys: int) -> None:
    """ValueError for a page that S3 would not give."""
    if not 1 <= max_keys <= PAGE_KEYS_MAX:
        raise ValueError(f"a page has 1 to {PAGE_KEYS_MAX:,} keys, not {max_keys}")


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of `metadata`; ValueError for what would not come back from an HTTP header as it went in."""
    if not metadata:
        return {}
    total = 0
    for name, value in metadata.items():
        if not _NAME.match(name):
            raise ValueError(f"a metadata name must be of a-z, 0-9, '.', '_' and '-': {name!r}")
        if not _VALUE_CHARACTERS.issuperset(value) or value != value.strip():
            raise ValueError(f"metadata {name} must be printable ASCII without blanks at its ends: {value!r}")
        total += len(name) + len(value)
    if total > METADATA_BYTES_MAX:
        raise ValueError(f"metadata must be at most {METADATA_BYTES_MAX} bytes together, not {total}")
    return dict(metadata)


def after_all_with(prefix: str) -> str:
    """A text that sorts after every key that starts with `prefix`, and before every other key that is
    greater than `prefix`: what `start_after` is given to jump over a whole folder.

    Comparing Python strings compares code points, which is the order of their UTF-8 bytes.
    """
    return prefix + _LAST_CHARACTER * (KEY_BYTES_MAX // 4 + 1)
