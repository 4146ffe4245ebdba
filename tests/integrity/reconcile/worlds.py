"""A bucket, the tools that write it and record what they do, the feeds that watch it, and an attacker who does neither."""

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

from integrity.reconcile.acts import acts_of
from integrity.reconcile.findings import Code, Finding
from integrity.reconcile.judgement import Circumstances, judge
from integrity.reconcile.mentions import Mention, Place, mention_of
from integrity.record import START, decode, encode, timestamp
from integrity.tlog.tree import leaf_hash
from s3core.bucket import ListedVersion, Written
from s3core.memory_bucket import MemoryBucket, MemoryService
from tests.s3core.fakes import FakeClock

PLACE = Place("memory", "photos")
BEGAN = 1_780_000_000.0
SKEW_S = 5.0


class Log:
    """One writer's records, as its log has them."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.records: list[bytes] = []

    def add(self, event: dict[str, Any], at: float) -> int:
        after = leaf_hash(self.records[-1]) if self.records else START
        self.records.append(encode(event, writer=self.writer, n=len(self.records), at=timestamp(at), after=after))
        return len(self.records) - 1


class World:
    """`ahead` is how far the clock of each writer's host is ahead of the store's. `tells_versions`: outcomes name versions;
    those of our own stores do not."""

    def __init__(
        self, *, versioned: bool, ahead: Sequence[float] = (0.0, 0.0), feeds: bool = False, tells_versions: bool = True
    ) -> None:
        self.clock = FakeClock(BEGAN - 1_700_000_000.0)
        self.service = MemoryService("memory", clock=self.clock)
        self.bucket = MemoryBucket("photos", versioned=versioned, service=self.service)
        self.logs = [Log(f"pve{number}.1") for number in range(1, len(ahead) + 1)]
        self.ahead = ahead
        self.feeds = feeds
        self.tells_versions = tells_versions
        self.feed = Log("feeds.1")
        self.events: list[dict[str, Any]] = []
        """Seen by feeds and not recorded yet."""
        self._requests = 0
        self.wait(10)

    def wait(self, seconds: float = 60.0) -> None:
        self.clock.sleep(seconds)

    # --- what our own tools do ---------------------------------------------------------------------------------

    def put(self, key: str, data: bytes, *, writer: int = 0, answer: str = "done") -> Written | None:
        """`answer`: done; lost (and done), never (lost, and not done), twice (the first was lost, the second came), refused,
        died (done, and nobody said so)."""
        written: Written | None = None
        intent = self._intent(writer, {"op": "put", "key": key, "size": len(data)})
        for _ in range({"never": 0, "refused": 0, "twice": 2}.get(answer, 1)):
            self.clock.sleep(1)
            written = self.bucket.put(key, data)
            self.observe("put", key, written.version_id, etag=written.etag, size=len(data))
        outcome = {"op": "put", "key": key, "size": len(data)}
        if written and answer in ("done", "twice"):
            outcome |= {"etag": written.etag} | ({"version": written.version_id} if self.tells_versions else {})
        self._outcome(writer, intent, outcome, answer)
        return written

    def delete(self, key: str, *, writer: int = 0, answer: str = "done") -> str:
        marker = ""
        intent = self._intent(writer, {"op": "delete", "key": key})
        for _ in range({"never": 0, "refused": 0, "twice": 2}.get(answer, 1)):
            self.clock.sleep(1)
            marker = self.bucket.delete(key)
            self.observe("delete", key, marker)
        told = {"version": marker} if answer in ("done", "twice") and self.tells_versions else {}
        self._outcome(writer, intent, {"op": "delete", "key": key, **told}, answer)
        return marker

    def purge(self, key: str, version: str, *, writer: int = 0, answer: str = "done") -> None:
        intent = self._intent(writer, {"op": "delete-version", "key": key, "version": version})
        if answer not in ("never", "refused"):
            self.clock.sleep(1)
            self.bucket.delete_version(key, version)
            self.observe("delete-version", key, version)
        self._outcome(writer, intent, {"op": "delete-version", "key": key, "version": version}, answer)

    def _intent(self, writer: int, event: dict[str, Any]) -> int:
        return self._record(writer, event | {"phase": "intent"})

    def _outcome(self, writer: int, intent: int, event: dict[str, Any], answer: str) -> None:
        self.clock.sleep(1)
        phase = {"lost": "unknown", "never": "unknown", "refused": "not-done"}.get(answer, "done")
        if answer != "died":
            self._record(writer, event | {"phase": phase, "intent": intent})

    def _record(self, writer: int, event: dict[str, Any]) -> int:
        who = {"name": "backup", "host": f"pve{writer + 1}"}
        fixed = {"bucket": "photos", "endpoint": "memory", "source": "client", "who": who}
        return self.logs[writer].add(event | fixed, self.clock.time() + self.ahead[writer])

    # --- what feeds see ----------------------------------------------------------------------------------------

    def observe(self, op: str, key: str, version: str, *, etag: str = "", size: int | None = None) -> None:
        self._requests += 1
        self.events.append(
            {
                "op": op,
                "key": key,
                "version": version,
                "etag": etag,
                "size": size,
                "sequencer": f"{self._requests:016X}",
                "request": f"R{self._requests}",
                "time": timestamp(self.clock.time()),
                "phase": "observed",
                "source": "notification",
                "bucket": "photos",
                "who": {"access_key": "AK", "ip": "192.0.2.7"},
            }
        )

    def deliver(self, random: Random) -> None:
        """Notifications arrive: in any order, some twice; and an access log, which knows neither ETag nor version."""
        if self.feeds:
            late = [event for event in self.events if random.random() < 0.3]
            logged = [
                {name: value for name, value in event.items() if name not in ("etag", "sequencer", "version", "size")}
                | {"source": "access-log"}
                for event in self.events
                if random.random() < 0.3 and event["op"] != "delete-version"
            ]
            events = [*self.events, *late, *logged]
            random.shuffle(events)
            for event in events:
                self.feed.add(event, self.clock.time())
        self.events.clear()

    # --- the comparison ----------------------------------------------------------------------------------------

    @property
    def versions(self) -> list[ListedVersion]:
        return list(self.bucket.list_versions().versions)

    def version(self, key: str, place: int = 0) -> ListedVersion:
        """The newest with 0, the one before with 1."""
        return [one for one in self.versions if one.key == key][place]

    def mentions(self) -> list[Mention]:
        records = [decode(data) for log in (*self.logs, self.feed) for data in log.records]
        return [mention for mention in (mention_of(record, PLACE) for record in records) if mention is not None]

    def around(self, **more: Any) -> Circumstances:
        return Circumstances(now=self.clock.time(), **({"began": BEGAN, "skew_s": SKEW_S} | more))

    def findings(self, *, observed_counts: bool = False, **more: Any) -> list[Finding]:
        around = self.around(**more)
        by_key: dict[str, list[Mention]] = defaultdict(list)
        for mention in self.mentions():
            by_key[mention.key].append(mention)
        there: dict[str, list[ListedVersion]] = defaultdict(list)
        for one in self.versions:
            there[one.key].append(one)
        found = []
        for key in sorted({*by_key, *there}):
            acts = acts_of(by_key[key], observed_counts=observed_counts, skew_s=around.skew_s)
            found += judge(key, acts, there[key], around)
        return found

    def codes(self, **more: Any) -> list[Code]:
        return [finding.code for finding in self.findings(**more) if not finding.explained]
