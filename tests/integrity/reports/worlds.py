"""Records and documents for tests of reports, made from a seed or by an attacker."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from integrity.record import START, decode, encode, timestamp
from integrity.reports.choose import Choice
from integrity.reports.digest import Digest
from integrity.reports.document import Part, Problem, Subject, build, ulid
from integrity.reports.findings import taken

T0 = 1_763_700_000.0
VKEY = "example.com/ledger+1a2b3c4d+AYmGBD0c7Ra8W6Yr0JFlzzpRPAFzDzX3vl0P1DzG0oWv"
HOSTILE = (
    "<script>window.hit=1</script>",
    '"><img src=x onerror=window.hit=1>',
    "'><svg onload=window.hit=1>",
    "</style></title></textarea><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "&lt;script&gt;&#60;b&#62;",
    "photo\u202egpj.exe",
    "line\nend\r\ttab\x00\x1b[31mred\x7f",
    "{{7*7}}${7*7}<%=7*7%>",
    "http://127.0.0.1:9/x.png",
    "]]><!--",
    "x" * 1024,
    "\u0130\u0131\U0001f4a9\ufeff",
)


def record(n: int = 0, *, at: float = T0, writer: str = "pve1.1", **members: Any) -> dict[str, Any]:
    """A record as readers have it: through its bytes."""
    event = {"op": "put", "phase": "done", "source": "client", **members}
    return decode(encode(event, writer=writer, n=n, at=timestamp(at), after=START))


def busy(count: int, seed: int = 1) -> Iterable[dict[str, Any]]:
    """`count` operations of three writers: intents and outcomes, some without an end, and what a feed saw."""
    source = random.Random(seed)
    numbers = {"pve1.1": 0, "pve1.2": 0, "nas.1": 0}
    at = T0
    for i in range(count):
        at += source.expovariate(1 / 60)
        writer = source.choice(list(numbers))
        n = numbers[writer]
        members: dict[str, Any] = {
            "op": source.choices(["put", "copy", "delete", "control"], [60, 10, 8, 4])[0],
            "bucket": source.choice(["photos", "backups"]),
            "key": f"2026/{i}.jpg",
            "who": {"name": source.choice(["backup", "alice"]), "host": "pve1"},
        }
        if source.random() < 0.2:
            numbers[writer] += 1
            members["who"] = {"access_key": "AKEXAMPLE", "ip": "192.0.2.7"}
            yield record(n, at=at, writer=writer, phase="observed", **members)
            continue
        yield record(n, at=at, writer=writer, phase="intent", **members)
        numbers[writer] += 1
        drawn = source.random()
        if drawn < 0.01:
            continue
        ends: dict[str, Any] = {"phase": "done"}
        if drawn > 0.95:
            ends = {"phase": "not-done", "error": {"code": "SlowDown", "message": "later"}}
        if drawn > 0.99:
            ends = {"phase": "unknown"}
        numbers[writer] += 1
        yield record(n + 1, at=at + 0.1, writer=writer, intent=n, **{**members, **ends})


def hostile() -> Iterable[dict[str, Any]]:
    """One operation for each hostile text, in every place that takes text."""
    for n, text in enumerate(HOSTILE):
        who = dict.fromkeys(("name", "host", "ip", "access_key"), text)
        error = {"code": text, "message": text}
        yield record(n, at=T0 + n, phase="intent", key=text, bucket=text, who=who, version=text)
        yield record(n + 1000, at=T0 + n, phase="not-done", key=text, bucket=text, who=who, error=error, request=text)


def document(
    records: Iterable[Mapping[str, Any]],
    *,
    problems: Sequence[Problem] = (),
    findings: Sequence[Mapping[str, Any]] | None = None,
    choice: Choice | None = None,
    parts: Sequence[Part] | None = None,
) -> dict[str, Any]:
    chosen = choice or Choice()
    digest = Digest(chosen)
    for one in records:
        digest.add(one)
    subject = Subject(
        ulid(T0, 5), "archive", "example.com/ledger", VKEY, "s3://ceph/ledger", timestamp(T0), "s3integrity 0", chosen
    )
    seen = sorted(digest.records) or ["pve1.1"]
    read = parts if parts is not None else [Part(name, 9, "ab" * 32, 0, 9, timestamp(T0)) for name in seen]
    answer = (
        None if findings is None else taken(orjson.dumps({"findings": findings, "bucket": "photos"}), "answer.json")
    )
    return build(subject, read, problems, digest, answer)
