"""Full verification: every record of every log is read and hashed, and everything that was ever signed is compared with that.

A log is walked in stretches (`walk`), here or in processes. From the hashes over its bundles follow its tree, hence what each
tile must hold and which root it had at the size of every checkpoint. Compared are: the root with the newest checkpoint; every
tile with the tree; every kept checkpoint with the root at its size, and its key with the epoch; the notes of the epochs; the
heads that the ledger's log told of it, and the pin.

One rule: where two objects differ, the signed root decides which is false. Work goes on behind what is found, so that one pass
tells everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from integrity.errors import Malformed, Tampered
from integrity.layout import (
    LEDGER_JSON,
    LEDGER_WRITER,
    checkpoint_key,
    epoch_key,
    kept_checkpoint_key,
    log_prefix,
    tile_key,
)
from integrity.log_reader import Altered
from integrity.record import START, decode, timestamp
from integrity.tlog.checkpoint import peek_checkpoint
from integrity.tlog.tiles import WIDTH, levels, tile_at, widths
from integrity.tlog.tree import Frontier, complete_root, cover, fold
from integrity.verification.evidence import Evidence
from integrity.verification.findings import FINDINGS_MAX, Finding, Kind, LogResult, Outcome, count, who_of
from integrity.verification.lanes import Lanes
from integrity.verification.pins import Pin, Pins
from integrity.verification.quick import (
    check_kept,
    cosigned,
    finding_of,
    incident_of,
    newest_state,
    open_ledger_log,
    open_writer,
    placed,
)
from integrity.verification.trust import Head, Log, check_epoch
from integrity.verification.walk import HASH_BYTES, STRETCH_BUNDLES, Mark, Trouble, Walked, named_checkpoint, stretches
from s3core.errors import NotFound, StoreError

PARSE_ALL_RECORDS = 65_536
PARSE_EVERY = 64
"""Of a log longer than that, the records of every so manieth bundle are read as JSON, beside those that matter here."""
UNFINISHED_MAX = 1000
LOST_STRETCHES_MAX = 32
"""After so many stretches without one bundle the rest of a log is not asked for."""

Advance = Callable[[int], None]


def full(evidence: Evidence, *, lanes: int = 1, advance: Advance | None = None) -> tuple[Outcome, Pins]:
    """The outcome, and the pins as they should be from now on. `advance` is told of records as they are done. NotFound where
    there is no ledger and none is pinned."""
    outcome = Outcome("full")
    pins = evidence.pins
    after = Pins(evidence.origin, evidence.vkey, timestamp(evidence.now), dict(pins.logs), pins.members)
    heads: dict[str, list[Head]] = {}
    opened = open_ledger_log(evidence, outcome, heads)
    if opened is None:
        outcome.coverage.append(
            "nothing of the writers' logs was looked at: who the writers are is told by the ledger's log"
        )
        outcome.settle()
        return outcome, pins
    ledger, members, result = opened
    with Lanes(evidence.store, count=lanes, url=evidence.url, config_path=evidence.config_path) as crew:
        tell = advance or (lambda records: None)
        _Whole(evidence, outcome, ledger, result, [], crew, tell).run()
        if not outcome.of(Kind.TAMPERED) and not outcome.of(Kind.UNREAD):
            after.logs[LEDGER_WRITER] = ledger.pin(after.at)
            after.members = members.facts()
        for member in members.by_name.values():
            log, result = open_writer(evidence, outcome, member, whole=True)
            if log is None:
                continue
            _Whole(evidence, outcome, log, result, heads.get(member.writer, []), crew, tell).run()
            if not outcome.of(Kind.TAMPERED, member.writer) and not outcome.of(Kind.UNREAD, member.writer):
                after.logs[member.writer] = log.pin(after.at)
    cosigned(evidence, outcome, ledger)
    _foreign(evidence, outcome, {LEDGER_WRITER, *members.by_name})
    results = outcome.results
    outcome.coverage.append(
        f"read and hashed: {count(sum(one.hashed for one in results), 'record')} of "
        f"{count(sum(one.size for one in results), 'record')}; of them read as JSON: "
        f"{sum(one.parsed for one in results):,}; checkpoints: {sum(one.checkpoints for one in results):,}"
    )
    outcome.settle()
    return outcome, after


@dataclass(slots=True)
class _Tree:
    """What the walk has made of a log so far: 32 bytes for each full bundle, and the frontier over those."""

    rows: bytearray = field(default_factory=bytearray)
    tail: list[bytes] = field(default_factory=list)
    frontier: Frontier = field(default_factory=Frontier)

    def grow(self, bundles: int) -> None:
        """Let the frontier cover so many bundles."""
        begin = self.frontier.size
        rows = [bytes(self.rows[at * HASH_BYTES : (at + 1) * HASH_BYTES]) for at in range(begin, bundles)]
        if rows:
            self.frontier.extend(rows)

    def root(self, number: int, hashes: tuple[bytes, ...]) -> bytes:
        """The root up to and with record `number`, given the hashes over what its bundle has up to there."""
        bundle, within = divmod(number + 1, WIDTH)
        self.grow(bundle)
        return fold([*self.frontier.hashes, *(hashes if within else ())])


class _Whole:
    """One log."""

    def __init__(
        self,
        evidence: Evidence,
        outcome: Outcome,
        log: Log,
        result: LogResult,
        heads: list[Head],
        crew: Lanes,
        advance: Advance,
    ) -> None:
        self._evidence = evidence
        self._outcome = outcome
        self._log = log
        self._result = result
        self._heads = heads
        self._crew = crew
        self._advance = advance
        self._pin: Pin | None = evidence.pins.logs.get(log.writer)
        self._tree = _Tree()
        self._roots: dict[int, bytes] = {}
        """Roots at the sizes of checkpoints, of those sizes at which the tree is known."""
        self._clean: list[tuple[int, str]] = []
        """Sizes and times of kept checkpoints that held."""
        self._doubtful: dict[int, tuple[int, int]] = {}
        """Bundles with records that are not what was signed, and which: what those say is not listened to."""
        self._whole = True
        """Whether the tree is known from the first record to where the walk is."""
        self._last: bytes = START
        self._open: dict[int, bytes] = {}
        self._unknown: dict[int, bytes] = {}
        self._troubles: list[tuple[str, str, int, int]] = []

    def run(self) -> None:
        log, size = self._log, self._log.checkpoint.size
        result = self._result
        every = 1 if size <= PARSE_ALL_RECORDS else PARSE_EVERY
        lost = 0
        wanted = stretches(log.writer, log.reader.origin, size, log.keys, parse_every=every)
        for stretch, answer in self._crew.walk(wanted, size):
            begin, end = stretch.first * WIDTH, min(size, stretch.last * WIDTH)
            if isinstance(answer, StoreError):
                what = f"records {begin:,} to {end - 1:,} could not be read: {answer}"
                self._add(Finding(Kind.UNREAD, log.writer, what, answer.key, begin, end - 1))
                self._missing(stretch.first, stretch.last)
                result.skipped += end - begin
                self._last = b""
            else:
                self._take(answer)
                lost = 0 if answer.records else lost + 1
            self._advance(end - begin)
            if lost == LOST_STRETCHES_MAX and end < size:
                self._give_up(end, size)
                break
        try:
            self._compare_root()
            self._compare_signed()
            self._compare_tiles()
        except Altered as error:
            self._altered(error)
        except StoreError as error:
            self._add(Finding(Kind.UNREAD, log.writer, f"could not be read: {error}", where=error.key))
        self._tell_troubles()
        self._tell_unfinished()
        hashed, skipped, checkpoints = result.hashed, result.skipped, result.checkpoints
        # The newest record's age, and whether the log was closed, are told as `quick` tells them.
        if not self._outcome.of(Kind.TAMPERED, log.writer):
            newest_state(self._evidence, self._outcome, log, result, replace(log.pin(""), size=size))
        result.hashed, result.skipped, result.checkpoints = hashed, skipped, checkpoints
        log.reader.close()

    def _give_up(self, begin: int, size: int) -> None:
        """Whoever has the key can sign any size. Nobody looks for the bundles of 2^53 records one after another."""
        self._whole = False
        self._result.skipped += size - begin
        what = (
            f"records {begin:,} to {size - 1:,} were not asked for: not one bundle of the "
            f"{LOST_STRETCHES_MAX * STRETCH_BUNDLES:,} before them can be read"
        )
        where = self._bundle_key(begin // WIDTH)
        self._add(Finding(Kind.TAMPERED, self._log.writer, what, where, begin, size - 1))

    # --- the walk ----------------------------------------------------------------------------------------------------

    def _take(self, walked: Walked) -> None:
        result = self._result
        result.hashed += walked.records
        result.parsed += walked.parsed
        begin = walked.first * WIDTH
        if walked.after and self._last and walked.after != self._last:
            self._trouble(
                Trouble(
                    "its `after` is not the hash of the record before it", self._bundle_key(walked.first), begin, begin
                )
            )
        self._last = walked.last
        self._tree.rows += walked.rows
        self._tree.tail = walked.tail
        for trouble in walked.troubles:
            self._trouble(trouble)
        for number in walked.closed:
            self._open.pop(number, None)
        for number, entry in walked.open.items():
            if not self._doubted(number):
                self._open[number] = entry
        for number, record in walked.incidents:
            # What the pin covers was told when it was pinned.
            if not self._doubted(number) and number >= (self._pin.size if self._pin is not None else 0):
                self._add(incident_of(self._log.writer, number, record))
        for number, entry in walked.unknown.items():
            if not self._doubted(number) and len(self._unknown) < UNFINISHED_MAX:
                self._unknown[number] = entry
        for mark in walked.marks:
            if not self._doubted(mark.number):
                self._marked(mark)

    def _doubted(self, number: int) -> bool:
        first, last = self._doubtful.get(number // WIDTH, (0, -1))
        return first <= number <= last

    def _trouble(self, trouble: Trouble) -> None:
        index = trouble.first // WIDTH
        what, where, first, last = trouble.what, trouble.where, trouble.first, trouble.last
        if trouble.conflict is not None:
            what, where, first, last = self._arbitrated(trouble, index)
        elif "/entries/" in where and first < last:
            self._doubtful.setdefault(index, (index * WIDTH, index * WIDTH + WIDTH - 1))
        self._troubles.append((what, where, first, last))

    def _tell_troubles(self) -> None:
        """All that the walk found, with the last checkpoint that held before it."""
        for what, where, first, last in self._troubles:
            good = next((one for one in reversed(self._clean) if one[0] <= first), None)
            known = f"{good[0]:,} records, by the checkpoint of {good[1]}" if good is not None else ""
            until = timestamp(self._evidence.now)
            found = Finding(Kind.TAMPERED, self._log.writer, what, where, first, last, until=until, known_good=known)
            kept = len(self._outcome.findings) < FINDINGS_MAX
            self._add(placed(found, self._log.reader) if kept else found)

    def _arbitrated(self, trouble: Trouble, index: int) -> tuple[str, str, int, int]:
        """Which of a bundle and its tile is false, by the signed root; the tree goes on with the true one."""
        assert trouble.conflict is not None
        size = self._log.checkpoint.size
        tile = tile_at(size, 0, index)
        begin, end = index * WIDTH, index * WIDTH + tile.width - 1
        of_bundle, of_tile = trouble.conflict
        tile_where = tile_key(self._log.writer, tile.path)
        right: bytes | None
        try:
            if tile.width == WIDTH:
                right = self._log.reader.nodes([(8, index)])[0]
            else:
                right = b"".join(self._log.reader.nodes.leaf_hashes(index))
        except (Tampered, StoreError):
            right = None
        if right == of_bundle:
            return "the tile was replaced: the records are those that were signed", tile_where, begin, end
        self._doubtful[index] = (trouble.first, trouble.last) if right == of_tile else (begin, end)
        if right is not None:
            if tile.width == WIDTH:
                self._tree.rows[index * HASH_BYTES : (index + 1) * HASH_BYTES] = right
            else:
                self._tree.tail = [right[at : at + HASH_BYTES] for at in range(0, len(right), HASH_BYTES)]
        if right == of_tile:
            many = trouble.last - trouble.first
            what = "records among these were changed, exchanged or replaced" if many else "the record was changed"
            return what, trouble.where, trouble.first, trouble.last
        if right is None:
            self._whole = False
        return "neither the records nor the tile over them are what was signed", trouble.where, begin, end

    def _missing(self, first: int, last: int) -> None:
        """Go on behind bundles that could not be read, with what the tiles above say of them."""
        size = self._log.checkpoint.size
        for index in range(first, last):
            tile = tile_at(size, 0, index)
            self._doubtful[index] = (tile.index * WIDTH, size)
            try:
                if tile.width == WIDTH:
                    self._tree.rows += self._log.reader.nodes([(8, index)])[0]
                else:
                    self._tree.tail = list(self._log.reader.nodes.leaf_hashes(index))
            except (Tampered, StoreError):
                self._whole = False
                if tile.width == WIDTH:
                    self._tree.rows += START

    # --- what was signed ---------------------------------------------------------------------------------------------

    def _marked(self, mark: Mark) -> None:
        log = self._log
        record: Mapping[str, Any] = mark.record
        if record["op"] == "key":
            detail = record.get("detail", {})
            epoch, vkey = detail.get("epoch"), detail.get("vkey")
            if isinstance(epoch, int) and 0 <= epoch < len(log.keys) and log.keys[epoch] != vkey:
                self._signed(
                    f"the log says that epoch {epoch} has another key than its note introduces",
                    epoch_key(log.writer, epoch),
                    mark.number,
                )
            return
        if self._whole and mark.number // WIDTH not in self._doubtful:
            self._roots[mark.number + 1] = self._tree.root(mark.number, mark.hashes)
        named = named_checkpoint(mark.record)
        if named is None:
            return
        size, root = named
        key = kept_checkpoint_key(log.writer, size)
        if size > mark.number:
            self._signed(f"it names a checkpoint of {size:,} records, which would be after it", key, mark.number)
            return
        expected = self._root_at(size)
        if expected is None:
            return
        self._result.checkpoints += 1
        if root != expected:
            self._signed(f"it names another root for size {size:,} than the tree has", key, mark.number)
        elif mark.note is None:
            self._signed(f"the checkpoint of size {size:,} that it names {mark.trouble}", key, mark.number)
        elif (mark.note.size, mark.note.root) != named:
            self._signed(
                f"the checkpoint kept for size {size:,} is of another history: {mark.note.size:,} records, root "
                f"{mark.note.root.hex()[:16]}; the key of the log signed both",
                key,
                mark.number,
            )
        else:
            try:
                check_epoch(log.writer, size, mark.epoch, log.ends, key)
                self._clean.append((size, str(record.get("at", ""))))
            except Altered as error:
                self._altered(error)

    def _root_at(self, size: int) -> bytes | None:
        """The root at a size, from the walk or the tiles; None where neither is to be had, which was told already."""
        root = self._roots.get(size)
        if root is None:
            try:
                root = self._log.reader.root_at(size)
            except (Altered, ValueError):
                return None
            except StoreError as error:
                self._add(Finding(Kind.UNREAD, self._log.writer, f"could not be read: {error}", where=error.key))
                return None
        return root

    def _compare_root(self) -> None:
        log = self._log
        size = log.checkpoint.size
        if not self._whole or not size:
            return
        tail = self._tree.tail
        self._tree.grow(size // WIDTH)
        rest = [complete_root(tail[place << level : place + 1 << level]) for level, place in cover(0, len(tail))]
        if fold([*self._tree.frontier.hashes, *rest]) != log.checkpoint.root:
            good = self._clean[-1] if self._clean else None
            self._add(
                Finding(
                    Kind.TAMPERED,
                    log.writer,
                    "the records do not have the root that was signed, and tiles were made to fit them",
                    checkpoint_key(log.writer),
                    good[0] if good is not None else 0,
                    size - 1,
                    since=good[1] if good is not None else "",
                    until=timestamp(self._evidence.now),
                    known_good=f"{good[0]:,} records, by the checkpoint of {good[1]}" if good is not None else "",
                )
            )
            self._whole = False

    def _compare_signed(self) -> None:
        """The newest checkpoint's kept note, epochs, and heads; the pin was compared when the log was opened."""
        log = self._log
        if not log.checkpoint.size:
            return
        try:
            check_kept(self._evidence, log, log.checkpoint.size, log.checkpoint.root)
            self._result.checkpoints += 1
        except Altered as error:
            self._altered(error)
        for introduction in log.introductions:
            if introduction.size > log.checkpoint.size:
                continue
            if self._root_at(introduction.size) not in (None, introduction.root):
                self._signed(
                    f"the key of epoch {introduction.epoch} was introduced on another history of {introduction.size:,} records",
                    epoch_key(log.writer, introduction.epoch),
                    introduction.size - 1,
                )
        if self._pin is not None and self._root_at(self._pin.size) not in (None, bytes.fromhex(self._pin.root)):
            self._signed(
                f"another history: it was pinned with another root at {self._pin.size:,} records",
                checkpoint_key(log.writer),
                self._pin.size - 1,
            )
        before = ""
        for head in self._heads:
            root = self._root_at(head.size) if 0 < head.size <= log.checkpoint.size else None
            if root is not None and root.hex() != head.root:
                self._signed(
                    f"another history: record {head.record:,} of the ledger's log sealed another root at {head.size:,} records",
                    checkpoint_key(log.writer),
                    head.size - 1,
                    since=before,
                )
                break
            before = head.at

    def _compare_tiles(self) -> None:
        """Tiles of level 1 and higher hold what the tree has there; those of level 0 were compared by the walk."""
        if not self._whole:
            return
        log, size = self._log, self._log.checkpoint.size
        rows = bytes(self._tree.rows)
        for level in range(1, levels(size)):
            full, partial = widths(size, level)
            above = bytearray()
            for index in range(full + bool(partial)):
                tile = tile_at(size, level, index)
                right = rows[index * WIDTH * HASH_BYTES :][: tile.width * HASH_BYTES]
                data: bytes | None = None
                for one in (tile, tile.whole):
                    try:
                        data = log.reader.object(one.path)[: tile.width * HASH_BYTES if one != tile else None]
                        break
                    except NotFound:
                        continue
                    except Altered:
                        data = b""
                        break
                if data != right:
                    state = "missing" if data is None else "not what the records make it: it was replaced"
                    first = index * WIDTH << 8 * level
                    last = min(size, first + (tile.width << 8 * level)) - 1
                    self._add(
                        Finding(
                            Kind.TAMPERED,
                            log.writer,
                            f"the tile of level {level} is {state}; the records below it are as they were signed",
                            tile_key(log.writer, tile.path),
                            first,
                            last,
                            until=timestamp(self._evidence.now),
                        )
                    )
                if tile.width == WIDTH:
                    above += complete_root([right[at : at + HASH_BYTES] for at in range(0, len(right), HASH_BYTES)])
            rows = bytes(above)

    # --- findings ----------------------------------------------------------------------------------------------------

    def _signed(self, what: str, where: str, number: int, since: str = "") -> None:
        """Something that was signed and does not fit; `number` is the record that shows it."""
        good = next((one for one in reversed(self._clean) if one[0] <= number), None)
        found = Finding(
            Kind.TAMPERED,
            self._log.writer,
            f"record {number:,}: {what}",
            where,
            since=since or (good[1] if good is not None else ""),
            until=timestamp(self._evidence.now),
            known_good=f"{good[0]:,} records, by the checkpoint of {good[1]}" if good is not None else "",
        )
        self._add(found)

    def _altered(self, error: Altered) -> None:
        self._add(finding_of(self._evidence, error, self._pin, reader=self._log.reader))

    def _add(self, finding: Finding) -> None:
        self._outcome.add(finding)

    def _bundle_key(self, index: int) -> str:
        return tile_key(self._log.writer, tile_at(self._log.checkpoint.size, -1, index).path)

    def _tell_unfinished(self) -> None:
        """Intents without an outcome, and those whose writer says that it does not know it."""
        self._result.unfinished = len(self._open) + len(self._unknown)
        for entries, told in ((self._open, "none"), (self._unknown, "unknown")):
            for number, entry in sorted(entries.items())[:UNFINISHED_MAX]:
                try:
                    record = decode(entry)
                except Malformed as error:
                    what = f"what was signed is not a record: {error}"
                    where = self._bundle_key(number // WIDTH)
                    self._add(Finding(Kind.TAMPERED, self._log.writer, what, where, number, number))
                    continue
                names = ("intent", "at", "op", "endpoint", "bucket", "key", "version", "size")
                facts = {name: record[name] for name in names if name in record}
                facts |= {"outcome": told, "who": who_of(record)}
                self._outcome.unfinished.append({"log": self._log.writer, "n": number, **facts})


def _foreign(evidence: Evidence, outcome: Outcome, known: set[str]) -> None:
    """What else lies in the ledger's place. A listing shows it, so it may also be hidden: this only adds findings."""
    store = evidence.store
    try:
        for prefix in store.list_prefixes("log/"):
            name = prefix.removeprefix("log/").rstrip("/")
            if name not in known:
                outcome.add(
                    Finding(Kind.ANOMALY, name, "a log of no enrolled writer: nothing in it is evidence", where=prefix)
                )
        for prefix in store.list_prefixes(""):
            if prefix not in ("log/", "anchors/", "reports/", LEDGER_JSON):
                outcome.add(
                    Finding(Kind.ANOMALY, LEDGER_WRITER, "a foreign object in the ledger's place", where=prefix)
                )
        for result in outcome.results:
            if result.size:
                _beyond(evidence, outcome, result)
    except (StoreError, Malformed) as error:
        outcome.coverage.append(f"the ledger's place could not be listed: {error}")


def _beyond(evidence: Evidence, outcome: Outcome, result: LogResult) -> None:
    """Kept checkpoints of more records than the newest one shows: what a clumsy cut leaves behind. A writer puts them in that
    order too, so that they must have lain there for a while."""
    newest = peek_checkpoint(evidence.store.get(checkpoint_key(result.log)).data)
    prefix = f"{log_prefix(result.log)}checkpoints/"
    for one in evidence.store.list(prefix, start_after=kept_checkpoint_key(result.log, newest.size)):
        # A writer that is at work may have published it by now.
        newest = peek_checkpoint(evidence.store.get(checkpoint_key(result.log)).data)
        if kept_checkpoint_key(result.log, newest.size) >= one.key or evidence.now - one.modified < evidence.silence_s:
            continue
        outcome.add(
            Finding(
                Kind.ANOMALY,
                result.log,
                f"a checkpoint of more records lies beside the newest one, which shows {newest.size:,}: the log was cut, or "
                "its writer was stopped while it published and never came back",
                where=one.key,
            )
        )
        return
