"""What an endpoint and a bucket say about themselves: connection, certificate, clock, region, keys, versions, locks.

One rule: nothing is written, and every answer, a refusal too, becomes a finding that names its cure. What the data path
honours is `probe`'s to ask.
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509

from s3core.clock import Clock
from s3core.endpoint import PRESETS, REGION_AUTO, Address, Endpoint, normalise_fingerprint, shown_fingerprint
from s3core.errors import Denied, Misconfigured, NotFound, StoreError, Unavailable
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, finding_of
from s3core.quantities import shown_duration
from s3core.s3_control import FIRST_GUESS_REGION, LifecycleRule, ObjectLock, S3Control
from s3core.s3_faults import served_region
from s3core.s3_http import Answer, Transport, peer_certificate
from s3core.s3_requests import skew_of

#: S3 refuses requests signed more than 15 minutes off (RequestTimeTooSkewed); half a minute off is worth a word.
SKEW_FAULT_S = 15 * 60
SKEW_WARNING_S = 30
EXPIRY_WARNING_DAYS = 14


@dataclass(frozen=True, slots=True)
class Judges:
    """What a bucket's settings mean, which depends on what the bucket is for. `versioning` is given the status ("Enabled",
    "Suspended", ""), `lifecycle` the rules and the prefix that is used. Each gives the finding of its name."""

    versioning: Callable[[str, Endpoint], Finding]
    object_lock: Callable[[ObjectLock], Finding]
    lifecycle: Callable[[list[LifecycleRule], str], Finding]


def examine_endpoint(
    endpoint: Endpoint, bucket: str, prefix: str, clock: Clock, judges: Judges | None = None
) -> list[Finding]:
    """Everything that can be seen without writing. `bucket` may be empty: then the buckets are listed. After a fault
    that everything else depends on, the rest is left out. `judges` of the bucket's settings; as for volumes where none
    are given."""
    return list(_examine(endpoint, bucket, prefix, clock, judges or VOLUME_JUDGES))


def _examine(endpoint: Endpoint, bucket: str, prefix: str, clock: Clock, judges: Judges) -> Iterator[Finding]:
    region = FIRST_GUESS_REGION if endpoint.region == REGION_AUTO else endpoint.region
    service = endpoint.address("", region)
    try:
        transport = Transport(endpoint)
    except StoreError as error:
        yield finding_of("connection", error)
        return
    with closing(transport):
        try:
            _ask(transport, service)
            began, began_s = clock.time(), clock.monotonic()
            answer = _ask(transport, service)
            elapsed_s = clock.monotonic() - began_s
        except StoreError as error:
            yield finding_of("connection", error)
            return
        yield Finding("connection", "ok", f"{service.origin} answers in {shown_duration(elapsed_s)}")
        yield from _certificate(endpoint, service, clock.time())
        yield from _clock(answer, began + elapsed_s / 2)
        if bucket:
            yield from _address(transport, endpoint, bucket, region)
    with closing(S3Control(endpoint, clock=clock)) as control:
        yield from _bucket(control, endpoint, bucket, prefix, judges) if bucket else _buckets(control, endpoint)


def _ask(transport: Transport, address: Address) -> Answer:
    return transport.send("GET", address, f"{address.path}/", {"accept": "*/*"}, mutating=False)


def _certificate(endpoint: Endpoint, address: Address, now: float) -> Iterator[Finding]:
    if not address.tls:
        yield Finding(
            "certificate",
            "note",
            "plain http: keys are not sent, but data travels readable and can be changed on the way",
            "use https:// in the url on any network you do not own",
        )
        return
    if endpoint.proxy:
        yield Finding("certificate", "ok", "verified, behind the proxy")
        return
    try:
        encoded = peer_certificate(address.hostname, address.port, endpoint.connect_timeout_s)
    except OSError as error:
        yield Finding("certificate", "warning", f"verified, but could not be fetched a second time: {error}")
        return
    shown = shown_fingerprint(sha256(encoded).hexdigest())
    ends = x509.load_der_x509_certificate(encoded).not_valid_after_utc
    days = (ends - datetime.datetime.fromtimestamp(now, datetime.UTC)).days
    trusted = "pinned" if endpoint.fingerprint else f"signed by {endpoint.ca_file or 'an authority of this system'}"
    said = f"{trusted}, valid until {ends:%Y-%m-%d}, SHA-256 {shown}"
    if endpoint.fingerprint and normalise_fingerprint(endpoint.fingerprint) != sha256(encoded).hexdigest():
        said = f"{said}, which changes between connections"
    if days < EXPIRY_WARNING_DAYS:
        cure = "renew it at the server" + (", then set the new fingerprint" if endpoint.fingerprint else "")
        yield Finding("certificate", "warning", said, cure)
    else:
        yield Finding("certificate", "ok", said)


def _clock(answer: Answer, here: float) -> Iterator[Finding]:
    skew_s = skew_of(answer, here)
    if skew_s is None:
        yield Finding("clock", "note", "the server does not say what time it is")
        return
    if abs(skew_s) <= 2:
        yield Finding("clock", "ok", "agrees with the server's")
        return
    said = f"this host's clock is {shown_duration(abs(skew_s))} {'ahead of' if skew_s > 0 else 'behind'} the server's"
    cure = "set the clock of the one that is wrong (timedatectl set-ntp true)"
    if abs(skew_s) >= SKEW_FAULT_S:
        yield Finding("clock", "fault", said, f"{cure}; requests more than 15 minutes off are refused")
    else:
        yield Finding("clock", "warning" if abs(skew_s) >= SKEW_WARNING_S else "note", said, cure)


def _address(transport: Transport, endpoint: Endpoint, bucket: str, region: str) -> Iterator[Finding]:
    address = endpoint.address(bucket, region)
    virtual = endpoint.virtual_hosted(bucket)
    style = "virtual (the bucket in the host name)" if virtual else "path (the bucket in the path)"
    try:
        answer = _ask(transport, address)
    except (Unavailable, Misconfigured) as error:
        found = finding_of("addressing", error)
        if virtual:
            cure = f'set addressing = "path" for endpoint {endpoint.name}: the server answers, but not under that name'
            found = Finding("addressing", "fault", found.said, cure, ExitCode.CONFIGURATION)
        yield found
        return
    yield Finding("addressing", "ok", f"{style}: {address.origin}{address.path}")
    named = served_region(answer)
    if not named:
        said = "the server names none; " if endpoint.region == REGION_AUTO else ""
        yield Finding("region", "ok", f"{said}requests are signed for {region}")
    elif endpoint.region == REGION_AUTO:
        yield Finding("region", "ok", f"auto: the server says {named}")
    elif named == endpoint.region:
        yield Finding("region", "ok", named)
    else:
        yield Finding(
            "region",
            "fault",
            f"the bucket is in {named}, the endpoint is set to {endpoint.region}",
            f'set region = "{named}" (or "auto") for endpoint {endpoint.name}',
            ExitCode.CONFIGURATION,
        )


def _buckets(control: S3Control, endpoint: Endpoint) -> Iterator[Finding]:
    try:
        buckets = control.list_buckets()
    except Denied as error:
        if "s3:ListAllMyBuckets" not in error.hint:
            yield finding_of("keys", error)
            return
        said = "the server knows the key or was not asked to check it; it may not list all buckets"
        yield Finding("keys", "note", said, f"name a bucket: bucketworks endpoint test {endpoint.name} BUCKET")
    except StoreError as error:
        yield finding_of("keys", error)
    else:
        names = ", ".join(bucket.name for bucket in buckets[:10]) + (", ..." if len(buckets) > 10 else "")
        count = "1 bucket" if len(buckets) == 1 else f"{len(buckets)} buckets"
        yield Finding("keys", "ok", f"accepted; {count}" + (f": {names}" if names else ""))


def _bucket(control: S3Control, endpoint: Endpoint, bucket: str, prefix: str, judges: Judges) -> Iterator[Finding]:
    try:
        exists = control.bucket_exists(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")
    except StoreError as error:
        yield finding_of("bucket", error)
        return
    if not exists:
        cure = "check its name and region, or create it"
        yield Finding("bucket", "fault", f"bucket {bucket} does not exist", cure, ExitCode.NOT_FOUND)
        return
    yield Finding("bucket", "ok", f"{bucket} is there and may be listed")
    yield from _told("versioning", lambda: judges.versioning(control.versioning(bucket), endpoint))
    yield from _told("object lock", lambda: judges.object_lock(_lock_of(control, bucket)))
    yield from _told("lifecycle", lambda: judges.lifecycle(control.lifecycle(bucket), prefix))


def _told(check: str, ask: Callable[[], Finding]) -> Iterator[Finding]:
    """What the server tells about a bucket's settings; that it does not is no fault, only something not known."""
    try:
        yield ask()
    except Denied as error:
        yield Finding(check, "warning", "the server does not let us see it", error.hint)
    except StoreError as error:
        yield Finding(check, "note", f"not known: {error}")


def _versioning(status: str, endpoint: Endpoint) -> Finding:
    if not status:
        return Finding("versioning", "ok", "off")
    conditions = PRESETS[endpoint.preset].versioned_conditions
    said = f"{status.lower()}: what is deleted or replaced stays, and is paid for, until a lifecycle rule removes it"
    cure = "add a rule that expires noncurrent versions, or use a bucket without versioning for volumes"
    if conditions == "no" and status == "Enabled":
        said += f"; {endpoint.preset} is known to ignore conditional writes in versioned buckets"
        cure = "keep volumes and ledgers in a bucket without versioning"
    return Finding("versioning", "warning", said, cure)


def _lock_of(control: S3Control, bucket: str) -> ObjectLock:
    try:
        return control.object_lock(bucket)
    except NotFound:
        return ObjectLock(enabled=False)


def _object_lock(lock: ObjectLock) -> Finding:
    if not lock.enabled:
        return Finding("object lock", "ok", "off")
    if not lock.mode:
        return Finding("object lock", "ok", "possible; new objects are not held by default")
    return Finding(
        "object lock",
        "warning",
        f"every new object is held for {lock.days} days ({lock.mode}): good for ledgers and backups, but what a volume"
        " gives up stays for that long",
        "keep volumes in a bucket without default retention",
    )


def expiring(rules: list[LifecycleRule], prefix: str) -> list[LifecycleRule]:
    """Those that delete current objects below `prefix`."""
    stem = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return [
        rule
        for rule in rules
        if rule.enabled and rule.expire_days and (rule.prefix.startswith(stem) or stem.startswith(rule.prefix))
    ]


def lifecycle(rules: list[LifecycleRule], prefix: str) -> Finding:
    """Of a bucket whose objects are all needed."""
    deleting = expiring(rules, prefix)
    if deleting:
        rule = deleting[0]
        return Finding(
            "lifecycle",
            "fault",
            f"rule {rule.name or '(unnamed)'} deletes objects under {rule.prefix or 'the whole bucket'!r} after"
            f" {rule.expire_days} days: they are live data",
            "remove the rule or keep it away from this prefix; rules for noncurrent versions and unfinished uploads may stay",
        )
    if not any(rule.enabled and rule.abort_uploads_days for rule in rules):
        cure = "add AbortIncompleteMultipartUpload after some days"
        return Finding("lifecycle", "note", "no rule clears away unfinished uploads", cure)
    return Finding("lifecycle", "ok", "deletes no live data")


VOLUME_JUDGES = Judges(_versioning, _object_lock, lifecycle)
