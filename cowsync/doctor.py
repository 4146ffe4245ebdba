"""What a mirror's source, mirror, state and folder are good for, as they are configured: findings with their cures.

One rule: the source is only read. On the mirror and in the state nothing is written but below a folder of this doctor's own,
and that is removed again, whatever happened in between.

A crash leaves objects below `.cowsync/probe/ID/` on the mirror and below `probe/ID/` in the state. The next doctor on this host
names and removes them at once (its folder holds the ID), one on another host when they are an hour old.
On a mirror with versions removed objects stay as versions, as everything does there: some twenty, of a few bytes.
"""

import os
import random as random_module
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, LOCK_NB, flock
from statistics import median

from cowsync.apply.copy_line import Place
from cowsync.conditions import PROBES, probe_id, remember
from cowsync.errors import Busy, Refused, StateDamaged
from cowsync.mirror import Mirror, check_versions, lies_in
from cowsync.work import LOCK_NAME
from s3core.bucket import CopySource, ListedPage
from s3core.bucket_probe import (
    checksums,
    conditional_puts,
    falling,
    kept_attributes,
    keys_below,
    lost_attributes,
    order,
    read_back,
    remove_keys,
)
from s3core.clock import Clock
from s3core.credentials import CredentialsError
from s3core.endpoint import Endpoint, Honoured
from s3core.errors import Denied, NotFound, PreconditionFailed, StoreError, Unsupported
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, exit_code_for, finding_of
from s3core.observe import provoked
from s3core.probe import ProbeResult, probe_store
from s3core.quantities import shown_duration, shown_size
from s3core.s3_control import LifecycleRule, ObjectLock
from s3core.s3_facts import Judges, expiring, lifecycle
from s3core.store import ObjectStore

PAGES = 5
"""Pages of real keys that are listed at each end."""
SAMPLE_BYTES_MAX = 64 << 20
"""No larger object of the source is copied to try it."""
STATE_PROBES = "probe/"
OTHERS_AGE_S = 3600.0
"""What another host's doctor wrote is in use for so long at most."""
OWN_NAME = "doctor"
_STATE_CHECKS = {
    "read after write": "state reads",
    "create once": "state create once",
    "replace if unchanged": "state replace",
    "ranges": "state ranges",
    "order of listings": "state order",
    "delete": "state delete",
}
_STATE_CURE = "keep the state in its folder, or in a bucket that passes (on Ceph: one without versioning)"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What only the configuration can tell. `source`, `mirror` and `state` examine that end's endpoint and bucket without
    writing; without findings for one that has no endpoint. `copy_if_match`: whether the server itself looks at a copy's
    condition. `addresses` are the URLs of the endpoints of source and mirror."""

    source: Callable[[], list[Finding]] = list
    mirror: Callable[[], list[Finding]] = list
    state: Callable[[], list[Finding]] = list
    copy_if_match: Honoured = "yes"
    addresses: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`figures` are measured values whose names end in their unit. `conditional_puts`: what the mirror does with conditions
    on PUT, "" for keeping to them, None where that could not be asked."""

    mirror: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    conditional_puts: str | None

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first fault, else OK."""
        return exit_code_for(self.findings)


def diagnose(
    mirror: Mirror,
    store: ObjectStore,
    around: Surroundings,
    *,
    clock: Clock,
    random: random_module.Random,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Examine it, telling `on_finding` as it goes; `store` is that of its state. What stores do is never raised. Busy where
    another doctor is at work on the mirror on this host; a run may be."""
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        on_finding(finding)

    with _own(mirror, random) as own:
        doctor = _Doctor(mirror, store, around, clock, random, own, tell)
        try:
            doctor.examine()
        finally:
            doctor.clean_up()
    return Diagnosis(mirror.name, tuple(findings), doctor.figures, doctor.conditional_puts)


@dataclass(frozen=True, slots=True)
class _Own:
    """The doctor of this host: the name of its folders, and whether a lock on this disk keeps others out."""

    name: str
    locks_hold: bool


@contextmanager
def _own(mirror: Mirror, random: random_module.Random) -> Iterator[_Own]:
    path = mirror.folder / OWN_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd):
            raise Busy(f"another doctor is at work on mirror {mirror.name} (it holds {path})", hint="wait for it")
        other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            holds = not _locked(other)
        finally:
            os.close(other)
        yield _Own(probe_id(mirror.folder, random), holds)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Doctor:
    """One examination. What it is told of `wrote_*` is cleaned up at its end."""

    def __init__(
        self,
        mirror: Mirror,
        store: ObjectStore,
        around: Surroundings,
        clock: Clock,
        random: random_module.Random,
        own: _Own,
        tell: Callable[[Finding], None],
    ) -> None:
        self.mirror = mirror
        self.store = store
        self.around = around
        self.clock = clock
        self.random = random
        self.own = own
        self.tell = tell
        self.figures: dict[str, float] = {}
        self.conditional_puts: str | None = None
        self.wrote_mirror = self.wrote_state = False
        self.catalogue_holds = True
        self.probes = mirror.target.key(PROBES)
        self.mine = f"{self.probes}{own.name}/"
        self.place = f"{self.mine}{random.getrandbits(32):08x}/"
        self.state_mine = f"{STATE_PROBES}{own.name}/"

    def examine(self) -> None:
        self._lock()
        self._catalogue()
        source = self._listed("source", self.mirror.source, self.around.source)
        if source is not None:
            self._asked("guard's clock", self._clock_limit)
        if self._listed("mirror", self.mirror.target, self.around.mirror) is not None:
            self._probe_mirror(source)
            self._asked("key", self._key)
        self._asked("versions", self._versions)
        self._examine_state()

    def _versions(self) -> Finding | None:
        """Of a mirror of all versions: whether both ends keep them."""
        if not self.mirror.all_versions:
            return None
        try:
            check_versions(self.mirror)
        except Refused as error:
            return Finding("versions", "fault", str(error), error.hint)
        return Finding("versions", "ok", "both ends keep versions, as a mirror of all of them needs")

    def _asked(self, check: str, ask: Callable[[], Finding | None]) -> bool:
        """Tell what was found; whether it could be asked."""
        try:
            found = ask()
        except StoreError as error:
            self.tell(finding_of(check, error))
            return False
        if found is not None:
            self.tell(found)
        return True

    # --- this host -----------------------------------------------------------------------------------------

    def _lock(self) -> None:
        folder = self.mirror.folder
        if not self.own.locks_hold:
            said = f"two locks on one file were given in {folder}: two runs could work on the mirror at once"
            cure = "put state_dir on a local disk, or on a file system whose locks hold"
            self.tell(Finding("lock", "fault", said, cure))
            return
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            free = _locked(fd)
        finally:
            os.close(fd)
        if free:
            self.tell(Finding("lock", "ok", "free, and keeps a second run out"))
        else:
            said = f"held: another process works on the mirror (cowsync status {self.mirror.name})"
            self.tell(Finding("lock", "note", said))

    def _catalogue(self) -> None:
        try:
            self.mirror.catalogue()
        except StateDamaged as error:
            self.catalogue_holds = False
            self.tell(Finding("catalogue", "fault", str(error), error.hint, ExitCode.CORRUPT))

    # --- source and mirror, by reading ---------------------------------------------------------------------

    def _listed(self, end: str, place: Place, facts: Callable[[], list[Finding]]) -> list[ListedPage] | None:
        """The first pages of the end; None where it cannot be worked with."""
        found = facts()
        for finding in found:
            self.tell(replace(finding, check=f"{end} {finding.check}"))
        if exit_code_for(found) not in (ExitCode.OK, ExitCode.FINDING):
            return None
        if not found and not self._asked(f"{end} versioning", lambda: _versioning(end, place)):
            return None
        pages: list[ListedPage] = []
        return pages if self._asked(f"{end} listing", lambda: self._listing(end, place, pages)) else None

    def _listing(self, end: str, place: Place, pages: list[ListedPage]) -> Finding:
        took: list[float] = []
        after = ""
        while len(pages) < PAGES and (not pages or pages[-1].truncated):
            began = self.clock.monotonic()
            pages.append(place.bucket.list_page(prefix=place.prefix, start_after=after))
            took.append(self.clock.monotonic() - began)
            after = pages[-1].last.decode()
        keys = sum(len(page.keys) for page in pages)
        self.figures[f"{end}_list_page_median_ms"] = round(median(took) * 1000, 1)
        speed = f"a page takes {shown_duration(median(took))}"
        if sum(took):
            self.figures[f"{end}_list_keys_per_s"] = round(keys / sum(took))
        wrong = falling(pages)
        if wrong is not None:
            first, second = (key.decode(errors="replace") for key in wrong)
            return Finding(
                f"{end} listing",
                "warning",
                f"not in the order of UTF-8: {second!r} comes after {first!r}; {speed}",
                "it works: such a listing is made in one piece and sorted on this host's disk, which is slower",
            )
        said = f"the first {keys:,} keys are in the order of UTF-8" if keys else "empty"
        return Finding(f"{end} listing", "ok", f"{said}; {speed}")

    def _clock_limit(self) -> Finding | None:
        skew_s, limit_s = self.mirror.source.bucket.properties.clock_skew_s, self.mirror.guard.clock_skew_s
        if skew_s is None or not limit_s or abs(skew_s) <= limit_s:
            return None
        said = (
            f"this host's clock and the source's differ by {shown_duration(abs(skew_s))}; the guard lets no plan pass"
        )
        cure = (
            f"set the clock that is wrong, or raise clock_skew_s (now {limit_s:g}) of [mirror.{self.mirror.name}.guard]"
        )
        return Finding("guard's clock", "fault", said, cure)

    # --- the mirror, by writing ----------------------------------------------------------------------------

    def _probe_mirror(self, source: list[ListedPage] | None) -> None:
        bucket = self.mirror.target.bucket
        if not self._asked("mirror left over", self._remove_left_over):
            return
        self.wrote_mirror = True
        if not self._asked("mirror writes", lambda: read_back(bucket, f"{self.place}read/", "mirror writes")):
            return
        self._asked("mirror order", lambda: order(bucket, self.place, "mirror order"))
        self._asked("mirror checksums", lambda: checksums(bucket, self.place, "mirror checksums"))
        self._asked("mirror conditions", self._conditions)
        self._asked("mirror attributes", self._attributes)
        if source is not None:
            self._asked("copy", lambda: self._copy(source))

    def _key(self) -> Finding | None:
        """Whether configuration and mirror agree on encryption, and the key opens it."""
        vault = self.mirror.vault
        if vault is None:
            return None
        try:
            ring = vault.opening(begun=bool(self.mirror.state.head().entries))
        except (Refused, CredentialsError) as error:
            code = ExitCode.REFUSED if isinstance(error, Refused) else ExitCode.CONFIGURATION
            return Finding("key", "fault", str(error), getattr(error, "hint", ""), code)
        except StateDamaged:
            return None  # told of with the state
        if ring is not None:
            return Finding("key", "ok", "opens a key slot of the mirror; keep a copy of it elsewhere")
        return (
            Finding("key", "ok", "nothing is sealed yet: the first run makes a data key") if vault.encrypting else None
        )

    def _remove_left_over(self) -> Finding | None:
        bucket = self.mirror.target.bucket
        found = keys_below(bucket, self.probes)
        before = self.clock.time() - OTHERS_AGE_S
        left = [key for key, moment in found.items() if key.startswith(self.mine) or moment < before]
        remove_keys(bucket, left)
        return _left_over("mirror", self.probes, len(left), len(found) - len(left))

    def _conditions(self) -> Finding:
        self.conditional_puts = conditional_puts(self.mirror.target.bucket, f"{self.place}conditions/")
        if self.catalogue_holds:
            remember(self.mirror, self.conditional_puts, self.clock.time())
        setting = self.mirror.settings.conditional_puts
        if not self.conditional_puts:
            unused = " (not used: conditional_puts = no)" if setting == "no" else ""
            return Finding("mirror conditions", "ok", f"If-None-Match and If-Match are kept to by PUT{unused}")
        if setting == "yes":
            return Finding(
                "mirror conditions",
                "fault",
                f"{self.conditional_puts}, and conditional_puts = yes relies on it: runs may overwrite what others wrote",
                f'set conditional_puts = "auto" of [mirror.{self.mirror.name}]',
            )
        return Finding(
            "mirror conditions",
            "note",
            self.conditional_puts,
            "it works: a run looks with a HEAD before each PUT; between the two somebody else's write may be lost",
        )

    def _attributes(self) -> None:
        bucket = self.mirror.target.bucket
        for finding in kept_attributes(bucket, f"{self.place}attributes/", "mirror attributes", "mirror copied"):
            self.tell(finding)

    def _copy(self, pages: list[ListedPage]) -> Finding:
        """An object of the source, copied by the server to a probe of ours."""
        source, target = self.mirror.source.bucket, self.mirror.target.bucket
        here, there = source.properties, target.properties
        if self.mirror.encrypted:
            # Not even to try it: what the server copies is not sealed.
            return Finding(
                "copy", "note", "the mirror is encrypted: objects travel through this host and are sealed here"
            )
        if not here.endpoint or here.endpoint != there.endpoint:
            first, second = self.around.addresses
            cure = ""
            if first and first == second:
                cure = "both have one address: with one [endpoint] for both, whose key may read there and write here, it copies"
            return Finding(
                "copy", "note", "source and mirror are two endpoints: objects travel through this host", cure
            )
        sizes = [
            (size, key, etag)
            for page in pages
            for size, key, etag in zip(page.sizes, page.keys, page.etags, strict=True)
        ]
        size, name, known = min(sizes, default=(SAMPLE_BYTES_MAX + 1, b"", b""))
        if size > SAMPLE_BYTES_MAX:
            return Finding("copy", "note", f"not tried: no object of at most {shown_size(SAMPLE_BYTES_MAX)} was listed")
        key, etag, probe = name.decode(), known.decode(), f"{self.place}copy"
        gone = Finding("copy", "note", "not known: the object that was tried changed meanwhile; run it again")
        try:
            with provoked(Unsupported, Denied):
                target.copy(CopySource(here.name, key, if_match=etag), probe)
            if (held := target.head(probe)).size != size:
                return Finding("copy", "fault", f"a copy of {size} bytes has {held.size}")
            facts = source.head(key)
            wanted = replace(facts.attributes, tags=source.tags(key) if facts.tag_count else {})
            if facts.etag != etag:
                return gone
            lost = lost_attributes(target, probe, wanted)
        except (Unsupported, Denied) as error:
            hint = error.hint or "let one key read the source and write the mirror"
            said = str(error).removesuffix(f" ({error.hint})")
            return Finding("copy", "warning", f"objects travel through this host: {said}", hint)
        except (NotFound, PreconditionFailed):
            return gone
        if lost:
            return Finding("copy", "warning", f"a copy by the server from the source: {lost}")
        try:
            target.copy(CopySource(here.name, key, if_match="0" * 32), probe)
        except PreconditionFailed:
            by = "" if self.around.copy_if_match == "yes" else ", by a look of our own at the source each time"
            said = f"the server copies by itself, with all attributes; a source that has changed is refused{by}"
            return Finding("copy", "ok", said)
        return Finding(
            "copy",
            "fault",
            "the server copies a source that has changed: x-amz-copy-source-if-match is ignored",
            'choose the preset of that server, or preset = "generic" for its endpoint: then the source is looked at',
        )

    # --- the state -----------------------------------------------------------------------------------------

    def _examine_state(self) -> None:
        settings = self.mirror.settings
        if lies_in(settings.state, settings.source):
            said = f"{settings.state} lies below the source {settings.source}: it would be mirrored, and is not tried"
            self.tell(Finding("state", "fault", said, f"choose another place for state of [mirror.{self.mirror.name}]"))
            return
        found = self.around.state()
        for finding in found:
            self.tell(replace(finding, check=f"state {finding.check}"))
        if exit_code_for(found) not in (ExitCode.OK, ExitCode.FINDING):
            return
        if not self._asked("state", self._restore_points) or not self._asked("state left over", self._state_left_over):
            return
        self.wrote_state = True
        probe_store(
            self.store,
            key_prefix=self.state_mine,
            clock=self.clock,
            random=self.random,
            on_result=lambda result: self.tell(_of_state(result)),
            only=_STATE_CHECKS,
        )

    def _restore_points(self) -> Finding:
        try:
            entries = self.mirror.state.head().entries
            newest = self.mirror.state.snapshot(entries[0].name) if entries else None
        except StateDamaged as error:
            return Finding("state", "fault", str(error), error.hint, ExitCode.CORRUPT)
        if newest is None:
            return Finding("state", "ok", "empty: the first run begins it")
        said = f"restore points: {len(entries):,}, the newest of {entries[0].time}, with {newest.totals.rows:,} objects"
        return Finding("state", "ok", said)

    def _state_left_over(self) -> Finding | None:
        found = {info.key: info.modified for info in self.store.list(STATE_PROBES)}
        before = self.clock.time() - OTHERS_AGE_S
        left = [key for key, moment in found.items() if key.startswith(self.state_mine) or moment < before]
        for error in self.store.delete_many(left).values():
            raise error
        return _left_over("state", STATE_PROBES, len(left), len(found) - len(left))

    # --- afterwards ----------------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Remove what was written; what cannot be removed is told, with its place."""
        if self.wrote_mirror:
            bucket = self.mirror.target.bucket
            self._removed("mirror", self.mine, lambda: remove_keys(bucket, keys_below(bucket, self.mine)))
        if self.wrote_state:
            self._removed("state", self.state_mine, self._remove_state)

    def _remove_state(self) -> None:
        for error in self.store.delete_many([info.key for info in self.store.list(self.state_mine)]).values():
            raise error

    def _removed(self, end: str, place: str, remove: Callable[[], None]) -> None:
        try:
            remove()
        except StoreError as error:
            found = finding_of(f"{end} clean up", error)
            cure = f"the next doctor on this host removes what is left below {place}"
            self.tell(replace(found, said=f"probes are left: {found.said}", cure=cure))


def _versioning(end: str, place: Place) -> Finding:
    return Finding(f"{end} versioning", "ok", "on" if place.bucket.properties.versioned else "off")


def _left_over(end: str, place: str, removed: int, others: int) -> Finding | None:
    said = []
    if removed:
        said.append(f"{removed} objects of a doctor that was broken off were below {place}, and are removed")
    if others:
        said.append(f"{others} objects below {place} are of a run or of another host, and young; they go after an hour")
    return Finding(f"{end} left over", "note", "; ".join(said)) if said else None


def _of_state(result: ProbeResult) -> Finding:
    check = _STATE_CHECKS.get(result.name, f"state {result.name}")
    if result.ok:
        return Finding(check, "ok", result.detail)
    said = result.detail if result.conclusive else f"could not be asked: {result.detail}"
    return Finding(check, "fault", said, _STATE_CURE if result.conclusive else result.hint)


# --- what a bucket's settings mean ---------------------------------------------------------------------------------------


def _source_versioning(status: str, endpoint: Endpoint) -> Finding:
    return Finding("versioning", "ok", status.lower() or "off")


def _mirror_versioning(status: str, endpoint: Endpoint) -> Finding:
    if status == "Enabled":
        return Finding("versioning", "ok", "enabled: what is overwritten or removed can be brought back")
    return Finding(
        "versioning",
        "warning",
        f"{status.lower() or 'off'}: what is overwritten on the mirror is gone, and no older restore point can be had whole",
        "switch versioning on for the mirror's bucket, with a rule that expires noncurrent versions after a time",
    )


def _state_versioning(status: str, endpoint: Endpoint) -> Finding:
    if not status:
        return Finding("versioning", "ok", "off")
    said = f"{status.lower()}: forgotten restore points stay as versions until a lifecycle rule removes them"
    return Finding("versioning", "note", said)


def _any_lock(lock: ObjectLock) -> Finding:
    if not lock.enabled or not lock.mode:
        return Finding("object lock", "ok", "possible; new objects are not held" if lock.enabled else "off")
    return Finding("object lock", "ok", f"every new version is held for {lock.days} days ({lock.mode})")


def _state_lock(lock: ObjectLock) -> Finding:
    found = _any_lock(lock)
    if not lock.mode:
        return found
    return replace(found, verdict="note", said=f"{found.said}: forgotten restore points stay for so long")


def _source_lifecycle(rules: list[LifecycleRule], prefix: str) -> Finding:
    for rule in expiring(rules, prefix):
        said = f"rule {rule.name or '(unnamed)'} deletes objects after {rule.expire_days} days"
        cure = "the mirror keeps what the source loses; a day on which many go may be held by the guard"
        return Finding("lifecycle", "note", said, cure)
    return Finding("lifecycle", "ok", "deletes no current objects")


SOURCE_JUDGES = Judges(_source_versioning, _any_lock, _source_lifecycle)
MIRROR_JUDGES = Judges(_mirror_versioning, _any_lock, lifecycle)
STATE_JUDGES = Judges(_state_versioning, _state_lock, lifecycle)
