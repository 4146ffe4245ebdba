"""What a ledger is good for, as it is configured on this host: findings with their cures.

One rule: nothing of the ledger is changed. What is written is one object of this doctor's own, `reports/doctor.HOST`, which is
removed again where the key may do that; and that it may is a finding.

A crash leaves that object; it holds a few bytes, belongs to no log, and the next doctor on the host uses it again. In a bucket
with versions each run that may delete leaves a version and a delete marker of it.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from integrity.errors import LedgerError
from integrity.keys import LedgerKey
from integrity.place import Ledger
from integrity.record import unix_of
from integrity.reports.local import local_log, slots_of
from integrity.slots import is_taken, writers_here
from integrity.tlog.note import parse_vkey
from integrity.tlog.witness import origin_hash
from integrity.verification.evidence import Evidence, evidence_of
from integrity.verification.findings import Kind, Outcome
from integrity.verification.pins import pins_path
from integrity.verification.quick import open_ledger_log, quick
from integrity.verification.trust import Members
from s3core.credentials import CredentialsError
from s3core.endpoint import Endpoint
from s3core.errors import Denied, NotFound, PreconditionFailed, StoreError, Unavailable
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, exit_code_for, finding_of
from s3core.observe import provoked
from s3core.quantities import shown_duration, shown_size
from s3core.s3_control import ObjectLock
from s3core.s3_facts import Judges, lifecycle
from s3core.settings import ConfigError

WAITS_WARNING = 10
"""Times `checkpoint_s` that a record may wait for its checkpoint before that is worth a word."""
WAL_WARNING_BYTES = 1 << 30
ROOM_WARNING_BYTES = 1 << 30
PIN_AGE_WARNING_S = 7 * 86_400.0
FEED_LAG_WARNING_S = 3600.0
_PROBE = b"written by s3integrity doctor; it belongs to no log\n"


@dataclass(frozen=True, slots=True)
class FeedLag:
    """What this host took in of feeds: `behind_s` is how long ago, None where nothing was; `quarantined` are bytes of entries
    that could not be understood."""

    name: str
    behind_s: float | None
    quarantined: int = 0


def feeds_here(folder: Path, now: float) -> list[FeedLag]:
    """Of the folder where feeds keep their place; empty where there are none on this host. OSError."""
    times = [path.stat().st_mtime for path in folder.glob("feeds.sqlite*")] if folder.is_dir() else []
    if not times:
        return []
    quarantine = folder / "quarantine.jsonl"
    return [FeedLag("feeds", now - max(times), quarantine.stat().st_size if quarantine.exists() else 0)]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What only the configuration and the network can tell. `store` examines the endpoint and the ledger's bucket without
    writing; `covers` one place of the setting of that name; `witness` GETs an address and gives the status."""

    store: Callable[[], list[Finding]] = list
    covers: Callable[[str], Finding] = lambda url: Finding(f"covers {url}", "ok", "there")
    witness: Callable[[str], int] = lambda url: 200
    feeds: Callable[[], Sequence[FeedLag]] = list
    shares_bucket: Sequence[str] = ()
    """Places in `covers` that lie in the ledger's own bucket."""


@dataclass(slots=True)
class Diagnosis:
    ledger: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first fault, else OK."""
        return exit_code_for(self.findings)


def diagnose(
    ledger: Ledger,
    around: Surroundings,
    *,
    probing: bool = True,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Examine it, telling `on_finding` as it goes. What stores, files and witnesses do is never raised."""
    doctor = _Doctor(ledger, around, on_finding)
    doctor.examine(probing)
    return doctor.diagnosis


class _Doctor:
    def __init__(self, ledger: Ledger, around: Surroundings, on_finding: Callable[[Finding], None]) -> None:
        self.ledger = ledger
        self.around = around
        self.on_finding = on_finding
        self.diagnosis = Diagnosis(ledger.name)
        self.now = ledger.clock.time()

    def tell(self, finding: Finding) -> None:
        self.diagnosis.findings.append(finding)
        self.on_finding(finding)

    def examine(self, probing: bool) -> None:
        facts = self.around.store()
        for finding in facts:
            self.tell(finding)
        reached = exit_code_for(facts) in (ExitCode.OK, ExitCode.FINDING)
        if reached and probing:
            self._probe()
        sizes: dict[str, int] = {}
        members: Members | None = None
        evidence = self._evidence()
        if evidence is not None and reached:
            members, sizes = self._believed(evidence)
        self._keys(members)
        self._slots(members, sizes)
        self._witnesses()
        for url in self.ledger.settings.covers:
            self.tell(self.around.covers(url))
        self._covers()
        try:
            feeds = self.around.feeds()
        except OSError as error:
            feeds = []
            self.tell(Finding("feeds", "note", f"{error.filename}: {error.strerror}", "run this as root to see them"))
        for feed in feeds:
            self._feed(feed)

    # --- the store ------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Whether this host's key can write, and whether it can delete."""
        store, key = self.ledger.store, f"reports/doctor.{self._host()}"
        try:
            try:
                store.put_if_absent(key, _PROBE)
            except PreconditionFailed:
                if store.get(key).data != _PROBE:
                    self.tell(Finding("writing", "warning", f"{key} is there, and not what a doctor writes"))
                    return
            if store.get(key).data != _PROBE:
                self.tell(Finding("writing", "fault", "what was written reads back as something else"))
                return
            self.tell(Finding("writing", "ok", "this host's key may write, and reads back what it wrote"))
            with provoked(Denied):
                store.delete(key)
        except Denied as error:
            if "writing" in {finding.check for finding in self.diagnosis.findings}:
                self.tell(Finding("deleting", "ok", "this host's key may not delete"))
            else:
                self.tell(finding_of("writing", error))
            return
        except StoreError as error:
            self.tell(finding_of("writing", error))
            return
        if store.properties.scheme != "s3":
            said = "whoever may write to the directory may delete in it"
            cure = "keep ledgers that matter in a bucket with Object Lock, under a key that may not delete"
            self.tell(Finding("deleting", "note", said, cure))
            return
        self.tell(
            Finding(
                "deleting",
                "warning",
                "this host's key may delete: whoever steals it can hide or destroy what the bucket does not hold",
                "take s3:DeleteObject and s3:DeleteObjectVersion from the key; writers need s3:PutObject and s3:GetObject",
            )
        )

    # --- what the ledger says -------------------------------------------------------------------------------------

    def _evidence(self) -> Evidence | None:
        path = pins_path(self.ledger)
        try:
            evidence = evidence_of(self.ledger)
        except (ConfigError, LedgerError) as error:
            code = ExitCode.CONFIGURATION if isinstance(error, ConfigError) else ExitCode.REFUSED
            hint = str(getattr(error, "hint", ""))
            self.tell(Finding("trust", "fault", str(error).removesuffix(f" ({hint})"), hint, code))
            return None
        except OSError as error:
            self.tell(
                Finding("pins", "fault", f"{path}: {error.strerror or error}", "run this as root", ExitCode.DENIED)
            )
            return None
        verify = f"s3integrity verify {self.ledger.name}"
        if not evidence.pins.logs:
            said = "none: a ledger that was cut short, or replaced by an older state of itself, cannot be told from a whole one"
            self.tell(Finding("pins", "warning", said, f"verify once, and then regularly: {verify}"))
            return evidence
        age_s = self.now - unix_of(evidence.pins.at)
        self.diagnosis.figures["pins_age_s"] = round(age_s, 1)
        said = f"{len(evidence.pins.logs)} logs, verified {_ago(age_s)} ago"
        if age_s > PIN_AGE_WARNING_S:
            self.tell(Finding("pins", "warning", said, f"verify daily, by a timer: {verify}"))
        else:
            self.tell(Finding("pins", "ok", said))
        return evidence

    def _believed(self, evidence: Evidence) -> tuple[Members | None, dict[str, int]]:
        try:
            outcome, _ = quick(evidence)
            opened = open_ledger_log(evidence, Outcome("doctor"))
        except NotFound:
            said = "there is no ledger here: the store has no checkpoint of its own log"
            cure = f"make one: s3integrity init {self.ledger.name}; or check `url`"
            self.tell(Finding("ledger", "fault", said, cure, ExitCode.NOT_FOUND))
            return None, {}
        except StoreError as error:
            self.tell(finding_of("ledger", error))
            return None, {}
        for found in outcome.findings:
            match found.kind:
                case Kind.TAMPERED:
                    cure = "docs/runbook/tampered.md: change nothing"
                    self.tell(Finding("evidence", "fault", f"{found.log}: {found.what}", cure, ExitCode.TAMPERED))
                case Kind.UNREAD:
                    cure = "see the store; run this again"
                    self.tell(Finding("evidence", "fault", f"{found.log}: {found.what}", cure, ExitCode.UNAVAILABLE))
                case Kind.ANOMALY:
                    cure = "docs/runbook/ledger-stale.md"
                    self.tell(Finding("evidence", "warning", f"{found.log}: {found.what}", cure))
        records = sum(result.size for result in outcome.results)
        self.diagnosis.figures["records"] = records
        if not outcome.findings:
            said = f"{len(outcome.results)} logs with {records:,} records, keys, pins and newest checkpoints hold"
            self.tell(Finding("evidence", "ok", said))
        if opened is None:
            return None, {}
        log, members, _ = opened
        log.reader.close()
        return members, {result.log: result.size for result in outcome.results}

    # --- this host ------------------------------------------------------------------------------------------------

    def _keys(self, members: Members | None) -> None:
        """Of the ledger key: whether it lies here, is ours, and lies beside writers."""
        ledger = self.ledger
        try:
            key = LedgerKey.load(ledger.key_file) if ledger.key_file.exists() else None
            writers = writers_here(ledger)
        except (CredentialsError, LedgerError) as error:
            self.tell(
                Finding("ledger key", "fault", str(error), f"chmod 600 {ledger.key_file}", ExitCode.CONFIGURATION)
            )
            return
        except OSError as error:
            self.tell(
                Finding(
                    "ledger key", "note", f"{ledger.state_dir}: {error.strerror or error}", "run this as root to see it"
                )
            )
            return
        if key is None:
            self.tell(Finding("ledger key", "ok", "not on this host"))
            return
        if ledger.settings.vkey and key.signer.key_id != parse_vkey(ledger.settings.vkey).key_id:
            said = f"the key in {ledger.key_file} is not the one that `vkey` names: {key.signer.vkey}"
            self.tell(
                Finding("ledger key", "fault", said, "find out which of the two is the ledger's", ExitCode.REFUSED)
            )
            return
        if writers:
            said = "on this host, beside writers: whoever takes this host can enrol writers and sign heads as they like"
            cure = "seal on another host (s3integrity serve there), and keep `ledger.key` there alone"
            self.tell(Finding("ledger key", "warning", said, cure))
        else:
            self.tell(Finding("ledger key", "ok", "on this host, which writes no records"))

    def _slots(self, members: Members | None, sizes: Mapping[str, int]) -> None:
        ledger = self.ledger
        try:
            writers = writers_here(ledger)
            taken = [writer for writer in writers if is_taken(ledger, writer)]
            local = [local_log(ledger.slots, writer, sizes.get(writer, 0)) for writer in slots_of(ledger.slots)]
            left = [w for w in writers if w not in taken and (ledger.slots / w / "open").exists()]
        except OSError as error:
            self.tell(
                Finding("slots", "note", f"{ledger.slots}: {error.strerror or error}", "run this as root to see them")
            )
            return
        if not writers:
            said = "none: nothing that is done on this host is recorded in this ledger"
            self.tell(Finding("slots", "note", said, f"where it should be: s3integrity join {ledger.name}"))
            return
        free = len(writers) - len(taken)
        self.diagnosis.figures |= {"slots": len(writers), "slots_free": free}
        if free:
            self.tell(Finding("slots", "ok", f"{free} of {len(writers)} free"))
        else:
            said = f"all {len(writers)} in use: a further process cannot record, and is refused"
            cure = f"raise `slots` in [ledger.{ledger.name}], then: s3integrity join {ledger.name}"
            self.tell(Finding("slots", "warning", said, cure))
        if left:
            said = f"{', '.join(left)}: left by a crash or while the store was away, and not published to the end"
            cure = f"s3integrity serve {ledger.name}, or any next process, goes on with it"
            self.tell(Finding("slots left open", "note", said, cure))
        self._enrolled(writers, members)
        if not sizes:
            return
        waits_s = [self.now - unix_of(one.oldest_at) for one in local if one.oldest_at]
        waiting = sum(one.end - one.first for one in local)
        size = sum(one.size_bytes for one in local)
        self.diagnosis.figures |= {
            "wal_bytes": size,
            "unpublished": waiting,
            "unpublished_age_s": max(waits_s, default=0.0),
        }
        for one in local:
            if one.said:
                self.tell(Finding(f"local log {one.writer}", "warning", one.said, "docs/runbook/ledger-slots.md"))
        self._waiting(waiting, max(waits_s, default=0.0), size)

    def _enrolled(self, writers: Sequence[str], members: Members | None) -> None:
        if members is None:
            return
        known = members.by_name
        strange = [writer for writer in writers if writer not in known]
        retired = [writer for writer in writers if writer in known and known[writer].retired]
        if strange:
            said = f"{', '.join(strange)}: has a key here, and is not enrolled: nobody believes what it signs"
            cure = f"where the ledger key is: s3integrity enrol {self.ledger.name} (join printed the line)"
            self.tell(Finding("enrolment", "fault", said, cure, ExitCode.REFUSED))
        if retired:
            said = f"{', '.join(retired)}: retired, and the key is still here"
            self.tell(Finding("enrolment", "warning", said, "remove the folder of the slot, and join anew if need be"))
        if not strange and not retired:
            self.tell(Finding("enrolment", "ok", "every slot of this host is enrolled"))

    def _waiting(self, waiting: int, wait_s: float, size: int) -> None:
        limit_s = WAITS_WARNING * self.ledger.settings.checkpoint_s
        said = f"{shown_size(size)}, {waiting:,} records not published"
        said += f", the oldest for {_ago(wait_s)}" if wait_s > 0 else ""
        if wait_s > limit_s:
            cure = f"see the store and the log of the process; then: s3integrity serve {self.ledger.name}"
            self.tell(Finding("local log", "warning", said, cure))
        elif size > WAL_WARNING_BYTES:
            self.tell(Finding("local log", "warning", said, "the store takes less than is recorded: see its bandwidth"))
        else:
            self.tell(Finding("local log", "ok", said))
        folder = next(
            (path for path in (self.ledger.state_dir, *self.ledger.state_dir.parents) if path.is_dir()), Path("/")
        )
        room = shutil.disk_usage(folder).free
        self.diagnosis.figures["room_bytes"] = room
        if room < ROOM_WARNING_BYTES:
            said = f"{shown_size(room)} left on the disk of {folder}: without room nothing can be recorded, and nothing is done"
            self.tell(Finding("room", "warning", said, "make room, or move state_dir"))

    # --- others ---------------------------------------------------------------------------------------------------

    def _witnesses(self) -> None:
        settings = self.ledger.settings
        if not settings.witnesses:
            said = "none: whoever has the ledger key and the bucket can show different histories to different people"
            self.tell(
                Finding("witnesses", "note", said, "run one on a host of another team: s3integrity witness serve")
            )
            return
        for line in settings.witnesses:
            url = line.split()[0].rstrip("/")
            check = f"witness {url}"
            try:
                status = self.around.witness(f"{url}/{origin_hash(self.ledger.origin)}/checkpoint")
            except Unavailable as error:
                self.tell(
                    Finding(check, "warning", str(error), "see the witness's host; nothing waits for it meanwhile")
                )
                continue
            if status == 200:
                self.tell(Finding(check, "ok", "answers, and has cosigned this ledger"))
            else:
                said = f"answers {status}, not with a checkpoint of this ledger that it cosigned"
                self.tell(Finding(check, "note", said, "give it the ledger's origin and vkey (witness serve --help)"))

    def _covers(self) -> None:
        ledger = self.ledger
        if not ledger.settings.covers:
            said = "no bucket: our tools record nothing in this ledger by themselves"
            self.tell(Finding("covers", "note", said, f"set `covers` in [ledger.{ledger.name}]"))
        for url in self.around.shares_bucket:
            said = f"{url} lies in the ledger's own bucket: one key reaches evidence and what it is about"
            self.tell(Finding("covers", "warning", said, "keep the ledger in a bucket of its own, under another key"))

    def _feed(self, feed: FeedLag) -> None:
        check = feed.name
        if feed.behind_s is None:
            said = "nothing was taken in so far"
            self.tell(Finding(check, "note", said, "see whether the server sends what it should"))
        elif feed.behind_s > FEED_LAG_WARNING_S:
            said = f"the last event was taken in {_ago(feed.behind_s)} ago"
            self.tell(Finding(check, "warning", said, "see the sender: nothing happened, or nothing arrives"))
        else:
            self.tell(Finding(check, "ok", f"the last event was taken in {_ago(feed.behind_s)} ago"))
        if feed.quarantined:
            said = f"{shown_size(feed.quarantined)} of entries could not be understood, and are in no log"
            cure = "read quarantine.jsonl in the feeds' folder; feed them in again when they are mended"
            self.tell(Finding(f"{check} quarantine", "warning", said, cure))

    def _host(self) -> str:
        try:
            return self.ledger.host
        except ConfigError:
            return f"pid{os.getpid()}"


def _ago(seconds: float) -> str:
    """A span as people need it: whole seconds, from a minute on whole minutes, from an hour on hours, from two days on days."""
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s * (2 if name == "d" else 1):
            return f"{seconds // unit_s:.0f} {name}"
    return f"{max(seconds, 0.0):.0f} s"


# --- what a bucket's settings mean to a ledger ---------------------------------------------------------------------------


def _versioning(status: str, endpoint: Endpoint) -> Finding:
    if status == "Enabled":
        return Finding("versioning", "ok", "enabled: what is replaced or deleted can be brought back")
    return Finding(
        "versioning",
        "warning",
        f"{status.lower() or 'off'}: evidence that somebody replaces or deletes is gone. That it is gone will be seen",
        "switch versioning on, with Object Lock (only a new bucket can have both on some servers)",
    )


def _object_lock(lock: ObjectLock) -> Finding:
    if not lock.enabled:
        return Finding(
            "object lock",
            "warning",
            "off: whoever has a key that may delete can destroy evidence",
            "make the ledger's bucket with Object Lock and a default retention in COMPLIANCE mode",
        )
    if not lock.mode:
        cure = "set a default retention in COMPLIANCE mode, or `retain_s` of the ledger"
        return Finding("object lock", "warning", "possible, and new objects are not held by default", cure)
    said = f"every version is held for {lock.days} days ({lock.mode})"
    if lock.mode == "GOVERNANCE":
        cure = "COMPLIANCE mode holds against every key; GOVERNANCE yields to s3:BypassGovernanceRetention"
        return Finding("object lock", "note", said, cure)
    return Finding("object lock", "ok", said)


LEDGER_JUDGES = Judges(_versioning, _object_lock, lifecycle)


def ledger_judges(retain_s: float) -> Judges:
    """Judges of a ledger's bucket whose objects are held by `retain_s` themselves, where that is not 0."""
    if not retain_s:
        return LEDGER_JUDGES

    def held(lock: ObjectLock) -> Finding:
        if lock.enabled and not lock.mode:
            return Finding(
                "object lock", "ok", f"what this host writes is held for {shown_duration(retain_s)} (COMPLIANCE)"
            )
        return _object_lock(lock)

    return Judges(_versioning, held, lifecycle)


def covered_versioning(url: str, status: str) -> Finding:
    """Of a bucket whose operations are recorded: what reconciling can see there."""
    if status == "Enabled":
        return Finding(f"covers {url}", "ok", "there, with versions")
    return Finding(
        f"covers {url}",
        "note",
        f"there, versioning {status.lower() or 'off'}: an overwrite that was itself overwritten leaves no trace to compare",
        "switch versioning on for the bucket",
    )
