"""What a storage's bucket, its settings and this node are good for: findings with their cures.

One rule: nothing is written but below `.bucketworks/probe/` of the storage's prefix, and that is removed again, whatever
happened in between; a crash leaves it to the next doctor. Only what was seen counts: what a server says that it can is asked
for, once, with small objects.

In a bucket with Object Lock probes are locked for seconds; one that cannot be removed yet is named, and hidden.
"""

import random as random_module
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from plugin.bucket import StorageBucket
from plugin.configuration import Storage, in_properties, neighbours
from plugin.layout import OWN
from plugin.lifecycle import rule_prefix, rules_for
from plugin.mount.library import check_device, find_library
from plugin.mount.process import is_ours
from plugin.protection import locks
from plugin.protocol import SOCKET_NAME
from s3core.bucket import Bucket, CopySource, ListedPart, ObjectFacts
from s3core.bucket_probe import conditional_puts, keys_below, read_back, remove_keys
from s3core.clock import Clock
from s3core.digests import Expected, digests_of, verdict
from s3core.errors import Corrupt, Denied, StoreError, Unsupported
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, exit_code_for, finding_of
from s3core.quantities import shown_size
from s3core.s3_control import LifecycleRule, ObjectLock
from s3core.s3_facts import Judges, examine_endpoint, lifecycle
from s3core.settings import Config, ConfigError
from s3core.write_options import ARCHIVE_CLASSES, Checksum, Retention, WriteOptions

PROBES = f"{OWN}/probe/"
OTHERS_AGE_S = 3600.0
"""What another node's doctor wrote is in use for so long at most."""
LOCK_S = 5.0
"""How long a probe is retained."""
PART_BYTES = 5 << 20
SOCKET_S = 2.0


@dataclass(frozen=True, slots=True)
class Node:
    """What this node has, as the rim found it. `fuse`: why FUSE cannot be used, None where it can. `space`: free bytes of the
    state directory's file system. `mounted`: whether the kernel has the storage's mount. `served`: whether somebody listens
    at the core's socket."""

    fuse: ConfigError | None
    space: int
    mounted: bool
    served: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    storage: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first fault, else OK."""
        return exit_code_for(self.findings)


def diagnose(
    storage: Storage,
    config: Config,
    bucket: StorageBucket,
    node: Node,
    others: Mapping[str, Storage],
    *,
    clock: Clock,
    random: random_module.Random,
    writing: bool = True,
    facts: Callable[[], list[Finding]] | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Examine it, telling `on_finding` as it goes. `others`: the node's other storages of ours by id. `facts` examines endpoint
    and bucket without writing; as S3 where it is None. Without `writing` nothing is written. What stores do is never raised."""
    doctor = _Doctor(storage, config, bucket, clock, random, on_finding)
    doctor.node(node)
    doctor.neighbours(others)
    found = (facts or (lambda: endpoint_facts(storage, config, clock)))()
    for finding in found:
        doctor.tell(finding)
    if exit_code_for(found) in (ExitCode.OK, ExitCode.FINDING) and writing:
        doctor.probe()
    return Diagnosis(storage.id, tuple(doctor.findings), doctor.figures)


def endpoint_facts(storage: Storage, config: Config, clock: Clock) -> list[Finding]:
    """Of the server and the bucket, without writing."""
    joined = storage.join(config)
    endpoint = joined.endpoint(storage.endpoint_name)
    return examine_endpoint(endpoint, storage.bucket, storage.prefix, clock, judges_for(storage))


def look_at_node(storage: Storage, config: Config) -> Node:
    """This node, without touching the mount, which may hang."""
    state = Path(config.pve.state_dir)
    there = next((one for one in (state, *state.parents) if one.exists()), Path("/"))
    return Node(
        fuse=_fuse(),
        space=shutil.disk_usage(there).free,
        mounted=is_ours(Path(storage.path)) if storage.path else False,
        served=_served(Path(config.pve.run_dir) / SOCKET_NAME),
    )


def _fuse() -> ConfigError | None:
    try:
        check_device()
        find_library()
    except ConfigError as error:
        return error
    return None


def _served(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
        client.settimeout(SOCKET_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


# --- what a bucket's settings mean for a storage ---------------------------------------------------------------------------


def judges_for(storage: Storage) -> Judges:
    return Judges(
        lambda status, endpoint: _versioning(storage, status),
        lambda lock: _object_lock(storage, lock),
        lambda rules, prefix: _lifecycle(storage, rules, prefix),
    )


def _versioning(storage: Storage, status: str) -> Finding:
    if locks(storage):
        if status == "Enabled":
            return Finding(
                "versioning", "ok", "enabled, as Object Lock needs; what is deleted is deleted with its versions"
            )
        cure = "make the bucket with Object Lock, which switches versioning on, or set bw-object-lock none"
        return Finding("versioning", "fault", f"{status.lower() or 'off'}, and bw-object-lock needs it", cure)
    if status:
        return Finding(
            "versioning",
            "warning",
            f"{status.lower()}: deleted and pruned backups stay as old versions, and are paid for",
            "add a lifecycle rule that expires noncurrent versions, or use a bucket without versioning",
        )
    return Finding("versioning", "ok", "off: what is deleted is gone")


def _object_lock(storage: Storage, lock: ObjectLock) -> Finding:
    if locks(storage) and not lock.enabled:
        return Finding(
            "object lock",
            "fault",
            f"the bucket has none, and bw-object-lock is {storage.object_lock}: uploads would be refused",
            "it is switched on when a bucket is made (at some providers later too); use such a bucket, or bw-object-lock none",
        )
    if lock.mode:
        said = f"the bucket itself holds every new object for {lock.days} days ({lock.mode.lower()}), sidecars and notes too"
        cure = "take the bucket's default retention away, and use bw-object-lock with bw-lock-days: that locks backups alone"
        return Finding("object lock", "warning", said, cure)
    if not locks(storage):
        said = "possible, not used (bw-object-lock none)" if lock.enabled else "off"
        return Finding("object lock", "ok", said)
    days = f"backups are locked for {storage.lock_days} days ({storage.object_lock})" if storage.lock_days else ""
    return Finding("object lock", "ok", "; ".join(filter(None, ("`protected` is a legal hold", days))))


def _lifecycle(storage: Storage, rules: list[LifecycleRule], prefix: str) -> Finding:
    wanted = {rule.name: rule for rule in rules_for(storage)}
    held = {rule.name: rule for rule in rules if rule.name.startswith(rule_prefix(storage))}
    if wanted != held:
        cure = f"pve-s3 lifecycle {storage.id} --apply"
        return Finding("lifecycle", "warning", f"our rules are not what the storage says ({len(held)} there)", cure)
    cold = [
        (rule, days, name)
        for rule in rules
        for days, name in rule.transitions
        if rule.enabled and name in ARCHIVE_CLASSES and rule.name not in wanted and _meets(rule.prefix, storage.prefix)
    ]
    if cold:
        rule, days, name = cold[0]
        said = f"rule {rule.name or '(unnamed)'} moves what is here to {name} after {days} days: it must be thawed to be read"
        return Finding("lifecycle", "warning", said, "keep the rule away from this prefix, or use bw-glacier-days")
    return lifecycle(rules, prefix)


def _meets(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


# --- the examination -------------------------------------------------------------------------------------------------------


class _Doctor:
    def __init__(
        self,
        storage: Storage,
        config: Config,
        bucket: StorageBucket,
        clock: Clock,
        random: random_module.Random,
        on_finding: Callable[[Finding], None],
    ) -> None:
        self.storage = storage
        self.config = config
        self.bucket = bucket
        # Probes are no volumes: how volumes are written is said with each.
        self.plain: Bucket = bucket.inner
        self.clock = clock
        self.random = random
        self.on_finding = on_finding
        self.findings: list[Finding] = []
        self.figures: dict[str, float] = {}
        self.probes = f"{storage.prefix}{PROBES}"
        self.place = f"{self.probes}{random.getrandbits(64):016x}/"
        self.body = random.randbytes(PART_BYTES)
        self.held: ObjectFacts | None = None

    def tell(self, finding: Finding) -> None:
        finding = replace(finding, cure=in_properties(finding.cure))
        self.findings.append(finding)
        self.on_finding(finding)

    # --- this node -----------------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        needed = self.config.pve.cache_bytes + self.config.pve.spool_bytes
        if node.space < self.config.pve.spool_bytes:
            said = (
                f"{shown_size(node.space)} are free in {self.config.pve.state_dir}, less than the spool of one upload"
            )
            self.tell(Finding("room", "fault", said, "make room, or lower spool_bytes of [pve]", ExitCode.LOCAL))
        elif node.space < needed:
            said = f"{shown_size(node.space)} are free in {self.config.pve.state_dir}; cache and spool may take"
            cure = "lower cache_bytes of [pve], or put state_dir on a larger disk"
            self.tell(Finding("room", "note", f"{said} {shown_size(needed)}", cure))
        else:
            self.tell(Finding("room", "ok", f"{shown_size(node.space)} are free for cache and spool"))
        if self.storage.type == "bucketfiles":
            if node.fuse is not None:
                self.tell(Finding("fuse", "fault", str(node.fuse.args[0]), node.fuse.hint, ExitCode.LOCAL))
            else:
                self.tell(Finding("fuse", "ok", "the device and libfuse3 are there"))
            cure = f"pvesm status; systemctl status bucketworks-mount@{self.storage.id}"
            self.tell(
                Finding("mount", "ok", f"at {self.storage.path}")
                if node.mounted
                else Finding("mount", "note", f"nothing is mounted at {self.storage.path}", cure)
            )
        self.tell(
            Finding("core", "ok", "somebody listens at its socket")
            if node.served
            else Finding(
                "core", "warning", "it does not run: the storage shows as inactive", "systemctl start bucketworks-pve"
            )
        )

    def neighbours(self, others: Mapping[str, Storage]) -> None:
        """Two storages in each other would list, count and prune each other's objects."""
        for other in neighbours(self.storage, others):
            said = f"storage {other.id} lies in the same place, or one in the other: {other.bucket}/{other.prefix}"
            self.tell(Finding("neighbours", "fault", said, "give each storage a bw-prefix of its own"))

    # --- the bucket, by writing ----------------------------------------------------------------------------

    def probe(self) -> None:
        if not self._asked("left over", self._remove_left_over):
            return
        try:
            if not self._asked("writes", lambda: read_back(self.bucket, f"{self.place}read/", "writes")):
                return
            for check, ask in (
                ("ranges", self._ranges),
                ("upload in parts", self._parts),
                ("unfinished uploads", self._uploads),
                ("copy of parts", self._copied_parts),
                ("conditional writes", self._conditions),
                ("storage class", self._storage_class),
                ("encryption", self._encryption),
                ("locking", self._locking),
            ):
                self._asked(check, ask)
        finally:
            self._asked("clean up", self._clean_up)

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

    def _remove_left_over(self) -> Finding | None:
        before = self.clock.time() - OTHERS_AGE_S
        left = [key for key, moment in keys_below(self.plain, self.probes).items() if moment < before]
        remove_keys(self.plain, left)
        if not left:
            return None
        return Finding("left over", "note", f"{len(left)} objects of a doctor that was broken off are removed")

    def _ranges(self) -> Finding:
        key, body = f"{self.place}ranges", bytes(range(256)) * 16
        self.bucket.put(key, body)
        for offset, length in ((0, 1), (4095, 1), (1000, 2000)):
            if self.bucket.get(key, offset=offset, length=length) != body[offset : offset + length]:
                return Finding("ranges", "fault", f"bytes {offset} to {offset + length - 1} came back as others")
        return Finding("ranges", "ok", "a part of an object is read by itself")

    def _parts(self) -> Finding:
        """As a backup is sent: with the options of volumes, proved afterwards."""
        key, options = f"{self.place}parts", self._options()
        bodies = [self.body, b"end"]
        made = [digests_of(body, options.checksum) for body in bodies]
        began = self.clock.monotonic()
        upload = self.plain.begin_upload(key, options=options)
        parts = [
            (number, self.plain.upload_part(key, upload, number, body, options=options, digests=digests))
            for number, (body, digests) in enumerate(zip(bodies, made, strict=True), 1)
        ]
        listed = {part.number: part.etag for part in self._listed_parts(key, upload)}
        self.plain.complete_upload(key, upload, parts, options=options, digests=dict(enumerate(made, 1)))
        self.figures["upload_5_mib_s"] = round(self.clock.monotonic() - began, 3)
        self.held = self.plain.head(key, customer_key=options.customer_key)
        size = sum(map(len, bodies))
        # ETags of parts that are MD5s are so of the whole, whatever encrypts.
        is_md5 = options.etag_is_md5 or [etag for _, etag in parts] == [digests.md5.hex() for digests in made]
        proof = verdict(self.held, Expected.of_parts(size, made), etag_is_md5=is_md5)
        if proof == "other":
            said = f"an upload of {size:,} bytes became an object of {self.held.size:,} with ETag {self.held.etag}"
            return Finding("upload in parts", "fault", f"{said}: not what its parts make", code=ExitCode.CORRUPT)
        if listed != dict(parts):
            said = "works, but its parts are not listed: an upload that was broken off begins again"
            return Finding("upload in parts", "warning", said)
        if proof == "size":
            said = "works; the server tells nothing that proves the bytes (ETags are no MD5s, checksums are not kept)"
            cure = "each part is compared as it arrives; for a proof of the whole use AES256 or no encryption by the server"
            return Finding("upload in parts", "note", said, cure)
        return Finding("upload in parts", "ok", "and what the server holds is proved by its digest")

    def _listed_parts(self, key: str, upload: str) -> Iterator[ListedPart]:
        try:
            yield from self.plain.list_parts(key, upload, customer_key=self._options().customer_key).parts
        except (Unsupported, Corrupt):
            return

    def _uploads(self) -> Finding:
        key = f"{self.place}unfinished"
        upload = self.plain.begin_upload(key)
        seen = any(one.upload_id == upload for one in self.plain.list_uploads(prefix=self.place).uploads)
        self.plain.abort_upload(key, upload)
        if any(one.upload_id == upload for one in self.plain.list_uploads(prefix=self.place).uploads):
            return Finding("unfinished uploads", "warning", "one that was aborted is still listed", _ABORT_CURE)
        if not seen:
            return Finding(
                "unfinished uploads", "warning", "are not listed, so nobody can clear them away", _ABORT_CURE
            )
        return Finding("unfinished uploads", "ok", "are listed and can be cleared away")

    def _copied_parts(self) -> Finding:
        """What a file needs that was renamed otherwise than foreseen, after its parts had left."""
        cure = "it works but for uploads whose name is not known from their first bytes: those are sent twice"
        if self.held is None:
            return Finding("copy of parts", "note", "not tried: there is nothing to copy")
        if not self.plain.properties.endpoint:
            return Finding("copy of parts", "note", "the server copies nothing by itself", cure)
        key, options = f"{self.place}copied", self._options()
        source = CopySource(self.plain.properties.name, self.held.key, customer_key=options.customer_key)
        upload = self.plain.begin_upload(key, options=options)
        try:
            etag = self.plain.copy_part(key, upload, 1, source, offset=0, length=PART_BYTES, options=options)
        except (Unsupported, Denied) as error:
            self.plain.abort_upload(key, upload)
            return Finding("copy of parts", "note", str(error), cure)
        made = {1: digests_of(self.body, options.checksum)}
        try:
            self.plain.complete_upload(key, upload, [(1, etag)], options=options, digests=made)
        except StoreError:
            self.plain.abort_upload(key, upload)
            raise
        if self.plain.get(key, customer_key=options.customer_key) != self.body:
            said = "what the server copied reads as other bytes: a renamed upload would be refused by its proof"
            return Finding("copy of parts", "warning", said, cure)
        return Finding("copy of parts", "ok", "the server copies by itself")

    def _conditions(self) -> Finding:
        broken = conditional_puts(self.bucket, f"{self.place}conditions/")
        if not broken:
            return Finding("conditional writes", "ok", "If-None-Match and If-Match are kept to by PUT")
        if self.storage.type == "bucketdisks":
            cure = "disks are fenced by them: use a bucket that keeps to them (on Ceph: one without versioning)"
            return Finding("conditional writes", "fault", broken, cure)
        cure = (
            "files do not need them: two nodes that write one name at once are told apart by what is there afterwards"
        )
        return Finding("conditional writes", "note", broken, cure)

    def _storage_class(self) -> Finding | None:
        wanted = self.storage.storage_class
        classes = [wanted] if wanted else []
        if self.storage.lifecycle:
            steps = (
                (self.storage.transition_days, self.storage.transition_class),
                (
                    self.storage.glacier_days,
                    self.storage.glacier_class,
                ),
            )
            classes += [name for days, name in steps if days]
        for name in classes:
            key = f"{self.place}class"
            try:
                self.plain.put(key, b"x", options=WriteOptions(storage_class=name).over(self._options()))
            except StoreError as error:
                if error.temporary:
                    raise
                cure = "use a class that the provider has (docs/plugin/providers.md), or none"
                return Finding("storage class", "fault", f"{name} is refused: {error}", cure)
            told = self.plain.head(key, customer_key=self._options().customer_key).storage_class or "STANDARD"
            if told != name:
                cure = "use a class that the provider has (docs/plugin/providers.md), or none"
                return Finding("storage class", "warning", f"asked for {name}, the server keeps it as {told}", cure)
        if wanted in ARCHIVE_CLASSES:
            said = f"{wanted}: a backup cannot be read, compared or restored before it is thawed, which takes hours"
            return Finding("storage class", "warning", said, "use bw-glacier-days in place of bw-storage-class")
        return Finding("storage class", "ok", f"the server has {', '.join(classes)}") if classes else None

    def _encryption(self) -> Finding | None:
        sse, options = self.storage.sse, self._options()
        if not sse:
            return None
        key = f"{self.place}sealed"
        self.plain.put(key, b"content", options=options)
        kept = self.plain.head(key, customer_key=options.customer_key).kept
        if options.customer_key is not None:
            try:
                self.plain.get(key)
            except StoreError as error:
                if error.temporary:
                    raise
                return Finding("encryption", "ok", "SSE-C: without the key the server shows nothing; keep a copy of it")
            said = "an object that was put with a customer's key is read without it: the server ignored the key"
            return Finding("encryption", "fault", said, _SEAL_CURE)
        if kept.encryption != sse:
            said = f"asked for {sse}, the server says {kept.encryption or 'nothing'}: it is ignored, or not told"
            return Finding("encryption", "fault", said, _SEAL_CURE)
        return Finding("encryption", "ok", f"{sse}, as the server says")

    def _locking(self) -> Finding | None:
        """With an object that is locked for seconds, so that it can go again."""
        if not locks(self.storage):
            return None
        key = f"{self.place}locked"
        written = self.plain.put(key, b"x")
        self.plain.set_legal_hold(key, True, version_id=written.version_id)
        if not self._refuses(key, written.version_id):
            return Finding("locking", "fault", "a version under a legal hold was deleted", _LOCK_CURE)
        self.plain.set_legal_hold(key, False, version_id=written.version_id)
        moment = self.plain.head(key).modified
        self.plain.delete_version(key, written.version_id)
        if self.storage.lock_days:
            options = WriteOptions(retention=Retention("GOVERNANCE", moment + LOCK_S)).over(self._options())
            upload = self.plain.begin_upload(key, options=options)
            parts = [(1, self.plain.upload_part(key, upload, 1, b"x", options=options))]
            written = self.plain.complete_upload(key, upload, parts, options=options)
            kept = self.plain.head(key, customer_key=options.customer_key).kept
            if kept.retention is None:
                said = "an upload was to be retained, and HEAD tells no retention"
                cure = "the key needs s3:PutObjectRetention and s3:GetObjectRetention"
                return Finding("locking", "fault", said, cure, ExitCode.DENIED)
            if not self._refuses(key, written.version_id):
                return Finding("locking", "fault", "a version was deleted in its retention", _LOCK_CURE)
            self.clock.sleep(LOCK_S + 1)
            self.plain.delete_version(key, written.version_id)
        return Finding("locking", "ok", "what is held cannot be deleted, and what is let go can")

    def _refuses(self, key: str, version_id: str) -> bool:
        try:
            self.plain.delete_version(key, version_id)
        except StoreError as error:
            if error.temporary:
                raise
            return True
        return False

    def _options(self) -> WriteOptions:
        """As volumes are written, but in the bucket's default class: colder ones are paid for by the month."""
        options = self.bucket.upload_options
        sums = self.plain.properties.checksums
        checksum: Checksum = "crc32" if not options.etag_is_md5 and "crc32" in sums else ""
        return WriteOptions(
            encryption=options.encryption,
            kms_key_id=options.kms_key_id,
            customer_key=options.customer_key,
            checksum=checksum,
        )

    def _clean_up(self) -> Finding | None:
        """Also versions, where the storage uses Object Lock: they are ours, and small."""
        remove_keys(self.plain, keys_below(self.plain, self.place))
        if not locks(self.storage):
            return None
        left = 0
        for row in list(self.plain.list_versions(prefix=self.place).versions):
            try:
                self.plain.delete_version(row.key, row.version_id)
            except Denied:
                left += 1
        if not left:
            return None
        return Finding("clean up", "note", f"{left} versions of probes are kept by their lock, below {self.place}")


_ABORT_CURE = "add a lifecycle rule with AbortIncompleteMultipartUpload (bw-lifecycle 1)"
_SEAL_CURE = "use bw-encryption, which seals on this node, or another server"
_LOCK_CURE = "this server does not keep to Object Lock; use another one for backups that must not go"
