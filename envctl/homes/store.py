"""Homes in the bucket: who may commit, what was committed, and what is kept of it.

One rule: everything hangs on one object, the head, which is only ever replaced by If-Match. It names the generation that may
commit and holds the newest snapshot itself. So a commit is one PUT, and whoever read an older head loses.

What a crash leaves, and who repairs it:

| after | what is there | repaired by |
| --- | --- | --- |
| packs and trees uploaded | objects that nothing refers to | the agent's next run; else the collector, days later |
| commit: the snapshot before copied to `snapshots/` | the same snapshot in the head and under its own key | nothing to repair |
| commit: the snapshot before pinned (guard) | a pin with the reason | a person unpins it |
| commit: head put, answer lost | the commit is done | the same commit again is answered with its number |
| fence: head put | the new generation | the step again finds it |
| prune: some snapshots deleted | the others | the next prune |
| pin: put | the pin, whole | nothing to repair |
| purge: head deleted | no home any more; rests of it | purge again: it deletes whatever lies in the folder |
| head lost (deleted by hand) | everything but the newest snapshot | the next fence, from the newest that is left |
| collecting | see `envctl.homes.collecting` | the next collection |

Order of a commit: read the head (its ETag is the referee); look at the collector's lists, then at the objects (in this
order, see `envctl.homes.collecting`); copy the head's snapshot under its own key; put the head.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from envctl.errors import Fenced, HomeDamaged, Invalid, NoSuchThing, Refused
from envctl.homes import collecting, documents, guard, keys, reading, retention, trees
from envctl.homes.documents import Commit, Head, Pin, Snapshot
from envctl.homes.errors import HomeBusy, ObjectsMissing, ParentMoved
from envctl.homes.kept import Kept
from envctl.homes.keys import ObjectName
from envctl.homes.presigning import Presigner, SignedUrl
from s3core.clock import Clock
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed
from s3core.store import ObjectStore

BATCH_MAX: Final = 500
OBJECT_BYTES_MAX: Final = 64 * 2**20
URL_LIFE_S: Final = 3600
ATTEMPTS: Final = 16
"""How often a head that others change at the same time is read again. Heartbeats and the collector change it too."""
DOCUMENTS_AT_ONCE: Final = 16
OBJECTS_AT_ONCE: Final = 4
"""So many of what a guest uploaded are held in memory."""
LIST_FROM: Final = 48
"""From so many objects on a listing of all is less than a request for each."""
STALE_S: Final = 60.0
"""A head that was read so long ago is read again before anything is written on its word."""
NOTE_MAX: Final = 200
DOCUMENTS_BYTES: Final = 64 * 2**20
"""Of snapshots that were read, in memory. One of a home of a million files has 30 KB, one of a hostile guest 20 MB."""
MOMENTS_BYTES: Final = 64 * 2**20
MOMENT_BYTES: Final = 300
"""A moment and its key, in memory."""
NAME_BYTES: Final = 128
"""The name of a tree, in memory."""


@dataclass(frozen=True, slots=True)
class Dated:
    """A snapshot, as far as retention has to know it."""

    number: int
    at: float
    pinned: bool


@dataclass(frozen=True, slots=True)
class Usage:
    objects: int
    bytes: int


class HomeStore:
    """Safe for many threads and several processes. `objects` is the store that `env/` lies in; `random` gives bytes.
    `check_packs`: the server does not compare what a guest puts with what was signed, so a commit reads its new packs.
    Errors of the store (`s3core.errors`) get out as they are."""

    def __init__(
        self,
        objects: ObjectStore,
        presigner: Presigner,
        clock: Clock,
        *,
        guard_fraction: float = 0.3,
        check_packs: bool = False,
        url_life_s: int = URL_LIFE_S,
        random: Callable[[int], bytes] = os.urandom,
        threads: int = 16,
    ) -> None:
        self.objects = objects
        self.presigner = presigner
        self.clock = clock
        self.random = random
        self._guard_fraction = guard_fraction
        self._check_packs = check_packs
        self._url_life_s = url_life_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="homes")
        # What is read by number or digest never changes.
        self._document = Kept(self._read_document, _size_of, DOCUMENTS_BYTES)
        self._moment = Kept(self._read_moment, lambda at: MOMENT_BYTES, MOMENTS_BYTES)
        self.collected_at: dict[str, float] = {}
        """When the homes were collected last by this process (Unix seconds)."""

    def close(self) -> None:
        """Give back threads and connections. Not to be used afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.objects.close()

    # --- the head ----------------------------------------------------------------------------------------

    def head(self, environment_id: str) -> Head | None:
        """None: there is no home."""
        try:
            return self.read_head(environment_id)[0]
        except NoSuchThing:
            return None

    def fence(self, environment_id: str, generation: int) -> Head:
        """From here on only `generation` commits. Makes the home where there is none (of a home whose head
        was lost, from the newest snapshot that is left); repeating it changes nothing. Fenced
        where the bucket has a later generation: it is never lowered."""
        key = keys.head(environment_id)
        for _ in range(ATTEMPTS):
            try:
                try:
                    head, etag = self.read_head(environment_id)
                except NoSuchThing:
                    made = self._first_head(environment_id, generation)
                    self.objects.put_if_absent(key, documents.write_head(made))
                    return made
                if head.generation == generation:
                    return head
                if head.generation > generation:
                    raise Fenced(
                        f"the home of {environment_id} has generation {head.generation}, later than {generation}"
                    )
                raised = replace(head, generation=generation)
                self.objects.put_if_match(key, documents.write_head(raised), etag)
                return raised
            except (PreconditionFailed, OutcomeUnknown, NotFound):
                continue  # somebody else, or we ourselves: what there is now tells
        raise HomeBusy(f"the head of {environment_id} keeps changing")

    def commit(self, environment_id: str, generation: int, commit: Commit) -> Snapshot:
        """A new snapshot, durable and visible when this returns. The same commit again (an answer was lost) is answered with
        the number that it has.

        Fenced: another generation. ParentMoved: the parent is not the newest. ObjectsMissing: it names what is not there.
        Invalid: its trees are no trees, or not in order. Where the mass-change guard speaks the parent is pinned and `alert`
        says why.
        """
        if commit.kind not in documents.KINDS:
            raise Invalid(f"there is no backup of kind {commit.kind!r}")
        at = self.clock.time()
        for _ in range(ATTEMPTS):
            began = self.clock.monotonic()
            head, etag = self._head_of(environment_id, generation)
            newest = head.newest
            if newest is not None and _is_it(newest, generation, commit):
                return newest
            if (commit.parent or 0) != head.number:
                raise ParentMoved(
                    f"the newest backup is {head.number}, the commit was made from {commit.parent or 0}", head
                )
            self._check(environment_id, commit, newest)
            alert = guard.alert_of(newest.stats, commit.stats, self._guard_fraction) if newest else ""
            if self.clock.monotonic() - began > STALE_S and self.read_head(environment_id)[1] != etag:
                continue
            if newest is not None:
                self._archive(environment_id, newest)
            if newest is not None and alert:
                self._put_pin(environment_id, newest, f"before a mass change: {alert}", "guard")
            made = Snapshot(
                number=head.number + 1,
                parent=head.number,
                generation=generation,
                at=at,
                kind=commit.kind,
                trees=commit.trees,
                stats=commit.stats,
                guest_at=commit.at,
                fuzzy_paths=commit.fuzzy_paths[:100],
                alert=alert,
            )
            try:
                said = documents.write_head(replace(head, newest=made, seen_at=at))
                self.objects.put_if_match(keys.head(environment_id), said, etag)
                return made
            except (PreconditionFailed, OutcomeUnknown, NotFound):
                continue  # the head that is read next tells whether it was us
        raise HomeBusy(f"the head of {environment_id} keeps changing")

    def heartbeat(self, environment_id: str, generation: int, number: int) -> Head:
        """The guest has looked, and its home is that of `number`: one PUT of the head. Fenced, ParentMoved as for a commit."""
        for _ in range(ATTEMPTS):
            head, etag = self._head_of(environment_id, generation)
            if number != head.number:
                raise ParentMoved(f"the newest backup is {head.number}, the guest knows {number}", head)
            seen = replace(head, seen_at=self.clock.time())
            try:
                self.objects.put_if_match(keys.head(environment_id), documents.write_head(seen), etag)
                return seen
            except (PreconditionFailed, OutcomeUnknown, NotFound):
                continue
        raise HomeBusy(f"the head of {environment_id} keeps changing")

    # --- addresses for guests ----------------------------------------------------------------------------

    def upload_urls(self, environment_id: str, wanted: Sequence[tuple[str, int, str]]) -> dict[str, SignedUrl | None]:
        """For name, size and SHA-256 of each object an address to put it at; None: it is there already and will stay long
        enough to commit it. At most BATCH_MAX. Invalid; HomeBusy where one is being deleted right now."""
        _check_batch(len(wanted))
        names = []
        for text, size, sha256 in wanted:
            name = keys.object_name(text)
            if keys.digest_of(name) != sha256:
                raise Invalid(f"{text} is named by another digest than {sha256[:80]}")
            if not 0 < size <= OBJECT_BYTES_MAX:
                raise Invalid(f"{text}: an object has 1 to {OBJECT_BYTES_MAX} bytes, not {size}")
            names.append(name)
        if gone := collecting.spare(self, environment_id, set(names)):
            raise HomeBusy(f"{len(gone)} objects are being deleted at this moment", hint="try again in a minute")
        there = self._sizes(environment_id, names)
        now = self.clock.time()
        found: dict[str, SignedUrl | None] = {}
        for name, (_, size, sha256) in zip(names, wanted, strict=True):
            if there.get(name) == size:
                found[name] = None
            elif name in there:
                raise HomeDamaged(f"{environment_id}: {name} has {there[name]} bytes, and should have {size}")
            else:
                key = keys.content(environment_id, name)
                found[name] = self.presigner.put(key, size, sha256, now, self._url_life_s)
        return found

    def download_urls(self, environment_id: str, wanted: Sequence[str]) -> dict[str, SignedUrl]:
        """For each name an address to get it from; whether it is there is not looked at. At most BATCH_MAX."""
        _check_batch(len(wanted))
        now = self.clock.time()
        names = [keys.object_name(text) for text in wanted]
        return {name: self.presigner.get(keys.content(environment_id, name), now, self._url_life_s) for name in names}

    # --- snapshots ---------------------------------------------------------------------------------------

    def snapshots(self, environment_id: str) -> list[Snapshot]:
        """All, ascending by number, with their pins; empty where there is no home."""
        head = self.head(environment_id)
        if head is None:
            return []
        return sorted(self._snapshots_of(head).values(), key=lambda one: one.number)

    def snapshot(self, environment_id: str, number: int) -> Snapshot:
        """NoSuchThing."""
        head = self.head(environment_id)
        if head is not None and 0 < number <= head.number:
            pin = self._pin(environment_id, number)
            if pin is not None:
                return pin.snapshot
            if head.newest is not None and head.newest.number == number:
                return head.newest
            try:
                return self._document(keys.snapshot(environment_id, number))
            except NotFound:
                pass  # pruned, or never was
        raise NoSuchThing(f"there is no backup {number}")

    def dated(self, environment_id: str) -> list[Dated]:
        """All, ascending by number. Of those that this process has met before nothing is read: hundreds of snapshots cost a
        listing."""
        head = self.head(environment_id)
        if head is None:
            return []
        home = keys.home(environment_id)

        def moment(key: str) -> float | None:
            try:
                return self._moment(key)
            except NotFound:
                return None  # deleted while we read

        listed = [entry.key for entry in self.objects.list(f"{home}snapshots/")]
        found = {keys.number_of(key): at for key, at in zip(listed, self._pool.map(moment, listed), strict=True)}
        if head.newest is not None:
            found[head.newest.number] = head.newest.at
        pinned = {keys.number_of(entry.key) for entry in self.objects.list(f"{home}pins/")}
        for number in pinned - found.keys():
            pin = self._pin(environment_id, number) if number is not None else None
            found[number] = pin.snapshot.at if pin is not None else None
        return [
            Dated(number, at, number in pinned)
            for number, at in sorted((n, at) for n, at in found.items() if n is not None and at is not None)
        ]

    def pin(self, environment_id: str, number: int, note: str, by: str) -> Snapshot:
        """Keep it for ever, durable when this returns. Pinning again changes the note. NoSuchThing; Refused where the bucket
        took so long that a collector might have been faster."""
        began = self.clock.monotonic()
        snapshot = self.snapshot(environment_id, number)
        self._put_pin(environment_id, snapshot, note[:NOTE_MAX], by, replacing=True)
        if self.clock.monotonic() - began > collecting.WAIT_S / 2:
            self.objects.delete(keys.pin(environment_id, number))
            raise Refused(f"pinning backup {number} took too long", hint="try again")
        return replace(snapshot, pinned=True, note=note[:NOTE_MAX])

    def unpin(self, environment_id: str, number: int) -> None:
        """Nothing where it is not pinned. Retention decides about it from now on."""
        self.objects.delete(keys.pin(environment_id, number))

    def prune(
        self, environment_id: str, policy: retention.Policy, now: float, protected: Collection[int] = ()
    ) -> list[int]:
        """Delete the snapshots that `policy` does not keep; their numbers. Their objects are the collector's. Blocks nobody:
        the newest is never among them, and a pin that is put at the same moment holds the snapshot itself."""
        found = self.dated(environment_id)
        kept = retention.keep(found, policy, now, protected)
        removed = [one.number for one in found if one.number not in kept]
        for number in removed:
            self.objects.delete(keys.snapshot(environment_id, number))
        return removed

    def collect(self, environment_id: str, now: float) -> "collecting.Collected":
        """Delete what no snapshot refers to, in two phases at least `collecting.WAIT_S` apart; see there. Blocks nobody."""
        collected = collecting.collect(self, environment_id, now)
        self.collected_at[environment_id] = now
        return collected

    def purge(self, environment_id: str) -> int:
        """Delete the whole home; how many objects. The head goes first: from then on there is none. Repeatable."""
        self.objects.delete(keys.head(environment_id))
        deleted = 1
        while doomed := [entry.key for entry in islice(self.objects.list(keys.home(environment_id)), 1000)]:
            if refused := self.objects.delete_many(doomed):
                raise next(iter(refused.values()))
            deleted += len(doomed)
        return deleted

    def usage(self, environment_id: str) -> Usage:
        """Of everything in the home's folder."""
        objects = size = 0
        for entry in self.objects.list(keys.home(environment_id)):
            objects += 1
            size += entry.size
        return Usage(objects, size)

    # --- reading a snapshot ------------------------------------------------------------------------------

    def rows(
        self, environment_id: str, number: int, directory: bytes, *, after: bytes = b"", limit: int = 1000
    ) -> reading.Listing:
        """What lies in `directory` (relative to `/`, b"" for the root), by name, after the name `after`. NoSuchThing."""
        return reading.listing(self.reader(environment_id, number), directory, after, limit)

    def difference(
        self, environment_id: str, older: int, newer: int, *, prefix: bytes = b"", after: bytes = b"", limit: int = 1000
    ) -> reading.Difference:
        """What was added, changed and removed below `prefix` from one snapshot to another, by path. Segments that both have are
        not read."""
        one, other = self.reader(environment_id, older), self.reader(environment_id, newer)
        return reading.difference(one, other, prefix, after, limit)

    def contents(
        self, environment_id: str, number: int, *, prefix: bytes = b"", after: bytes = b"", limit: int = 1000
    ) -> reading.Difference:
        """The difference to nothing: everything below `prefix`, as added."""
        return reading.difference(None, self.reader(environment_id, number), prefix, after, limit)

    def open_file(
        self, environment_id: str, number: int, path: bytes, *, offset: int = 0, length: int = -1
    ) -> reading.OpenFile:
        """Bytes of a regular file, a chunk in memory at a time, each checked. NoSuchThing; Invalid for what is no file."""
        return reading.open_file(self.reader(environment_id, number), path, offset, length)

    def zip_of(self, environment_id: str, number: int, path: bytes) -> Iterator[bytes]:
        """A file or a folder with everything in it as a zip archive, made as it is read."""
        return reading.zip_of(self.reader(environment_id, number), path)

    def tar_of(self, environment_id: str, number: int, path: bytes) -> Iterator[bytes]:
        """As `zip_of`, as a tar archive (PAX), which holds owners, links and extended attributes too."""
        return reading.tar_of(self.reader(environment_id, number), path)

    def reader(self, environment_id: str, number: int) -> reading.Reader:
        snapshot = self.snapshot(environment_id, number)
        return reading.Reader(self.objects, environment_id, snapshot)

    # --- for the modules beside --------------------------------------------------------------------------

    def read_head(self, environment_id: str) -> tuple[Head, str]:
        """With its ETag. NoSuchThing, HomeDamaged."""
        key = keys.head(environment_id)
        try:
            body = self.objects.get(key)
        except NotFound as error:
            raise NoSuchThing(f"{environment_id} has no home in the bucket") from error
        head = documents.read_head(body.data, key)
        if head.environment != environment_id:
            raise HomeDamaged(f"{key} is the head of {head.environment}")
        return head, body.etag

    def referred(self, head: Head, sizes: Mapping[ObjectName, int]) -> Iterator[ObjectName]:
        """Every tree and pack of every snapshot and pin, some more than once. `sizes` of trees, where they are known, save
        reading them whole. HomeDamaged where a tree is missing: then nobody knows what else is referred to."""
        names = {keys.tree(tree) for one in self._each_snapshot(head) for tree in one.trees}
        yield from names
        for packs in self._pool.map(lambda name: self._packs_of(head.environment, name, sizes.get(name, 0)), names):
            yield from (keys.pack(pack.hex()) for pack in packs)

    # --- parts -------------------------------------------------------------------------------------------

    def _first_head(self, environment_id: str, generation: int) -> Head:
        """Of a new home; or of one whose head somebody deleted: its snapshots must not be numbered anew, nor an empty home
        be taken for what is there."""
        listed = [entry.key for entry in self.objects.list(f"{keys.home(environment_id)}snapshots/")]
        numbered = [key for key in listed if keys.number_of(key) is not None]
        if not numbered:
            return Head(environment_id, generation, None, self.clock.time())
        newest = self._document(numbered[-1])
        if newest.generation > generation:
            raise Fenced(f"the home of {environment_id} has generation {newest.generation}, later than {generation}")
        return Head(environment_id, generation, newest, newest.at)

    def _head_of(self, environment_id: str, generation: int) -> tuple[Head, str]:
        head, etag = self.read_head(environment_id)
        if head.generation > generation:
            raise Fenced(f"another machine has the home of {environment_id} now: generation {head.generation}")
        if head.generation < generation:
            raise Refused(f"the home of {environment_id} was not given to generation {generation} yet")
        return head, etag

    def _check(self, environment_id: str, commit: Commit, newest: Snapshot | None) -> None:
        """Every object that the parent does not vouch for is there, whole, and not about to be deleted."""
        if len(set(commit.trees)) != len(commit.trees):
            raise Invalid("a tree is in the commit twice")
        known = set(newest.trees) if newest else set()
        new = [keys.tree(tree) for tree in dict.fromkeys(commit.trees) if tree not in known]
        wanted = {*new, *(keys.pack(pack) for pack in commit.packs)}
        gone = collecting.spare(self, environment_id, wanted)
        there = self._sizes(environment_id, sorted(wanted - gone))
        if absent := sorted(gone | {name for name in wanted if not there.get(name)}):
            raise ObjectsMissing(f"{len(absent)} objects of the commit are not there, such as {absent[0]}", absent)
        used: set[ObjectName] = set()
        facts: dict[ObjectName, trees.TreeFacts] = {}
        if self._check_packs:
            packs = sorted(name for name in wanted if name.startswith("packs/"))
            for at in range(0, len(packs), OBJECTS_AT_ONCE):
                list(self._pool.map(lambda name: self._whole(environment_id, name), packs[at : at + OBJECTS_AT_ONCE]))
        for at in range(0, len(new), OBJECTS_AT_ONCE):
            batch = new[at : at + OBJECTS_AT_ONCE]
            looked_at = self._pool.map(lambda name: self._looked_at(environment_id, name), batch)
            for name, one in zip(batch, looked_at, strict=True):
                facts[name] = one
                used.update(keys.pack(pack.hex()) for pack in one.packs)
        if not trees.in_order([facts[name] for name in map(keys.tree, commit.trees) if name in facts]):
            raise Invalid("the trees of the commit are not in the order of their paths")
        beside = used - wanted
        gone = collecting.spare(self, environment_id, beside)
        there = self._sizes(environment_id, sorted(beside - gone))
        if absent := sorted(gone | {name for name in beside if not there.get(name)}):
            raise ObjectsMissing(
                f"its trees refer to {len(absent)} packs that are not there, such as {absent[0]}", absent
            )

    def _looked_at(self, environment_id: str, name: ObjectName) -> trees.TreeFacts:
        """Invalid: nothing of the home is damaged yet, and never will be by this commit."""
        data = self._whole(environment_id, name)
        try:
            return trees.facts_of(data, name)
        except HomeDamaged as error:
            raise Invalid(
                f"{name} is no tree: {error}", hint="save anew, without what is kept of earlier runs"
            ) from error

    def _whole(self, environment_id: str, name: ObjectName) -> bytes:
        """What a guest uploaded, where the bytes are what its name says; Invalid."""
        try:
            data = self.objects.get(keys.content(environment_id, name)).data
        except NotFound as error:
            raise ObjectsMissing(f"{name} is not there", [name]) from error
        if hashlib.sha256(data).hexdigest() != keys.digest_of(name):
            raise Invalid(f"{name} holds other bytes than its name says")
        return data

    def _packs_of(self, environment_id: str, name: ObjectName, size: int) -> tuple[bytes, ...]:
        key = keys.content(environment_id, name)
        try:
            packs = None
            if size > trees.TAIL_BYTES:
                tail = self.objects.get_range(key, size - trees.TAIL_BYTES, trees.TAIL_BYTES).data
                packs = trees.packs_of_tail(tail, name)
            if packs is None:
                packs = trees.facts_of(self.objects.get(key).data, name).packs
        except NotFound as error:
            raise HomeDamaged(f"{environment_id}: {name} is missing, and a snapshot refers to it") from error
        return packs

    def _sizes(self, environment_id: str, names: Sequence[ObjectName]) -> dict[ObjectName, int]:
        """Sizes of those that are there."""
        found: dict[ObjectName, int] = {}
        if len(names) < LIST_FROM:
            for name, size in zip(names, self._pool.map(lambda n: self._size(environment_id, n), names), strict=True):
                if size is not None:
                    found[name] = size
            return found
        wanted = set(names)
        home = keys.home(environment_id)
        for folder in sorted({name.partition("/")[0] for name in names}):
            for entry in self.objects.list(f"{home}{folder}/"):
                name = ObjectName(entry.key.removeprefix(home))
                if name in wanted:
                    found[name] = entry.size
        return found

    def _size(self, environment_id: str, name: ObjectName) -> int | None:
        try:
            return self.objects.head(keys.content(environment_id, name)).size
        except NotFound:
            return None

    def _archive(self, environment_id: str, snapshot: Snapshot) -> None:
        with suppress(PreconditionFailed):  # an earlier attempt put the same
            self.objects.put_if_absent(
                keys.snapshot(environment_id, snapshot.number), documents.write_snapshot(snapshot)
            )

    def _put_pin(self, environment_id: str, snapshot: Snapshot, note: str, by: str, *, replacing: bool = False) -> None:
        key = keys.pin(environment_id, snapshot.number)
        data = documents.write_pin(Pin(snapshot, note, by, self.clock.time()))
        if replacing:
            self.objects.put(key, data)
            return
        with suppress(PreconditionFailed):  # pinned already, perhaps by a person, whose note stays
            self.objects.put_if_absent(key, data)

    def _pin(self, environment_id: str, number: int) -> Pin | None:
        key = keys.pin(environment_id, number)
        try:
            return documents.read_pin(self.objects.get(key).data, key)
        except NotFound:
            return None

    def _read_document(self, key: str) -> Snapshot:
        return documents.read_snapshot(self.objects.get(key).data, key)

    def _read_moment(self, key: str) -> float:
        return self._read_document(key).at

    def _snapshots_of(self, head: Head) -> Mapping[int, Snapshot]:
        """By number."""
        return {one.number: one for one in self._each_snapshot(head)}

    def _each_snapshot(self, head: Head) -> Iterator[Snapshot]:
        """A few in memory at a time. One that is pinned may come twice, with its pin at last. A document that is deleted while
        we read is left out."""
        home = keys.home(head.environment)

        def document(key: str) -> Snapshot | None:
            try:
                return self._document(key)
            except NotFound:
                return None

        listed = [entry.key for entry in self.objects.list(f"{home}snapshots/")]
        for at in range(0, len(listed), DOCUMENTS_AT_ONCE):
            for one in self._pool.map(document, listed[at : at + DOCUMENTS_AT_ONCE]):
                if one is not None:
                    yield one
        if head.newest is not None:
            yield head.newest
        pins = [n for entry in self.objects.list(f"{home}pins/") if (n := keys.number_of(entry.key)) is not None]
        for at in range(0, len(pins), DOCUMENTS_AT_ONCE):
            batch = pins[at : at + DOCUMENTS_AT_ONCE]
            for pin in self._pool.map(lambda number: self._pin(head.environment, number), batch):
                if pin is not None:
                    yield pin.snapshot


def _size_of(one: Snapshot) -> int:
    """Bytes in memory, about."""
    texts = sum(len(path) + NAME_BYTES for path in one.fuzzy_paths) + len(one.note) + len(one.alert)
    return 1024 + NAME_BYTES * len(one.trees) + texts


def _is_it(newest: Snapshot, generation: int, commit: Commit) -> bool:
    """Whether the newest snapshot is what this commit made, or would make."""
    return (newest.parent, newest.generation, newest.trees, newest.kind, newest.guest_at) == (
        commit.parent or 0,
        generation,
        commit.trees,
        commit.kind,
        commit.at,
    )


def _check_batch(count: int) -> None:
    if count > BATCH_MAX:
        raise Invalid(f"{count} objects at once are more than {BATCH_MAX}", hint="ask in batches")
