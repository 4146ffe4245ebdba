"""The lines of one key of a plan of all versions, carried out one after the other.

One rule: a version lies on the mirror only on top of those that were before it at the source. So the lines of a key are
one piece of work, and after one that is not done the others are left to the next run.

What is put is never put twice where that can be told. The plan says which version was the mirror's newest (`mirror_version`);
what lies above it is compared with the lines in order, and what fits is taken as done:

    a line is done, or may be, by the journal    the mirror's versions of the key are listed
    it is not, and `check_mirror`                HEAD; where the newest is another one, they are listed

What does not fit was put there by somebody else: the line has drifted, unless the newest is a delete marker, under which
nothing can be hidden. The version below it once more is none of that: a request that arrived after we had looked for it, and
asked again, leaves that. Where a newer one was there by then, the key has drifted (docs/cowsync/versions.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cowsync.apply.copy_line import OWN_PREFIX, Carried, Place
from cowsync.apply.transfer import Sealing, SourceMoved, Subject, Tally, TargetChanged, Transfer
from cowsync.changes import LineResult, Outcome, PlanLine
from cowsync.sealing.format import NotOpened, may_be
from cowsync.sealing.reading import open_object
from s3core.bucket import ListedVersion, ObjectFacts, Written
from s3core.clock import Clock
from s3core.errors import Misconfigured, StoreError

_LISTED = 50
"""Versions in a page: most keys have fewer, and what follows is of other keys."""
_NO_VERSION = ("", "null")


@dataclass(frozen=True, slots=True)
class Step:
    """A line that puts something. `done`: by an earlier attempt; `maybe_ours`: perhaps by one."""

    number: int
    line: PlanLine
    done: bool = False
    maybe_ours: bool = False


class _Drifted(Exception):
    """The mirror holds what we did not put there."""


class VersionCopier:
    """One for each worker. See `LineCopier`."""

    def __init__(
        self, source: Place, mirror: Place, transfer: Transfer, clock: Clock, *, check_mirror: bool = True
    ) -> None:
        self._source = source
        self._mirror = mirror
        self._transfer = transfer
        self._clock = clock
        self._check_mirror = check_mirror

    def carry_out(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Carried]]:
        """All lines of one key that put something, in order, done ones too: a result for each that is not, in order. DONE
        is durable on the mirror. Never raises for what a store says. Whoever stops asking leaves the rest untouched."""
        adopted: list[Written] = []
        before: str | None = None
        failed: Carried | None = None

        def settle(tally: Tally) -> Written:
            nonlocal adopted, before
            adopted, before = self._already_there(steps)
            return Written("")

        waiting = [step for step in steps if not step.done]
        found = self._attempt(waiting[0], settle)
        if found.result.outcome is not Outcome.DONE:
            failed = found
        for place, step in enumerate(steps):
            if step.done:
                continue
            if failed is not None:
                if step is waiting[0] and failed is found:
                    yield step, found
                else:
                    yield step, _left(step)
                continue
            if place < len(adopted):
                there = adopted[place]
                yield step, Carried(LineResult(step.number, Outcome.DONE, there.etag, there.version_id))
                continue
            carried = self._attempt(step, self._putting(step.line, before))
            if carried.result.outcome is Outcome.DONE:
                before = carried.result.mirror_etag
            else:
                failed = carried
            yield step, carried

    def _attempt(self, step: Step, action: Callable[[Tally], Written]) -> Carried:
        began = self._clock.monotonic()
        tally = Tally()
        done, outcome, message, failure = Written(""), Outcome.DONE, "", None
        try:
            done = action(tally)
        except SourceMoved as moved:
            outcome, message = Outcome.MOVED, str(moved)
        except (_Drifted, TargetChanged) as drifted:
            outcome, message = Outcome.DRIFTED, str(drifted)
        except StoreError as error:
            outcome, message, failure = Outcome.FAILED, str(error), error
        except ValueError as error:
            # What no server would take, and the port refuses before it asks: this key's matter, not the plan's.
            outcome, message = Outcome.FAILED, f"cannot be written to the mirror: {error}"
        milliseconds = int((self._clock.monotonic() - began) * 1000)
        result = LineResult(
            step.number, outcome, done.etag, done.version_id, tally.moved, tally.copied, milliseconds, message
        )
        return Carried(result, failure)

    def _putting(self, line: PlanLine, before: str | None) -> Callable[[Tally], Written]:
        def put(tally: Tally) -> Written:
            mirror, key = self._mirror.bucket, self._mirror.key(line.key)
            if line.marker:
                written = Written("", self._transfer.ask(lambda: mirror.delete(key)))
            else:
                subject = Subject(
                    self._source.bucket, self._source.key(line.key), line.size, line.etag, line.version_id
                )
                sealing = Sealing(self._mirror.keyring, line.key) if self._mirror.keyring is not None else None
                written = self._transfer.copy(subject, mirror, key, tally, before=before, sealing=sealing)
            if written.version_id in _NO_VERSION:
                raise Misconfigured(
                    f"{mirror.url} does not keep versions any more: {line.key!r} was put and has no version id",
                    key=key,
                    hint="enable versioning on the mirror's bucket again",
                )
            return written

        return put

    def _already_there(self, steps: Sequence[Step]) -> tuple[list[Written], str | None]:
        """What the mirror has of the first steps, and the ETag of what it shows now ("" for no object, None where nobody
        looked). Raises _Drifted, StoreError."""
        line = steps[0].line
        if line.key.startswith(OWN_PREFIX):
            raise Misconfigured(f"keys below {OWN_PREFIX} are cowsync's own on a mirror; exclude them by a filter")
        if not any(step.done or step.maybe_ours for step in steps):
            if not self._check_mirror:
                return [], None
            held = self._transfer.look(self._mirror.bucket, self._mirror.key(line.key))
            if held is None and (line.mirror_version or not any(step.line.marker for step in steps)):
                return [], ""
            if held is not None and held.version_id == line.mirror_version:
                return [], held.etag
        versions = self._versions(self._mirror.key(line.key))
        shown = versions[-1].etag if versions else ""
        ids = [version.version_id for version in versions]
        above = versions
        if line.mirror_version:
            if line.mirror_version not in ids:
                if not shown:
                    return [], ""
                raise _Drifted(f"{_told(versions[-1])}; the version {line.mirror_version} that we left is gone")
            above = versions[ids.index(line.mirror_version) + 1 :]
        adopted: list[Written] = []
        below = line.mirror_etag if line.mirror_version else None
        for version in above:
            step = steps[len(adopted)] if len(adopted) < len(steps) else None
            if step is None or not self._fits(step, version):
                if below is not None and version.etag == below:
                    # The one below it once more: a request that came twice. There is nothing that could be lost.
                    continue
                if not shown:
                    break
                left = f"version {line.mirror_version}" if line.mirror_version else "nothing"
                raise _Drifted(f"{_told(version)} where we left {left}")
            adopted.append(Written(version.etag, version.version_id))
            below = version.etag
        return adopted, shown

    def _fits(self, step: Step, version: ListedVersion) -> bool:
        """Whether the version is, or may be, what the line puts."""
        line, keyring = step.line, self._mirror.keyring
        if line.marker or version.delete_marker:
            return line.marker and version.delete_marker
        if keyring is None:
            # Of an attempt of ours the ETag may be any, the size is known.
            return version.size == line.size and (version.etag == line.etag or step.done or step.maybe_ours)
        if not may_be(version.size, line.size):
            return False
        held = ObjectFacts(version.key, version.size, version.etag, 0.0, version.version_id)
        try:
            opened = self._transfer.ask(
                lambda: open_object(self._mirror.bucket, version.key, held, keyring, version.version_id)
            )
        except NotOpened:
            return False
        facts = opened.facts
        return (facts.key, facts.etag, facts.version_id) == (line.key, line.etag, line.version_id)

    def _versions(self, key: str) -> list[ListedVersion]:
        """All of `key` on the mirror, the oldest first."""
        found: list[ListedVersion] = []
        key_marker = version_marker = ""
        while True:
            page = self._transfer.ask(
                partial(
                    self._mirror.bucket.list_versions,
                    prefix=key,
                    key_marker=key_marker,
                    version_marker=version_marker,
                    max_keys=_LISTED,
                )
            )
            found += [version for version in page.versions if version.key == key]
            key_marker, version_marker = page.next_key_marker, page.next_version_marker
            if key_marker != key:
                return found[::-1]


def _left(step: Step) -> Carried:
    message = "left to the next run: an older version of the key is not done"
    return Carried(LineResult(step.number, Outcome.SKIPPED, message=message))


def _told(version: ListedVersion) -> str:
    what = "a delete marker" if version.delete_marker else f"{version.size} bytes with ETag {version.etag}"
    return f"the mirror holds version {version.version_id}, {what},"


def again(steps: Sequence[Step], results: Sequence[tuple[Step, Carried]]) -> list[Step]:
    """The same lines for another attempt in the same call, given how the last one ended."""
    outcomes = {step.number: carried.result.outcome for step, carried in results}
    return [
        replace(
            step,
            done=step.done or outcomes.get(step.number) is Outcome.DONE,
            maybe_ours=step.maybe_ours or outcomes.get(step.number) is Outcome.FAILED,
        )
        for step in steps
    ]
