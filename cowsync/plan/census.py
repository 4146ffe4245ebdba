"""How many keys there are, by top prefix and by suffix: what the guard compares a plan with.

One rule: a census costs what changed. It is kept beside a snapshot and moved on by the lines that are done, so no run
counts a billion keys anew. It is bounded: a prefix or suffix that does not fit is never counted, one that is counted
was counted from its first key on, so no figure is ever too low by half.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cowsync.changes import PlanLine
from cowsync.errors import StateDamaged

PREFIXES_MAX = 4096
SUFFIXES_MAX = 1024
SUFFIX_CHARACTERS_MAX = 32
_DIGITS_TO_ZERO = str.maketrans("123456789", "000000000")


def top_prefix(key: str) -> str:
    """The first component with its slash; "" for a key without one."""
    return key[: key.find("/") + 1]


def suffix_of(key: str) -> str:
    """What follows the last dot of the last component, in lower case, every digit as 0 (so that dates and the numbers
    of rotated logs are one suffix); "" where there is none or it is too long to be a kind of file."""
    name = key[key.rfind("/") + 1 :]
    dot = name.rfind(".")
    suffix = name[dot + 1 :] if dot > 0 else ""
    return suffix.lower().translate(_DIGITS_TO_ZERO) if len(suffix) <= SUFFIX_CHARACTERS_MAX else ""


@dataclass(slots=True)
class Census:
    """Of the keys that the source had when the mirror was last right (those that vanished are not among them).
    `prefixes` and `suffixes` hold numbers of keys. `full_*`: something did not fit once, so what is not there may exist
    all the same."""

    keys: int = 0
    bytes: int = 0
    prefixes: dict[str, int] = field(default_factory=dict)
    suffixes: dict[str, int] = field(default_factory=dict)
    full_prefixes: bool = False
    full_suffixes: bool = False

    def add(self, key: str, size: int) -> None:
        """A key that the source has, beside those counted."""
        self.keys += 1
        self.bytes += size
        prefix, suffix = top_prefix(key), suffix_of(key)
        if prefix in self.prefixes:
            self.prefixes[prefix] += 1
        elif not self.full_prefixes:
            self.full_prefixes = len(self.prefixes) >= PREFIXES_MAX
            if not self.full_prefixes:
                self.prefixes[prefix] = 1
        if suffix in self.suffixes:
            self.suffixes[suffix] += 1
        elif not self.full_suffixes:
            self.full_suffixes = len(self.suffixes) >= SUFFIXES_MAX
            if not self.full_suffixes:
                self.suffixes[suffix] = 1

    def drop(self, key: str, size: int) -> None:
        """A key that was counted and is no more."""
        self.keys -= 1
        self.bytes -= size
        for counts, name in ((self.prefixes, top_prefix(key)), (self.suffixes, suffix_of(key))):
            if name in counts:
                counts[name] -= 1
                if counts[name] <= 0:
                    del counts[name]

    def apply(self, line: PlanLine) -> None:
        """Move on by a line that is done. REMOVE changes nothing in a plan of current versions: its key was dropped when it
        vanished."""
        before, after = line.turn
        if before is None and after is not None:
            self.add(line.key, after)
        elif before is not None and after is None:
            self.drop(line.key, before)
        elif before is not None and after is not None:
            self.bytes += after - before

    def copy(self) -> "Census":
        return Census(
            self.keys,
            self.bytes,
            dict(self.prefixes),
            dict(self.suffixes),
            self.full_prefixes,
            self.full_suffixes,
        )

    def to_json(self) -> dict[str, object]:
        return {
            "keys": self.keys,
            "bytes": self.bytes,
            "prefixes": dict(self.prefixes),
            "suffixes": dict(self.suffixes),
            "full_prefixes": self.full_prefixes,
            "full_suffixes": self.full_suffixes,
        }


def census_from_json(document: Mapping[str, object]) -> Census:
    """What `to_json` gave. StateDamaged for anything else."""
    keys, size = document.get("keys"), document.get("bytes")
    full = document.get("full_prefixes"), document.get("full_suffixes")
    if type(keys) is not int or type(size) is not int or not all(isinstance(one, bool) for one in full):
        raise StateDamaged("the census of a snapshot lacks a field, or one is of the wrong type")
    return Census(
        keys, size, _counts(document, "prefixes"), _counts(document, "suffixes"), bool(full[0]), bool(full[1])
    )


def _counts(document: Mapping[str, object], name: str) -> dict[str, int]:
    counts = document.get(name)
    if not isinstance(counts, dict) or not all(
        isinstance(key, str) and type(count) is int for key, count in counts.items()
    ):
        raise StateDamaged(f"the census of a snapshot: {name} is not a table of numbers")
    return dict(counts)
