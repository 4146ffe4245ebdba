"""One line of a plan, carried out.

One rule: on the mirror nothing is overwritten or taken away but what we put there: what it holds must be what the base
says (`mirror_etag`), or bytes equal to those that would be copied.

    ADD, MODIFY   copied (transfer.py); the source's version is pinned by ETag and version id
    REMOVE        where it has a version of its own: a delete marker, never a version; else moved to the trash by the server
    VANISH        nothing moves
    RETURN        nothing moves

The trash of run 12 is `.cowsync/trash/12/` below the mirror's prefix; nothing that lies there is overwritten. A crash
between the copy to the trash and the deletion leaves both; the line is done again and finds its object still there.
`maybe_ours` is how a line that an earlier attempt may have carried out (journal.py) is told apart from one that
somebody else's write met.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256

from cowsync.apply.transfer import Sealing, SourceMoved, Subject, Tally, TargetChanged, Transfer
from cowsync.changes import LineResult, Op, Outcome, PlanLine
from cowsync.sealing.format import NotOpened, may_be
from cowsync.sealing.keys import Keyring
from cowsync.sealing.reading import open_object
from s3core.bucket import Attributes, Bucket, ObjectFacts, Written
from s3core.clock import Clock
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed, StoreError

OWN_PREFIX = ".cowsync/"
"""Below the mirror's prefix: ours, never mirrored, never listed as drift."""
KEY_BYTES_MAX = 1024
"""S3 API reference, "Object key names"."""


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and the prefix that stands before every key of a plan there. `keyring`: what is put there is sealed."""

    bucket: Bucket
    prefix: str = ""
    keyring: Keyring | None = None

    def key(self, relative: str) -> str:
        return self.prefix + relative


class Verdict(StrEnum):
    WRITE = "write"
    PRESENT = "present"
    """The mirror holds these bytes already: nothing is lost by writing them, and nothing is to be done where headers,
    metadata and tags are the source's."""
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Carried:
    """A line's result, and the error behind FAILED: whoever runs many lines stops at some kinds of it."""

    result: LineResult
    error: StoreError | None = None


class _Left(Exception):
    """The line was left alone, for this reason."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def judge(line: PlanLine, held: ObjectFacts | None, *, maybe_ours: bool = False, sealed: bool = False) -> Verdict:
    """Whether the mirror's object may be overwritten by what an ADD or MODIFY line says.

    Nothing there is right for both: a mirror that lost an object gets it back. Equal ETags and sizes are equal bytes
    (the reverse does not hold, so unequal ones say nothing); but on an encrypted mirror (`sealed`) such bytes are not
    what belongs there."""
    if held is None or (line.mirror_etag and held.etag == line.mirror_etag):
        return Verdict.WRITE
    if not sealed and line.etag and held.etag == line.etag and held.size == line.size:
        return Verdict.PRESENT
    # An attempt of ours that the journal does not know the end of: its ETag may be any, its size is known.
    fits = may_be(held.size, line.size) if sealed else held.size == line.size
    return Verdict.WRITE if maybe_ours and fits else Verdict.DRIFTED


def trash_prefix(run: int | None = None) -> str:
    """Of one run, or of all; relative to the mirror's prefix."""
    return f"{OWN_PREFIX}trash/" if run is None else f"{OWN_PREFIX}trash/{run}/"


def lies_there(relative: str, key: str) -> bool:
    """Whether an object that was put under `relative` may lie at `key`, both below the mirror's prefix: under its own name,
    or in the trash of a run."""
    if relative == key:
        return True
    trash, _, name = key.removeprefix(trash_prefix()).partition("/")
    if not key.startswith(trash_prefix()) or not trash.isdecimal():
        return False
    return name in (relative, f".long-{sha256(relative.encode()).hexdigest()}")


def trash_key(run: int, key: str, prefix: str = "") -> str:
    """Where run `run` puts the object `key` that it removes, relative to the mirror's prefix. A name that S3 would
    refuse for its length is replaced by its SHA-256."""
    plain = trash_prefix(run) + key
    if len((prefix + plain).encode()) <= KEY_BYTES_MAX:
        return plain
    return f"{trash_prefix(run)}.long-{sha256(key.encode()).hexdigest()}"


class LineCopier:
    """`run` is the number of the run that carries out the plan: it names the trash. `locate` gives the full key at the
    source where that is not its prefix and the line's key. One for each worker."""

    def __init__(
        self,
        source: Place,
        mirror: Place,
        transfer: Transfer,
        clock: Clock,
        *,
        run: int,
        check_mirror: bool = True,
        locate: Callable[[PlanLine], str] | None = None,
    ) -> None:
        self._source = source
        self._mirror = mirror
        self._transfer = transfer
        self._clock = clock
        self._run = run
        self._check_mirror = check_mirror
        self._locate = locate or (lambda line: source.key(line.key))

    def carry_out(self, number: int, line: PlanLine, *, maybe_ours: bool = False) -> Carried:
        """Never raises for what a store says: that is the result. DONE is durable on the mirror."""
        began = self._clock.monotonic()
        tally = Tally()
        done, outcome, message, failure = Written(""), Outcome.DONE, "", None
        try:
            done = self._perform(line, maybe_ours, tally)
        except _Left as left:
            outcome, message = left.outcome, str(left)
        except SourceMoved as moved:
            outcome, message = Outcome.MOVED, str(moved)
        except TargetChanged as changed:
            outcome, message = Outcome.DRIFTED, f"mirror: {changed}"
        except StoreError as error:
            outcome, message, failure = Outcome.FAILED, str(error), error
        except ValueError as error:
            # What no server would take, and the port refuses before it asks: this object's matter, not the plan's.
            outcome, message = Outcome.FAILED, f"cannot be written to the mirror: {error}"
        milliseconds = int((self._clock.monotonic() - began) * 1000)
        result = LineResult(
            number, outcome, done.etag, done.version_id, tally.moved, tally.copied, milliseconds, message
        )
        return Carried(result, failure)

    def _perform(self, line: PlanLine, maybe_ours: bool, tally: Tally) -> Written:
        if line.key.startswith(OWN_PREFIX):
            raise _Left(
                Outcome.FAILED, f"keys below {OWN_PREFIX} are cowsync's own on a mirror; exclude them by a filter"
            )
        length = len(self._mirror.key(line.key).encode())
        if length > KEY_BYTES_MAX:
            raise _Left(
                Outcome.FAILED,
                f"its key has {length:,} bytes below the mirror's prefix {self._mirror.prefix!r}, and S3 allows "
                f"{KEY_BYTES_MAX:,}: exclude it by a filter, or take a shorter prefix",
            )
        match line.op:
            case Op.ADD | Op.MODIFY:
                return self._copy(line, maybe_ours, tally)
            case Op.REMOVE:
                return self._remove(line, tally)
            case Op.VANISH | Op.RETURN:
                return Written(line.mirror_etag, line.mirror_version)

    def _copy(self, line: PlanLine, maybe_ours: bool, tally: Tally) -> Written:
        subject = Subject(self._source.bucket, self._locate(line), line.size, line.etag, line.version_id)
        mirror, key = self._mirror.bucket, self._mirror.key(line.key)
        sealing = Sealing(self._mirror.keyring, line.key) if self._mirror.keyring is not None else None
        if not self._check_mirror:
            try:
                return self._transfer.copy(subject, mirror, key, tally, sealing=sealing)
            except SourceMoved:
                if maybe_ours and (held := self._transfer.look(mirror, key)) and self._left_by_us(line, held, sealing):
                    return Written(held.etag, held.version_id)
                raise
        if not maybe_ours and self._transfer.guarded_put(subject, mirror, sealing):
            try:
                return self._transfer.copy(subject, mirror, key, tally, before=line.mirror_etag, sealing=sealing)
            except TargetChanged:
                tally.moved = 0
        held = self._transfer.look(mirror, key)
        verdict = judge(line, held, maybe_ours=maybe_ours, sealed=sealing is not None)
        shown = held
        if held is not None and verdict is Verdict.DRIFTED and sealing is not None:
            shown = self._opened(line, held, sealing)
            verdict = Verdict.PRESENT if shown is not None else verdict
        if held and shown and verdict is Verdict.PRESENT and self._transfer.same_attributes(subject, shown):
            return Written(held.etag, held.version_id)
        if held is not None and verdict is Verdict.DRIFTED:
            expected = f"ETag {line.mirror_etag}" if line.mirror_etag else "nothing"
            raise _Left(
                Outcome.DRIFTED, f"the mirror holds {held.size} bytes with ETag {held.etag} where we left {expected}"
            )
        before = held.etag if held else ""
        try:
            return self._transfer.copy(subject, mirror, key, tally, before=before, sealing=sealing)
        except SourceMoved:
            if held is not None and self._left_by_us(line, held, sealing):
                return Written(held.etag, held.version_id)
            raise

    def _left_by_us(self, line: PlanLine, held: ObjectFacts, sealing: Sealing | None) -> bool:
        """Of what `judge` lets be overwritten: whether an earlier attempt put it there. The source has moved on since, so it
        cannot be copied again; were it not noted now, the next run would find it and take it for somebody else's."""
        if sealing is not None:
            return held.etag != line.mirror_etag and self._opened(line, held, sealing) is not None
        return held.size == line.size and held.etag != line.mirror_etag

    def _opened(self, line: PlanLine, held: ObjectFacts, sealing: Sealing) -> ObjectFacts | None:
        """What is inside, where it was sealed with our key from the very object that the line would copy: so a state that
        was lost costs no data. None for anything else."""
        key = self._mirror.key(line.key)
        try:
            opened = self._transfer.ask(lambda: open_object(self._mirror.bucket, key, held, sealing.keyring))
        except (NotOpened, NotFound, PreconditionFailed):
            return None
        facts = opened.facts
        if (facts.key, facts.etag, opened.header.size) != (line.key, line.etag, line.size):
            return None
        inside = Attributes(facts.attributes.headers, facts.attributes.metadata)
        return replace(held, size=line.size, attributes=inside, tag_count=len(facts.attributes.tags))

    def _place_in_trash(self, key: str, held: ObjectFacts) -> str:
        """Full key where `held` may go without taking another object's place. Numbers of runs come again where a state was
        begun anew, and with a restore that is done twice; then it is the next number under which nothing lies."""
        run = self._run
        while True:
            trash = self._mirror.key(trash_key(run, key, self._mirror.prefix))
            there = self._transfer.look(self._mirror.bucket, trash)
            if there is None or (there.etag, there.size) == (held.etag, held.size):
                return trash
            run += 1

    def _remove(self, line: PlanLine, tally: Tally) -> Written:
        mirror, key = self._mirror.bucket, self._mirror.key(line.key)
        held = self._transfer.look(mirror, key)
        if held is None:
            return Written("")
        if held.etag != line.mirror_etag:
            raise _Left(
                Outcome.DRIFTED,
                f"not removed: the mirror holds ETag {held.etag}, we left {line.mirror_etag or 'nothing'}",
            )
        # An object without a version of its own goes to the trash whatever the bucket was when it was asked: versions may have
        # been suspended since, and then nothing would be kept of it.
        if not mirror.properties.versioned or held.version_id in ("", "null"):
            subject = Subject(mirror, key, held.size, held.etag)
            trash = self._place_in_trash(line.key, held)
            try:
                # With its parts: a restore knows by the ETag that these are the bytes that were mirrored.
                self._transfer.copy(subject, mirror, trash, tally, keep_parts=True)
            except SourceMoved as moved:
                raise _Left(Outcome.DRIFTED, f"not removed: it changed on the mirror meanwhile ({moved})") from moved
            # Crash here: the trash has it, the mirror too; the line is done again.
        try:
            marker = self._transfer.ask(lambda: mirror.delete(key))
        except OutcomeUnknown as error:
            try:
                left = self._transfer.look(mirror, key)
            except StoreError as unseen:
                raise error from unseen
            if left is not None:
                raise
            marker = ""
        return Written("", marker)
