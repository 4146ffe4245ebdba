"""A comparison from its beginning to its verdict: fold what is new, list, join, look again at what was found.

One rule: nothing is a finding while it may still be explained by a record that is under way. A key that differs is looked at
again once every record of what was done before the first look must have been published; only what still differs, and did
not change in between, is told. What goes on changing is told as in flight.

    1 fold the records that are there        4 wait until what was done before 3 is published, fold again
    2 begin to list                          5 look at each of those keys again, and judge it
    3 join; judge each key that differs      6 what changed since the look before goes to 4, three times at most
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from threading import Event, Lock
from typing import Any

from integrity.reconcile.acts import Act
from integrity.reconcile.actual import BucketListing, Source
from integrity.reconcile.content import chosen, mismatch
from integrity.reconcile.findings import Code, Finding, shown
from integrity.reconcile.folded import Folded
from integrity.reconcile.join import Listed, differing, listed_lines
from integrity.reconcile.judgement import Circumstances, judge
from integrity.reconcile.mentions import bare_version
from s3core.bucket import Bucket, ListedVersion
from s3core.clock import Clock
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.s3_control import LifecycleRule

Logs = Callable[[], Iterable[tuple[str, int, Callable[[int, int], Iterable[tuple[int, bytes]]]]]]
"""Opens the logs of all writers anew: name, verified size, and what reads verified records of a range."""
ROUNDS = 3
LOOKED_AGAIN_MAX = 10_000
"""Keys that are looked at again one by one. Of more the listing alone is told, and that it is so."""
FINDINGS_MAX = 100_000
"""Findings that are kept. More of them are counted."""
THREADS = 8
PIECES = 32


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `content`: the share of versions whose bytes are read again. `since` (Unix seconds): older findings
    are left out. `settle_s`: after so long every record of what was done is published."""

    content: float = 0.0
    since: float = 0.0
    settle_s: float = 15.0
    dangling_s: float = 3600.0
    threads: int = THREADS


@dataclass(slots=True)
class Answer:
    """What came out. `explained` counts by cause what is no finding; `explained_findings` are they, up to FINDINGS_MAX.
    `in_flight` are keys that went on changing; `looked_once` is how many keys were not looked at again, since there were too
    many. `incomplete` says what was not looked at, and why."""

    place: str
    at: float
    records: int = 0
    fresh_records: int = 0
    versions: int = 0
    keys_judged: int = 0
    findings: list[Finding] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)
    explained_findings: list[Finding] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    content_read: int = 0
    content_unknown: int = 0
    left_out: int = 0
    looked_once: int = 0
    incomplete: list[str] = field(default_factory=list)
    listing_s: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        if self.incomplete:
            return ExitCode.PARTIAL
        return ExitCode.FINDING if self.findings else ExitCode.OK

    def as_record(self) -> dict[str, Any]:
        """What `--json` tells, and a report takes."""
        return {
            "bucket": self.place,
            "at": shown(self.at),
            "complete": not self.incomplete,
            "incomplete": self.incomplete,
            "records": self.records,
            "new_records": self.fresh_records,
            "versions": self.versions,
            "keys_judged": self.keys_judged,
            "findings": [finding.as_record() for finding in (*self.findings, *self.explained_findings)],
            "findings_left_out": self.left_out,
            "counts": dict(Counter(finding.code.value for finding in self.findings)),
            "explained": dict(self.explained),
            "in_flight": self.in_flight,
            "looked_once": self.looked_once,
            "content": {"read": self.content_read, "nothing_to_compare_with": self.content_unknown},
        }


class Reconciliation:
    """One comparison of what is below `prefix`. `source` tells what there is, `listing` is the bucket itself, for the second
    look. `told(label, count)` hears of progress, from any thread."""

    def __init__(
        self,
        folded: Folded,
        prefix: str,
        logs: Logs,
        source: Source,
        listing: BucketListing,
        bucket: Bucket,
        clock: Clock,
        random: Random,
        *,
        wish: Wish,
        rules: Sequence[LifecycleRule] | None = (),
        told: Callable[[str, int], None] = lambda label, count: None,
    ) -> None:
        self._folded = folded
        self._prefix = prefix
        self._logs = logs
        self._source = source
        self._listing = listing
        self._bucket = bucket
        self._clock = clock
        self._random = random
        self._wish = wish
        self._rules = rules
        self._told = told
        self._lock = Lock()
        self._stop = Event()
        self._explained_prefixes: tuple[str, ...] = ()

    def run(self) -> Answer:
        """The answer. Errors of the ledger (Tampered) and of the stores are raised; with them there is no answer."""
        folded, clock = self._folded, self._clock
        fresh = folded.fold(self._logs(), lambda count: self._told("reading the ledger", count))
        began = self._source.moment or clock.time()
        answer = Answer(f"{folded.place.url}/{self._prefix}".rstrip("/"), began, folded.records, fresh)
        self._explained_prefixes = volume_prefixes(folded)
        around = self._around(began)
        suspects = self._join(answer, around)
        answer.listing_s = clock.time() - began if not self._source.moment else 0.0
        found = self._again(answer, suspects, looked=clock.time())
        keys = {finding.key for finding in found if not finding.explained}
        for finding in sorted(found, key=lambda one: (one.key, one.code)):
            self._keep(answer, finding)
        answer.records = folded.records
        if not answer.incomplete:
            folded.keep_result(began, (*keys, *answer.in_flight), self._prefix)
        return answer

    def _around(self, now: float) -> Circumstances:
        folded = self._folded
        return Circumstances(
            now=now,
            began=folded.began(self._prefix),
            skew_s=folded.skew_s,
            looked=folded.looked(self._prefix),
            rules=self._rules,
            feed=folded.feed,
            settle_s=self._wish.dangling_s,
            suspected=folded.suspected,
        )

    # --- the first look ----------------------------------------------------------------------------------------

    def _join(self, answer: Answer, around: Circumstances) -> dict[str, list[ListedVersion]]:
        """Lists and joins, several ranges at once; the keys that may have findings, with what was there. What is explained
        by what never changes (time before the ledger, a volume) is counted and left."""
        edges: list[bytes | None] = [b"", *self._folded.cuts(PIECES - 1, self._prefix), None]
        suspects: dict[str, list[ListedVersion]] = {}
        with ThreadPoolExecutor(self._wish.threads, thread_name_prefix="reconcile") as pool:
            pieces = [
                pool.submit(self._join_range, answer, around, edges[at] or b"", edges[at + 1])
                for at in range(len(edges) - 1)
            ]
            try:
                for piece in pieces:
                    suspects |= piece.result()
            except BaseException:
                self._stop.set()
                for piece in pieces:
                    piece.cancel()
                raise
        return suspects

    def _join_range(
        self, answer: Answer, around: Circumstances, after: bytes, upto: bytes | None
    ) -> dict[str, list[ListedVersion]]:
        suspects: dict[str, list[ListedVersion]] = {}
        explained: Counter[str] = Counter()
        judged = 0
        for name, rows in differing(self._folded.lines(after, upto, self._prefix), self._listed(answer, after, upto)):
            key = name.decode(errors="replace")
            judged += 1
            if self._of_a_volume(key):
                explained["volume: its own log tells of it"] += len(rows)
                continue
            findings = judge(key, self._acts(key), rows, around)
            if all(finding.explained.startswith("there before") for finding in findings):
                explained.update(finding.explained for finding in findings)
            else:
                suspects[key] = rows
        with self._lock:
            answer.explained += explained
            answer.keys_judged += judged
        return suspects

    def _listed(self, answer: Answer, after: bytes, upto: bytes | None) -> Iterator[Listed]:
        for rows in self._source.pieces(after, upto):
            if self._stop.is_set():
                return
            with self._lock:
                answer.versions += len(rows)
                picked = chosen(len(rows), self._wish.content, self._random) if self._wish.content else []
            self._told("listing", len(rows))
            for at in picked:
                self._read_again(answer, rows.row(at))
            yield listed_lines(rows)

    def _acts(self, key: str) -> list[Act]:
        with self._lock:
            return self._folded.acts(key)

    def _of_a_volume(self, key: str) -> bool:
        return bool(self._explained_prefixes) and key.startswith(self._explained_prefixes)

    # --- looking again -----------------------------------------------------------------------------------------

    def _again(self, answer: Answer, suspects: dict[str, list[ListedVersion]], looked: float) -> list[Finding]:
        """Findings that are still there, of keys that did not change since they were looked at before."""
        found: list[Finding] = []
        rest: dict[str, list[ListedVersion]] = {}
        if len(suspects) > LOOKED_AGAIN_MAX:
            around = self._around(looked)
            for place, (key, rows) in enumerate(suspects.items()):
                if place < LOOKED_AGAIN_MAX:
                    rest[key] = rows
                else:
                    found += judge(key, self._acts(key), rows, around)
            answer.looked_once = len(suspects) - LOOKED_AGAIN_MAX
        else:
            rest = suspects
        for _ in range(ROUNDS):
            if not rest:
                return found
            self._clock.sleep(max(0.0, looked + self._wish.settle_s - self._clock.time()))
            answer.fresh_records += self._folded.fold(self._logs())
            looked = self._clock.time()
            around = self._around(looked)
            changing: dict[str, list[ListedVersion]] = {}
            with ThreadPoolExecutor(self._wish.threads, thread_name_prefix="reconcile") as pool:
                for (key, before), now in zip(rest.items(), pool.map(self._listing.versions_of, rest), strict=True):
                    self._told("looking again", 1)
                    findings = judge(key, self._acts(key), now, around)
                    if findings and not _alike(before, now):
                        changing[key] = now
                    else:
                        found += findings
            rest = changing
        answer.in_flight = sorted(rest)
        return found

    def _keep(self, answer: Answer, finding: Finding) -> None:
        if self._wish.since and finding.until and finding.until < self._wish.since:
            return
        if finding.explained:
            answer.explained[finding.explained] += 1
            if len(answer.explained_findings) < FINDINGS_MAX:
                answer.explained_findings.append(finding)
        elif len(answer.findings) < FINDINGS_MAX:
            answer.findings.append(finding)
        else:
            answer.left_out += 1

    # --- bytes -------------------------------------------------------------------------------------------------

    def _read_again(self, answer: Answer, one: ListedVersion) -> None:
        if one.delete_marker or self._of_a_volume(one.key):
            return
        version = bare_version(one.version_id)
        acts = [act for act in self._acts(one.key) if act.kind == "put" and act.version == version]
        matching = [act for act in acts if act.etag == one.etag]
        try:
            wrong = mismatch(self._bucket, one, matching)
        except StoreError as error:
            with self._lock:
                answer.incomplete.append(f"`{one.key}` could not be read again: {error}")
            return
        with self._lock:
            answer.content_read += wrong is not None
            answer.content_unknown += wrong is None
            if wrong:
                act = max(matching, key=lambda act: act.high, default=None)
                finding = Finding(
                    Code.CONTENT_MISMATCH,
                    one.key,
                    wrong,
                    version=version,
                    since=act.high if act else 0.0,
                    until=answer.at,
                    last_writer=act.who if act else "",
                    records=tuple(act.references) if act else (),
                )
                self._keep(answer, finding)


def volume_prefixes(folded: Folded) -> tuple[str, ...]:
    """What keys of block volumes begin with, by the control records of their daemons. Their objects are told by the volume's
    own log, not one by one by the ledger."""
    place = folded.place
    found = set()
    for record in folded.controls():
        key = record.get("key", "") if "volume" in record.get("detail", {}) else ""
        if record.get("bucket") == place.bucket and record.get("endpoint", place.endpoint) == place.endpoint and key:
            found.add(f"{key.rstrip('/')}/")
    return tuple(sorted(found))


def _alike(one: Sequence[ListedVersion], other: Sequence[ListedVersion]) -> bool:
    """Whether two looks saw the same; a page by page listing may not know which is the newest."""
    return {replace(row, latest=True, version_id=bare_version(row.version_id)) for row in one} == {
        replace(row, latest=True, version_id=bare_version(row.version_id)) for row in other
    }
