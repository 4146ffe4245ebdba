"""Which records a person asked for: by key, bucket, who, operation, phase, writer and time.

One rule: a record passes when every condition that was given holds; a member it does not have matches nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import translate
from functools import cached_property
from typing import Any

from integrity.record import OPERATIONS, PHASES, timestamp
from s3core.quantities import parse_duration

HOUSEKEEPING = frozenset({"checkpoint", "key", "heads", "enrol", "retire"})
"""What a ledger writes about itself; left out unless asked for by name."""


def is_housekeeping(record: Mapping[str, Any]) -> bool:
    """Whether the record is about the ledger and not about what it covers: checkpoints, keys, and that a writer closed."""
    op = record["op"]
    return op in HOUSEKEEPING or (op == "control" and record["source"] == "ledger" and record["phase"] == "done")


@dataclass(frozen=True)
class Choice:
    """Conditions, empty ones leaving all through. `key` is a pattern (`*` goes over slashes too), `actor` a part of anything
    in `who` in any case; `since` and `until` are times as records write them, compared with `at`: from, and up to but not
    including. Housekeeping passes only where `op` names it or `everything` is set."""

    key: str = ""
    bucket: str = ""
    actor: str = ""
    ops: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    everything: bool = False

    def __post_init__(self) -> None:
        for name, values, known in (("op", self.ops, OPERATIONS), ("phase", self.phases, PHASES)):
            for value in values:
                if value not in known:
                    raise ValueError(f"{name}: {value!r} is not known; it is one of {', '.join(known)}")
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"nothing can lie from {self.since} to {self.until}: the first is not before the second")

    @cached_property
    def _key(self) -> re.Pattern[str] | None:
        return re.compile(translate(self.key)) if self.key else None

    def in_time(self, record: Mapping[str, Any]) -> bool:
        """Whether it was recorded in the time that was asked for."""
        at: str = record["at"]
        return self.since <= at and (not self.until or at < self.until)

    def passes(self, record: Mapping[str, Any]) -> bool:
        if not self.in_time(record):
            return False
        op = record["op"]
        if op not in self.ops if self.ops else (not self.everything and is_housekeeping(record)):
            return False
        if self.phases and record["phase"] not in self.phases:
            return False
        if self.bucket and record.get("bucket") != self.bucket:
            return False
        if self._key and not ("key" in record and self._key.match(record["key"])):
            return False
        if self.actor:
            wanted = self.actor.casefold()
            who = record.get("who", {})
            return any(wanted in value.casefold() for value in who.values() if isinstance(value, str))
        return True


def moment(text: str, now: float) -> str:
    """A time as records write it, out of `2026-11-22`, `2026-11-22T06:00` (UTC where no offset is given), or a duration such
    as `2h` or `1d`: so long before `now` (Unix seconds). "" stays so. ValueError for anything else."""
    if not text:
        return ""
    try:
        ago_s = parse_duration(text)
    except ValueError:
        ago_s = -1.0
    if ago_s >= 0:
        return timestamp(max(0.0, now - ago_s))
    try:
        parsed = datetime.fromisoformat(text)
        return timestamp((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{text!r} is no time: write 2026-01-31, 2026-01-31T12:00 (UTC), or 2h and 1d for so long ago"
        ) from error
