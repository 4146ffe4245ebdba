"""A plan of the keys that somebody named: the source is asked for each of them, and what it answers is compared with the base.

One rule: the source's own answer is the only fact. A key that is not there is one that the source says is not there, while
its bucket can be listed; an object is what HEAD says of it. Of keys that were not named nothing is said, and nothing is
ever removed from the mirror: that a key is missing must be found by listings.
"""

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from cowsync.base.difference import differences, each
from cowsync.base.layers import find_all
from cowsync.changes import PlanLine
from cowsync.errors import Refused, Stopped
from cowsync.feed.gathered import Counts, Scope
from cowsync.mirror import Mirror, check_current
from cowsync.net_changes import rows
from cowsync.rows import Row
from cowsync.scan.listing import RESERVED
from cowsync.scan.ranges import WHOLE
from cowsync.scan.run import Scan, ScanFacts
from cowsync.scan.shard import ShardTask, line_for, packed
from cowsync.work import Base, Planned, plan_from, settled_base
from s3core.errors import NotFound, OutcomeUnknown, StoreError, Unavailable

ASKED_TOGETHER = 1000
"""Between two looks at whether to stop."""


@dataclass(slots=True)
class Answers:
    """`there` are rows of the objects that the source has, `absent` the keys that it has not. `unanswered` are keys of
    which it said neither (they are the next listing's), `why` its words about the first."""

    there: list[Row] = field(default_factory=list)
    absent: list[bytes] = field(default_factory=list)
    unanswered: int = 0
    why: str = ""
    heads: int = 0
    lists: int = 0


def scope_of(mirror: Mirror) -> Scope:
    """Which hints are this mirror's."""
    belongs = mirror.belongs
    return Scope(
        mirror.source.bucket.properties.name,
        mirror.source.prefix,
        lambda key: not key.startswith(RESERVED) and (belongs is None or belongs(key)),
        mirror.settings.events_keys_max,
    )


def plan_hinted(
    mirror: Mirror,
    keys: Collection[str],
    counts: Counts,
    *,
    now: Callable[[], float] = time.time,
    going_on: Callable[[], bool] = lambda: True,
) -> Planned | None:
    """As `work.make_plan`, of `keys` alone; None where they are as the base says. For the holder of the lock. Nothing
    moves. Refused before the first run, which lists; Stopped once `going_on` says no."""
    check_current(mirror, "a look at what events name")
    base = settled_base(mirror, now=now)
    if base.snapshot is None:
        raise Refused(
            f"mirror {mirror.name} has no restore point yet, so there is nothing to compare with",
            hint=f"the first run lists the source: cowsync run {mirror.name}",
        )
    began = now()
    named = sorted(key.encode() for key in keys)
    answers = ask(mirror, named, going_on)
    lines = _lines(mirror, base, named, answers)
    if not lines:
        return None
    facts = ScanFacts(
        keys=len(answers.there),
        bytes_listed=sum(row.size for row in answers.there),
        changes=len(lines),
        requests=answers.lists,
        heads=answers.heads,
        seconds=now() - began,
        started=began,
        events={"keys": len(named), "unanswered": answers.unanswered, **counts.to_json()},
    )

    def scan_of(base: Base) -> Scan:
        shutil.rmtree(mirror.spool, ignore_errors=True)
        mirror.spool.mkdir(parents=True)
        path = mirror.spool / "hinted"
        path.write_bytes(packed(lines))
        return Scan(facts, [path])

    return plan_from(mirror, scan_of, now=now, base=base)


def ask(mirror: Mirror, named: Sequence[bytes], going_on: Callable[[], bool]) -> Answers:
    """What the source has of `named`, which ascend. Unavailable and OutcomeUnknown are raised; other errors too where they
    are all that is answered. Stopped."""
    place = mirror.source
    answers = Answers()
    refusal: StoreError | None = None

    def look(key: bytes) -> Row | StoreError:
        try:
            facts = place.bucket.head(place.key(key.decode()))
        except (Unavailable, OutcomeUnknown):
            raise
        except StoreError as error:
            return error
        moment = datetime.fromtimestamp(facts.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return Row(key, facts.size, facts.etag.encode(), moment.encode(), b"", facts.storage_class.encode())

    rest = iter(named)
    with ThreadPoolExecutor(mirror.settings.copiers, thread_name_prefix="ask") as pool:
        while batch := list(islice(rest, ASKED_TOGETHER)):
            if not going_on():
                raise Stopped("asked to stop")
            for key, found in zip(batch, pool.map(look, batch), strict=True):
                answers.heads += 1
                if isinstance(found, Row):
                    answers.there.append(found)
                elif isinstance(found, NotFound):
                    answers.absent.append(key)
                else:
                    answers.unanswered += 1
                    refusal = refusal or found
    answers.why = str(refusal or "")
    if refusal is not None and not answers.there:
        raise refusal
    if answers.absent:
        # A bucket that is gone has none of the keys, and HEAD cannot tell the one from the other.
        place.bucket.list_page(prefix=place.prefix, max_keys=1)
        answers.lists += 1
    return answers


def _lines(mirror: Mirror, base: Base, named: Sequence[bytes], answers: Answers) -> list[PlanLine]:
    assert base.snapshot is not None
    answered = {row.key for row in answers.there}.union(answers.absent)
    known = find_all(base.snapshot.layers, mirror.state, [key for key in named if key in answered])
    was, there = rows(known[key] for key in named if key in known), rows(answers.there)
    task = ShardTask(WHOLE, base.run)
    lines = (line_for(kind, old, new, task, b"") for kind, old, new in each(differences([was], [there])))
    return [line for line in lines if line is not None]
