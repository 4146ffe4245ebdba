"""What `bucketworks status` tells: records of things and their health, and the document that hosts publish. Pure.

One rule: what a reader gets was written by somebody else. A published document is believed as far as its fields are of the
kind and size that they may be; text is made harmless here, once, so that neither a terminal nor a page has to. What is not
known is told as `unknown` with the reason, which is neither well nor ill.

The document is described in docs/formats/status.md; docs/status.md has the words.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from s3core.exit_codes import ExitCode
from s3core.spending import Account

FORMAT: Final = "bucketworks-status"
VERSION: Final = 1
DOCUMENT_BYTES_MAX: Final = 1 << 20
ITEMS_MAX: Final = 5000
FACTS_MAX: Final = 64
ACCOUNTS_MAX: Final = 1000
ACCOUNTS_KEPT: Final = 50
"""More than that give way before things do, where a document is too large."""
NUMBER_MAX: Final = 1e18
NAME_CHARACTERS_MAX: Final = 300
TEXT_CHARACTERS_MAX: Final = 1000
CURRENCY_CHARACTERS_MAX: Final = 8
"""As an endpoint's price table has it, whoever wrote that: `EUR`, or `€`."""
MOMENT_MAX: Final = 253_402_300_799
"""The end of the year 9999; no calendar goes further."""
AHEAD_S: Final = 300.0
"""A document from so far in the future tells of a wrong clock, or lies about its age."""

Health = Literal["ok", "warning", "unknown", "critical"]
HEALTHS: Final[tuple[Health, ...]] = ("ok", "warning", "unknown", "critical")
"""The worst last."""
Fact = str | int | float | bool | None

_KIND = re.compile(r"[a-z][a-z-]{0,31}\Z")
_FACT = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_PAGE = re.compile(r"(?:[a-z0-9-]+/)*[a-zA-Z0-9-]+\.md(?:#[a-z0-9-]+)?\Z")
_HOST = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}\Z")
_MONTH = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])\Z")
#: What ends the command where nothing is `critical` for a reason of its own; the most urgent first.
_URGENT: Final = (
    ExitCode.TAMPERED,
    ExitCode.CORRUPT,
    ExitCode.LOCAL,
    ExitCode.UNAVAILABLE,
    ExitCode.DENIED,
    ExitCode.CONFIGURATION,
    ExitCode.REFUSED,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing: `kind` is endpoint, volume, mirror, ledger, storage or console. `summary` is one line of what it is and does;
    `reason` why it is not well, and `runbook` the page below docs/ that says what to do. `code` is the exit code of
    a critical one. `facts` are numbers and words for programs, each with its unit in its name."""

    kind: str
    name: str
    health: Health
    summary: str = ""
    reason: str = ""
    runbook: str = ""
    code: ExitCode = ExitCode.UNAVAILABLE
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def as_record(self) -> dict[str, object]:
        """What `--json` and the document tell of it."""
        told: dict[str, object] = {"kind": self.kind, "name": self.name, "health": self.health}
        told |= {"summary": self.summary, "reason": self.reason, "runbook": self.runbook}
        if self.health == "critical":
            told["code"] = int(self.code)
        # Facts come from services, which may run as other users: what no reader would take must not cost the document.
        facts = {name: _bounded(value) for name, value in self.facts.items() if _FACT.match(name)}
        return told | {"facts": dict(islice(facts.items(), FACTS_MAX))}


@dataclass(frozen=True, slots=True)
class Money:
    """What one endpoint cost this month up to now. None where it is not known: no price, or nobody measured what is stored."""

    endpoint: str
    requests: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    errors: int = 0
    currency: str | None = None
    total: float | None = None
    stored_bytes: int | None = None
    storage_per_month: float | None = None

    def as_record(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Everything that one host told, at `at` (Unix seconds of its clock). `program` is the version that looked."""

    host: str
    at: float
    program: str
    items: tuple[Item, ...]
    month: str = ""
    money: tuple[Money, ...] = ()

    @property
    def health(self) -> Health:
        return worst(one.health for one in self.items)

    @property
    def exit_code(self) -> ExitCode:
        return exit_code(self.items)


@dataclass(frozen=True, slots=True)
class Published:
    """What lies under one host's name: `status`, or why there is none that can be used. `age_s` is by the reader's clock."""

    host: str
    status: HostStatus | None
    age_s: float = 0.0
    stale: bool = False
    problem: str = ""

    @property
    def health(self) -> Health:
        """A stale one says nothing of now: it is critical where it was so, else unknown."""
        if self.status is None:
            return "unknown"
        return worst(("unknown", self.status.health)) if self.stale else self.status.health


class DocumentDamaged(ValueError):
    """Not a status document of this version, or one that cannot be true."""


def in_order(name: str) -> list[tuple[int, str]]:
    """The key by which names are sorted for people: pve2 comes before pve10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def worst(healths: Iterable[Health]) -> Health:
    return max(healths, key=HEALTHS.index, default="ok")


def exit_code(items: Iterable[Item]) -> ExitCode:
    """OK; FINDING for warnings; PARTIAL where something could not be told; else that of the most urgent critical thing."""
    found = list(items)
    health = worst(one.health for one in found)
    if health != "critical":
        return {"ok": ExitCode.OK, "warning": ExitCode.FINDING, "unknown": ExitCode.PARTIAL}[health]
    codes = {one.code for one in found if one.health == "critical"}
    return next((code for code in _URGENT if code in codes), ExitCode.UNAVAILABLE)


def unknown(kind: str, name: str, reason: str, runbook: str = "runbook/README.md") -> Item:
    """That something could not be told, and why."""
    return Item(kind, name, "unknown", "", reason, runbook)


def with_storage(accounts: Sequence[Account], items: Iterable[Item]) -> tuple[Money, ...]:
    """`accounts`, and beside each what the items know to be stored there: the facts `endpoint` and `stored_bytes`."""
    stored: dict[str, int] = {}
    for item in items:
        endpoint, amount = item.facts.get("endpoint"), item.facts.get("stored_bytes")
        if isinstance(endpoint, str) and isinstance(amount, int):
            stored[endpoint] = stored.get(endpoint, 0) + amount
    made = []
    for one in accounts:
        estimate, amount = one.estimate, stored.get(one.endpoint)
        price = one.prices.per_gib_month if one.prices is not None else 0.0
        made.append(
            Money(
                one.endpoint,
                one.spent.requests,
                one.spent.up,
                one.spent.down,
                one.spent.errors,
                estimate.currency if estimate.known else None,
                estimate.total if estimate.known else None,
                amount,
                amount / (1 << 30) * price if amount is not None and price else None,
            )
        )
    return tuple(made)


# --- the document ----------------------------------------------------------------------------------------------------


def encode(status: HostStatus) -> bytes:
    """The bytes of its object, the same for the same status. What is beyond the limits is left out, money before things; the
    ill are kept first."""
    items = sorted(status.items, key=lambda one: (-HEALTHS.index(one.health), one.kind, one.name))[:ITEMS_MAX]
    money = status.money[:ACCOUNTS_MAX]
    while True:
        data = _encoded(status, items, money)
        if len(data) <= DOCUMENT_BYTES_MAX or not (items or money):
            return data
        if len(money) > ACCOUNTS_KEPT or not items:
            money = money[: len(money) // 2]
        else:
            items = items[: len(items) * 3 // 4]


def _encoded(status: HostStatus, items: Sequence[Item], money: Sequence[Money]) -> bytes:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "host": status.host,
        "at": round(status.at, 3),
        "program": status.program,
        "items": [one.as_record() for one in items],
        "left_out": len(status.items) - len(items),
        "spending": {"month": status.month, "endpoints": [one.as_record() for one in money]},
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True, allow_nan=False).encode() + b"\n"


def decode(data: bytes, *, host: str) -> HostStatus:
    """The status of the host under whose name `data` lay. DocumentDamaged says what is wrong with it."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise DocumentDamaged(f"it has more than {DOCUMENT_BYTES_MAX:,} bytes")
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DocumentDamaged("it is no status of a host")
        if document["version"] != VERSION:
            raise DocumentDamaged(
                f"it is of version {_text(str(document['version']), 20)}, this program knows {VERSION}"
            )
        if document["host"] != host:
            raise DocumentDamaged(f"it calls its host {_text(str(document['host']), 80)!r}")
        items, spending = document["items"], document["spending"]
        if len(items) > ITEMS_MAX or len(spending["endpoints"]) > ACCOUNTS_MAX:
            raise DocumentDamaged("it tells of more things than there may be")
        left_out = _count(document["left_out"])
        told = tuple(_item(one) for one in items)
        if left_out:
            told = (*told, unknown("status", "left out", f"{left_out:,} things did not fit into the document"))
        at = _number(document["at"])
        if not 0 <= at <= MOMENT_MAX:
            raise DocumentDamaged("when it was made is no moment")
        month = spending["month"]
        if not isinstance(month, str) or (month and not _MONTH.match(month)):
            raise DocumentDamaged("its month is none")
        return HostStatus(
            host,
            at,
            _text(document["program"], 40),
            told,
            month,
            tuple(_money(one) for one in spending["endpoints"]),
        )
    except DocumentDamaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DocumentDamaged(f"it is damaged: {type(error).__name__}: {_text(str(error), 100)}") from error


def published(host: str, data: bytes, *, now: float, stale_s: float) -> Published:
    """What `data`, found under the name of `host`, is worth now. Never raises for what it holds."""
    try:
        status = decode(data, host=host)
    except DocumentDamaged as error:
        return Published(host, None, problem=str(error))
    age = now - status.at
    if age < -AHEAD_S:
        return Published(host, None, problem=f"it says that it was made {-age:.0f} s from now: look at the clocks")
    return Published(host, status, max(age, 0.0), age > stale_s)


def is_host(name: str) -> bool:
    """Whether a host may be called so: what its object is named by."""
    return bool(_HOST.match(name))


def _item(record: Any) -> Item:
    kind, health, page, facts = record["kind"], record["health"], record["runbook"], record["facts"]
    if not isinstance(kind, str) or not _KIND.match(kind):
        raise DocumentDamaged("it has a thing of no kind")
    if health not in HEALTHS:
        raise DocumentDamaged(f"the health of a {kind} is {_text(str(health), 40)!r}")
    if not isinstance(page, str) or (page and not _PAGE.match(page)):
        raise DocumentDamaged(f"the page for a {kind} is none of ours")
    if not isinstance(facts, dict) or len(facts) > FACTS_MAX or not all(map(_FACT.match, facts)):
        raise DocumentDamaged(f"the facts of a {kind} are none")
    code = ExitCode(record.get("code", ExitCode.UNAVAILABLE))
    return Item(
        kind,
        _text(record["name"], NAME_CHARACTERS_MAX),
        health,
        _text(record["summary"], TEXT_CHARACTERS_MAX),
        _text(record["reason"], TEXT_CHARACTERS_MAX),
        page,
        code,
        {name: _fact(value) for name, value in facts.items()},
    )


def _money(record: Any) -> Money:
    currency = record["currency"]
    counts = {name: _count(record[name]) for name in ("requests", "up_bytes", "down_bytes", "errors")}
    stored = record["stored_bytes"]
    return Money(
        _text(record["endpoint"], NAME_CHARACTERS_MAX),
        **counts,
        currency=None if currency is None else _text(currency, CURRENCY_CHARACTERS_MAX),
        total=None if record["total"] is None else _number(record["total"]),
        stored_bytes=None if stored is None else _count(stored),
        storage_per_month=None if record["storage_per_month"] is None else _number(record["storage_per_month"]),
    )


def _text(value: object, characters: int) -> str:
    """One line of what can be printed; control characters, and those that turn the direction of text, are left out."""
    if not isinstance(value, str):
        raise DocumentDamaged("text is none")
    harmless = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in value[: 4 * characters])
    return " ".join(harmless.split())[:characters].rstrip()


def _number(value: object) -> float:
    # Compared before it is converted: a whole number of hundreds of digits has no float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= NUMBER_MAX:
        raise DocumentDamaged("a number is none")
    return float(value)


def _bounded(value: Fact) -> Fact:
    if isinstance(value, str) or value is None:
        return value
    return value if abs(value) <= NUMBER_MAX else None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise DocumentDamaged("a count is none")
    return value


def _fact(value: object) -> Fact:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, NAME_CHARACTERS_MAX)
    if isinstance(value, int):
        _number(value)
        return value
    return _number(value)
