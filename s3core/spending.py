"""What requests and bytes cost: counts by endpoint and calendar month, their file, and estimates by a price table. Pure.

One rule: an estimate says what it is made of. What is not counted (storage that nobody measured, taxes, free tiers, minimum
charges) is named beside it, never guessed. Files of counts are described in docs/formats/spending.md.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

from s3core.endpoint import Prices
from s3core.wrapper import Operation

FORMAT: Final = 1
GIB: Final = 1 << 30
ENDPOINTS_MAX: Final = 1000
"""In one month's file; what comes beyond is not counted."""
FILE_BYTES_MAX: Final = 1 << 20
NUMBER_MAX: Final = 1 << 62
FAILURE_CHARACTERS_MAX: Final = 300

Charge = Literal["put", "list", "get", "delete"]
"""How providers charge for a request. `put` and `list` cost `per_1000_put`, `get` costs `per_1000_get`, `delete` nothing."""

CHARGES: Final[Mapping[Operation, Charge]] = {
    "put": "put",
    "put_if_absent": "put",
    "put_if_match": "put",
    "copy": "put",
    "multipart": "put",
    "part": "put",
    "complete": "put",
    "copy_part": "put",
    "set_retention": "put",
    "set_legal_hold": "put",
    "restore": "put",
    "list": "list",
    "list_prefixes": "list",
    "list_versions": "list",
    "list_uploads": "list",
    "list_parts": "list",
    "get": "get",
    "get_range": "get",
    "head": "get",
    "tags": "get",
    "retention": "get",
    "legal_hold": "get",
    "delete": "delete",
    "delete_many": "delete",
    "delete_version": "delete",
    "abort": "delete",
}
"""Every operation there is, each once; docs/status.md says so too."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests by how they are charged, each attempt; bytes of objects sent `up` and had `down`, without protocol; `errors`
    are requests whose answer was none (`s3core.observe`), the last of them at `failed_at` (Unix seconds, 0: none)."""

    put: int = 0
    list: int = 0
    get: int = 0
    delete: int = 0
    up: int = 0
    down: int = 0
    errors: int = 0
    failed_at: int = 0
    failure: str = ""

    @property
    def requests(self) -> int:
        return min(self.put + self.list + self.get + self.delete, NUMBER_MAX)

    def __add__(self, other: "Spent") -> "Spent":
        """Of both. The later failure is the one that is told; of two at the same second the one that sorts last, so that the
        order of adding does not matter."""
        later = max(self, other, key=lambda one: (one.failed_at, one.failure))
        sums = {name: min(getattr(self, name) + getattr(other, name), NUMBER_MAX) for name in _COUNTS}
        return Spent(**sums, failed_at=later.failed_at, failure=later.failure)


_COUNTS: Final = tuple(one.name for one in fields(Spent) if one.name not in ("failed_at", "failure"))

_MONTH: Final = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")

Month = dict[str, Spent]
"""By endpoint."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Money in `currency`. `known` is False where no price at all is known: the sums are 0 then and mean nothing."""

    currency: str
    put: float
    get: float
    egress: float
    known: bool

    @property
    def total(self) -> float:
        return self.put + self.get + self.egress


@dataclass(frozen=True, slots=True)
class Account:
    """What was spent at one endpoint in a month, and its prices; None where nobody knows the endpoint any more."""

    endpoint: str
    spent: Spent
    prices: Prices | None = None

    @property
    def estimate(self) -> Estimate:
        return estimate(self.spent, self.prices or Prices())

    def as_record(self) -> dict[str, object]:
        """What `--json` tells of it."""
        spent, made = self.spent, self.estimate
        return {
            "endpoint": self.endpoint,
            "requests": {"put": spent.put, "list": spent.list, "get": spent.get, "delete": spent.delete},
            "up_bytes": spent.up,
            "down_bytes": spent.down,
            "errors": spent.errors,
            "currency": made.currency if made.known else None,
            "cost": {"put": made.put, "get": made.get, "egress": made.egress} if made.known else None,
            "total": made.total if made.known else None,
        }


class SpendingDamaged(ValueError):
    """A file of counts is not what one looks like."""


def estimate(spent: Spent, prices: Prices) -> Estimate:
    """By list prices, every byte that came down charged as egress: an upper bound inside a provider's own network."""
    return Estimate(
        prices.currency,
        (spent.put + spent.list) / 1000 * prices.per_1000_put,
        spent.get / 1000 * prices.per_1000_get,
        spent.down / GIB * prices.per_gib_egress,
        any((prices.per_1000_put, prices.per_1000_get, prices.per_gib_egress, prices.per_gib_month)),
    )


def month_of(moment: float) -> str:
    """`2026-11`, in UTC."""
    return time.strftime("%Y-%m", time.gmtime(moment))


def is_month(text: str) -> bool:
    """Whether it is what `month_of` gives: safe as part of a file's name."""
    return _MONTH.fullmatch(text) is not None


def added(*months: Mapping[str, Spent]) -> Month:
    """Sums by endpoint. In whatever order and grouping they come, the outcome is the same."""
    sums: Month = {}
    for month in months:
        for endpoint, spent in month.items():
            sums[endpoint] = sums.get(endpoint, Spent()) + spent
    return sums


def accounts_of(
    month: Mapping[str, Spent], prices: Mapping[str, Prices], more: Iterable[Account] = ()
) -> list[Account]:
    """One for each endpoint, in order of names. `more` are those of tools that count by themselves."""
    found = {name: Account(name, spent, prices.get(name)) for name, spent in month.items()}
    for one in more:
        before = found.get(one.endpoint)
        found[one.endpoint] = (
            replace(one, prices=one.prices or prices.get(one.endpoint))
            if before is None
            else replace(before, spent=before.spent + one.spent, prices=before.prices or one.prices)
        )
    return [found[name] for name in sorted(found)]


# --- the file --------------------------------------------------------------------------------------------------------


def encode_month(month: str, counts: Mapping[str, Spent]) -> bytes:
    """The bytes of its file, the same for the same counts."""
    document = {
        "format": FORMAT,
        "month": month,
        "endpoints": {
            name: {one.name: getattr(spent, one.name) for one in fields(Spent)}
            for name, spent in sorted(counts.items())
        },
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def decode_month(month: str, data: bytes) -> Month:
    """SpendingDamaged for anything but what `encode_month` gives for that month."""
    try:
        document: Any = json.loads(data)
        if document["format"] != FORMAT or document["month"] != month:
            found = f"{document['format']!r}"[:40], f"{document['month']!r}"[:40]
            raise SpendingDamaged(f"it is of format {found[0]} and month {found[1]}")
        return {str(name): _spent(found) for name, found in document["endpoints"].items()}
    except SpendingDamaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpendingDamaged(f"{type(error).__name__}: {error}") from error


def _spent(found: Mapping[str, object]) -> Spent:
    values: dict[str, Any] = {}
    for one in fields(Spent):
        value = found[one.name]
        if one.name == "failure":
            if not isinstance(value, str):
                raise SpendingDamaged("a failure is no text")
            values[one.name] = value[:FAILURE_CHARACTERS_MAX]
        elif type(value) is not int or not 0 <= value <= NUMBER_MAX:
            raise SpendingDamaged(f"{one.name} is {str(value)[:40]!r}")
        else:
            values[one.name] = value
    return Spent(**values)
