"""The collector: deletes packs and trees that no snapshot refers to, without ever stopping a guest.

One rule: nothing that a commit may still refer to is deleted, however long that commit sleeps between two of its steps. Two
phases:

    mark    objects at least WAIT_S old that no snapshot and no pin refers to are named in a list, `doomed/<moment>`
            (state `marked`)
    sweep   at least WAIT_S later:
            1. the list is put again as `sweeping` (If-Match)
            2. the head is put again, naming the list (If-Match)
            3. snapshots and pins are read anew
            4. what is in the list and still not referred to is deleted
            5. the list is deleted

Why it is safe. A commit C reads the head (its ETag E), then the lists, then looks whether its objects are there, then puts
the head with If-Match E. Take an object X that C refers to:

* X belongs to C's parent. The parent is the newest snapshot while E holds, so X is referred to at step 3, or E does not hold
  and C fails. Whatever else C refers to, be it new, of an older snapshot that was restored, or found there by chance, is
  looked at:
* X is not in the bucket when C looks. C is refused; the guest forgets that it has it, or puts it again.
* X is in a list that C finds `marked`. C takes it out by If-Match (`spare`). Either that comes before step 1, and the list
  is swept without X, or step 1 comes before, C's If-Match fails, and C finds it `sweeping`.
* X is in a list that C finds `sweeping`. C treats X as missing and is refused; the guest puts X again when the list is gone.
* X is in no list when C looks at them. If the list was deleted before that, X is gone and C sees so, for it looks at the
  objects after the lists. If the list comes later, step 2 comes later still, and E does not hold any more: C reads
  everything again; unless C's PUT came before step 2, and then step 3 sees C.

Pins hold the snapshot itself; one that is put before step 3 is seen there, and `HomeStore.pin` gives up long before WAIT_S
is over.

Two sweepers of one list do no harm while both are at it, for both see the same. One that sleeps between 3 and 4 until the
other has finished could delete an object that was put again meanwhile: so each looks at its clock before every batch and
stops after SWEEP_S, and a list that another claimed is left alone for CLAIM_S, six times as long.

| crash after | what is there | repaired by |
| --- | --- | --- |
| mark | a list | the sweep |
| 1, 2 | a list `sweeping`; its objects count as missing | the next collection, from 1 on |
| 4, some deleted | the same | the same; what is gone stays gone |
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from envctl.errors import HomeDamaged, NoSuchThing
from envctl.homes import documents, keys
from envctl.homes.documents import Doomed
from envctl.homes.errors import HomeBusy
from envctl.homes.keys import ObjectName
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed

if TYPE_CHECKING:
    from envctl.homes.store import HomeStore

WAIT_S: Final = 86400.0
"""Between upload and mark, and between mark and sweep. A first backup may take a day before it commits; one that takes longer
uploads some objects twice."""
SWEEP_S: Final = 600.0
CLAIM_S: Final = 3600.0
DELETE_BATCH: Final = 200
NAMES_MAX: Final = 100_000
"""In one list; what is left is marked the next time."""
ATTEMPTS: Final = 16


@dataclass(frozen=True, slots=True)
class Collected:
    """`marked`: named in a new list. `deleted`: gone now. `waiting`: in lists that are not due yet."""

    marked: int = 0
    deleted: int = 0
    waiting: int = 0


def collect(store: "HomeStore", environment_id: str, now: float) -> Collected:
    """Sweep the lists that are due, then mark. `now`: Unix seconds. Nothing where there is no home. HomeDamaged where a tree
    of a snapshot is missing: then nothing is marked or deleted."""
    deleted = waiting = 0
    listed: set[ObjectName] = set()
    for key in list_keys(store, environment_id):
        found = _read(store, key)
        if found is None:
            continue
        doomed, etag = found
        due = now - doomed.at >= WAIT_S
        if due and (doomed.state == "marked" or now - doomed.claimed_at >= CLAIM_S):
            swept = _sweep(store, environment_id, key, doomed, etag, now)
            if swept is not None:
                deleted += swept
                continue
        waiting += len(doomed.names)
        listed.update(ObjectName(name) for name in doomed.names)
    return Collected(_mark(store, environment_id, now, listed), deleted, waiting)


def spare(store: "HomeStore", environment_id: str, names: Set[ObjectName]) -> set[ObjectName]:
    """Take `names` out of every list that is not being swept; those that are in one that is: they are as good as gone.
    Whoever calls this looks afterwards whether the others are there."""
    gone: set[ObjectName] = set()
    if not names:
        return gone
    for key in list_keys(store, environment_id):
        for _ in range(ATTEMPTS):
            found = _read(store, key)
            if found is None:
                break
            doomed, etag = found
            hit = names & set(map(ObjectName, doomed.names))
            if not hit:
                break
            if doomed.state == "sweeping":
                gone |= hit
                break
            left = tuple(name for name in doomed.names if name not in hit)
            try:
                store.objects.put_if_match(key, documents.write_doomed(replace(doomed, names=left)), etag)
                break
            except (PreconditionFailed, NotFound, OutcomeUnknown):
                continue
        else:
            raise HomeBusy(f"{key} keeps changing")
    return gone


def list_keys(store: "HomeStore", environment_id: str) -> list[str]:
    return [entry.key for entry in store.objects.list(f"{keys.home(environment_id)}doomed/")]


def _mark(store: "HomeStore", environment_id: str, now: float, listed: Set[ObjectName]) -> int:
    try:
        head, _ = store.read_head(environment_id)
    except NoSuchThing:
        return 0
    home = keys.home(environment_id)
    sizes: dict[ObjectName, int] = {}
    old: list[ObjectName] = []
    for folder in ("packs/", "trees/"):
        for entry in store.objects.list(home + folder):
            name = ObjectName(entry.key.removeprefix(home))
            sizes[name] = entry.size
            if now - entry.modified >= WAIT_S and name not in listed:
                old.append(name)
    if not old:
        return 0
    live = set(store.referred(head, sizes))
    names = tuple(name for name in old if name not in live)[:NAMES_MAX]
    if names:
        key = keys.doomed(environment_id, now, store.random(4))
        store.objects.put_if_absent(key, documents.write_doomed(Doomed(now, "marked", names)))
    return len(names)


def _sweep(store: "HomeStore", environment_id: str, key: str, doomed: Doomed, etag: str, now: float) -> int | None:
    """How many were deleted; None where somebody else has the list."""
    began = store.clock.monotonic()
    claimed = replace(doomed, state="sweeping", claimed_at=now)
    try:
        store.objects.put_if_match(key, documents.write_doomed(claimed), etag)
    except (PreconditionFailed, NotFound, OutcomeUnknown):
        return None  # spared from, or claimed by another; or by us: then it is taken up again after CLAIM_S
    bump(store, environment_id, key)
    head, _ = store.read_head(environment_id)
    live = set(store.referred(head, {}))
    names = [ObjectName(name) for name in claimed.names if name not in live]
    for at in range(0, len(names), DELETE_BATCH):
        if store.clock.monotonic() - began > SWEEP_S:
            return None
        batch = [keys.content(environment_id, name) for name in names[at : at + DELETE_BATCH]]
        if refused := store.objects.delete_many(batch):
            raise next(iter(refused.values()))
    if store.clock.monotonic() - began > SWEEP_S:
        return None
    store.objects.delete(key)
    return len(names)


def bump(store: "HomeStore", environment_id: str, list_key: str) -> None:
    """Put the head again, with another ETag: no commit that read it before can succeed any more. HomeDamaged where a home
    has lists and no head."""
    for _ in range(ATTEMPTS):
        try:
            head, etag = store.read_head(environment_id)
        except NoSuchThing as error:
            raise HomeDamaged(f"{environment_id} has objects and no head", hint="purge it") from error
        mark = f"{list_key.rpartition('/')[2]}-{store.random(4).hex()}"
        try:
            said = documents.write_head(replace(head, swept=mark))
            store.objects.put_if_match(keys.head(environment_id), said, etag)
            return
        except (PreconditionFailed, NotFound, OutcomeUnknown):
            continue
    raise HomeBusy(f"the head of {environment_id} keeps changing")


def _read(store: "HomeStore", key: str) -> tuple[Doomed, str] | None:
    """None: it was deleted meanwhile."""
    try:
        body = store.objects.get(key)
    except NotFound:
        return None
    return documents.read_doomed(body.data, key), body.etag
