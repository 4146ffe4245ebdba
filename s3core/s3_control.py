"""The control plane of an endpoint through boto3: buckets, versioning, Object Lock, lifecycle rules.

One rule: the only module that imports boto3, and it does so on first use, because that costs a tenth of a second
and 40 MB. Its requests go over our own connections (`s3_http`), so that a pinned fingerprint, a CA file and a
proxy hold for it as they do for data: boto3 by itself cannot pin a certificate.
"""

import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import urllib3

from s3core.clock import Clock, SystemClock
from s3core.endpoint import REGION_AUTO, Address, Endpoint
from s3core.errors import Misconfigured, NotFound, StoreError
from s3core.s3_faults import Act, Place, fault, served_region
from s3core.s3_http import Answer, Transport
from s3core.s3_xml import ErrorBody

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client

FIRST_GUESS_REGION = "us-east-1"
_READS = ("Head", "Get", "List")


@dataclass(frozen=True, slots=True)
class BucketInfo:
    name: str
    created: float
    """Unix seconds, 0.0 where the server does not say."""


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """Whether a bucket can hold objects against deletion, and what it does to new ones by default."""

    enabled: bool
    mode: str = ""
    """GOVERNANCE, COMPLIANCE or empty (no default retention)."""
    days: int = 0


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """What the server does by itself below `prefix`; zero days: never. `transitions`: days and storage class, ascending.
    `larger_than`: bytes, 0 for all; not every server knows it."""

    name: str
    prefix: str = ""
    expire_days: int = 0
    expire_noncurrent_days: int = 0
    abort_uploads_days: int = 0
    enabled: bool = True
    transitions: tuple[tuple[int, str], ...] = ()
    larger_than: int = 0


class S3Control:
    """Administers the buckets of one endpoint. Errors are those of the store port, `key` empty."""

    def __init__(self, endpoint: Endpoint, *, clock: Clock | None = None) -> None:
        self._endpoint = endpoint
        self._clock = clock or SystemClock()
        self._region = FIRST_GUESS_REGION if endpoint.region == REGION_AUTO else endpoint.region
        self._transport = Transport(endpoint)
        self._lock = threading.Lock()
        self._clients: dict[str, S3Client] = {}  # by region; under _lock

    def list_buckets(self) -> list[BucketInfo]:
        answer = self._call("ListBuckets", "s3:ListAllMyBuckets", "")
        return [
            BucketInfo(item["Name"], item["CreationDate"].timestamp() if "CreationDate" in item else 0.0)
            for item in answer.get("Buckets", [])
        ]

    def bucket_exists(self, bucket: str, prefix: str = "") -> bool:
        """Denied when it exists and belongs to somebody else (or nobody may say). A key that may list a part of the bucket
        only needs that part named."""
        try:
            # A listing of nothing, where others use HEAD: its refusals say why.
            self._call("ListObjectsV2", "s3:ListBucket", bucket, MaxKeys=0, Prefix=prefix)
        except NotFound:
            return False
        return True

    def create_bucket(self, bucket: str, *, object_lock: bool = False) -> None:
        """Done also when the bucket is there and ours already."""
        options: dict[str, Any] = {"ObjectLockEnabledForBucket": True} if object_lock else {}
        if self._endpoint.preset == "aws" and self._region != FIRST_GUESS_REGION:
            options["CreateBucketConfiguration"] = {"LocationConstraint": self._region}
        self._call("CreateBucket", "s3:CreateBucket", bucket, **options)

    def delete_bucket(self, bucket: str) -> None:
        """It must be empty, or the server refuses."""
        self._call("DeleteBucket", "s3:DeleteBucket", bucket)

    def versioning(self, bucket: str) -> str:
        """ "Enabled", "Suspended" or "" (never was)."""
        status: str = self._call("GetBucketVersioning", "s3:GetBucketVersioning", bucket).get("Status", "")
        return status

    def set_versioning(self, bucket: str, enabled: bool) -> None:
        configuration = {"Status": "Enabled" if enabled else "Suspended"}
        self._call("PutBucketVersioning", "s3:PutBucketVersioning", bucket, VersioningConfiguration=configuration)

    def object_lock(self, bucket: str) -> ObjectLock:
        try:
            answer = self._call("GetObjectLockConfiguration", "s3:GetBucketObjectLockConfiguration", bucket)
        except StoreError as error:
            if "ObjectLockConfigurationNotFound" in str(error):
                return ObjectLock(enabled=False)
            raise
        configuration = answer.get("ObjectLockConfiguration", {})
        retention = configuration.get("Rule", {}).get("DefaultRetention", {})
        return ObjectLock(
            enabled=configuration.get("ObjectLockEnabled") == "Enabled",
            mode=retention.get("Mode", ""),
            days=retention.get("Days", 0) or 365 * retention.get("Years", 0),
        )

    def set_object_lock(self, bucket: str, mode: str, days: int) -> None:
        """Default retention for new objects; the bucket must have been created with Object Lock."""
        rule = {"DefaultRetention": {"Mode": mode, "Days": days}}
        self._call(
            "PutObjectLockConfiguration",
            "s3:PutBucketObjectLockConfiguration",
            bucket,
            ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
        )

    def lifecycle(self, bucket: str) -> list[LifecycleRule]:
        return [_rule_from(item) for item in self._raw_lifecycle(bucket)]

    def _raw_lifecycle(self, bucket: str) -> list[dict[str, Any]]:
        try:
            answer = self._call("GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration", bucket)
        except StoreError as error:
            if "NoSuchLifecycleConfiguration" in str(error):
                return []
            raise
        return list(answer.get("Rules", []))

    def set_lifecycle(self, bucket: str, rules: list[LifecycleRule]) -> None:
        """Replaces all rules of the bucket; none at all removes them."""
        if not rules:
            self._call("DeleteBucketLifecycle", "s3:PutLifecycleConfiguration", bucket)
            return
        configuration = {"Rules": [_rule_to(rule) for rule in rules]}
        self._call(
            "PutBucketLifecycleConfiguration",
            "s3:PutLifecycleConfiguration",
            bucket,
            LifecycleConfiguration=configuration,
        )

    def merge_lifecycle(self, bucket: str, rules: list[LifecycleRule], *, own: str) -> bool:
        """`rules`, whose names begin with `own`, in place of those of such names; all others stay as they are, with what
        `LifecycleRule` does not know of too. Whether something was changed: what is so already is not written. The server
        takes all rules at once and on no condition: of two that change rules in the same moment one wins; looking again
        (`lifecycle`) tells. ValueError for a rule of another name."""
        if any(not rule.name.startswith(own) for rule in rules):
            raise ValueError(f"rules of ours are called {own}...")
        held = self._raw_lifecycle(bucket)
        mine = [_rule_from(item) for item in held if item.get("ID", "").startswith(own)]
        if sorted(mine, key=lambda rule: rule.name) == sorted(rules, key=lambda rule: rule.name):
            return False
        others = [_kept_rule(item) for item in held if not item.get("ID", "").startswith(own)]
        merged = [*others, *map(_rule_to, rules)]
        if merged:
            self._call(
                "PutBucketLifecycleConfiguration",
                "s3:PutLifecycleConfiguration",
                bucket,
                LifecycleConfiguration={"Rules": merged},
            )
        else:
            self._call("DeleteBucketLifecycle", "s3:PutLifecycleConfiguration", bucket)
        return True

    def client(self, region: str = "") -> "S3Client":
        """The boto3 client itself, over our connections, for what is not wrapped here."""
        with self._lock:
            name = region or self._region
            if name not in self._clients:
                self._clients[name] = self._new_client(name)
            return self._clients[name]

    def close(self) -> None:
        self._transport.close()

    # --- requests ----------------------------------------------------------------------------------------

    def _call(self, operation: str, permission: str, bucket: str, **options: Any) -> Mapping[str, Any]:
        """One operation by its name in the API reference; with region `auto` again where the server says."""
        if bucket:
            options["Bucket"] = bucket
        region = self._region
        try:
            return self._call_in(region, operation, permission, bucket, options)
        except _WrongRegion as wrong:
            if self._endpoint.region != REGION_AUTO or wrong.region == region:
                raise wrong.error from None
            self._region = region = wrong.region
        try:
            return self._call_in(region, operation, permission, bucket, options)
        except _WrongRegion as wrong:
            raise wrong.error from None

    def _call_in(
        self, region: str, operation: str, permission: str, bucket: str, options: dict[str, Any]
    ) -> Mapping[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        client = self.client(region)
        method = next(name for name, api_name in client.meta.method_to_api_mapping.items() if api_name == operation)
        try:
            result: Mapping[str, Any] = getattr(client, method)(**options)
        except ClientError as refusal:
            act = Act(operation, permission, on_bucket=True, mutating=not operation.startswith(_READS))
            place = Place(self._endpoint, self._endpoint.address(bucket, region), bucket, region)
            answer, body = _refusal(refusal)
            error = fault(answer, act, place, "", self._clock.time(), body)
            named = served_region(answer, body)
            if isinstance(error, Misconfigured) and named:
                raise _WrongRegion(named, error) from refusal
            raise error from refusal
        except ParamValidationError as error:
            raise ValueError(f"{operation}: {error}") from error
        except BotoCoreError as error:
            raise Misconfigured(f"{operation}: {error}") from error
        return result

    def _new_client(self, region: str) -> "S3Client":
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        endpoint = self._endpoint
        credentials = endpoint.credentials
        address = endpoint.address("", region)
        config = Config(
            region_name=region,
            signature_version=UNSIGNED if credentials.anonymous else "s3v4",
            s3={"addressing_style": "virtual" if endpoint.virtual_hosted("bucket") else "path"},
            # Ceph and others refuse the checksum trailer that boto3 would add on its own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": 1},
        )
        session = boto3.session.Session(
            aws_access_key_id=credentials.access_key or None,
            aws_secret_access_key=credentials.secret_key or None,
            aws_session_token=credentials.session_token or None,
            region_name=region,
        )
        client = session.client("s3", endpoint_url=address.origin + address.path, config=config)
        # The first handler that returns an answer has sent the request; the annotation does not know that.
        client.meta.events.register("before-send.s3", cast(Callable[..., None], self._send))
        return client

    def _send(self, request: "AWSPreparedRequest", **_: Any) -> "AWSResponse":
        """Stands in for botocore's own sending; what it raises reaches the caller as it is."""
        from botocore.awsrequest import AWSResponse

        parts = urlsplit(request.url)
        tls = parts.scheme == "https"
        address = Address(tls, parts.hostname or "", parts.port or (443 if tls else 80), "")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            name: value.decode() if isinstance(value, bytes) else str(value) for name, value in request.headers.items()
        }
        body = request.body
        if body is not None and not isinstance(body, bytes | bytearray):
            raise TypeError(f"control requests carry bytes, not {type(body).__name__}; data goes through S3Store")
        answer = self._transport.send(
            request.method,
            address,
            target,
            headers,
            [body] if body else None,
            mutating=request.method not in ("GET", "HEAD"),
        )
        raw = urllib3.HTTPResponse(io.BytesIO(answer.body), status=answer.status, preload_content=False)
        return AWSResponse(request.url, answer.status, cast(Any, answer.headers), raw)


class _WrongRegion(Exception):
    def __init__(self, region: str, error: StoreError) -> None:
        super().__init__(region)
        self.region = region
        self.error = error


def _refusal(error: "ClientError") -> tuple[Answer, ErrorBody]:
    """What botocore made of a refusal, as our own reader would have it."""
    metadata, said = error.response.get("ResponseMetadata", {}), cast(dict[str, str], error.response.get("Error", {}))
    code = said.get("Code", "")
    # Without a body botocore puts the status in the code's place.
    body = ErrorBody(
        code="" if code.isdecimal() else code,
        message=said.get("Message") or "",
        region=said.get("Region", ""),
        endpoint=said.get("Endpoint", ""),
        server_time=said.get("ServerTime", ""),
    )
    return Answer(metadata.get("HTTPStatusCode", 0), metadata.get("HTTPHeaders", {}), b""), body


def _rule_from(item: Mapping[str, Any]) -> LifecycleRule:
    conditions = item.get("Filter", {})
    conditions = {**conditions, **conditions.get("And", {})}
    return LifecycleRule(
        name=item.get("ID", ""),
        prefix=conditions.get("Prefix", item.get("Prefix", "")),
        expire_days=item.get("Expiration", {}).get("Days", 0),
        expire_noncurrent_days=item.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays", 0),
        abort_uploads_days=item.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation", 0),
        enabled=item.get("Status") == "Enabled",
        transitions=tuple(
            sorted((change.get("Days", 0), change["StorageClass"]) for change in item.get("Transitions", []))
        ),
        larger_than=conditions.get("ObjectSizeGreaterThan", 0),
    )


def _kept_rule(item: dict[str, Any]) -> dict[str, Any]:
    """A rule of somebody else as it may be put back: Ceph answers a filter of several conditions without the And that it, and
    S3, want around them."""
    conditions = item.get("Filter", {})
    if len(conditions) < 2:
        return item
    joined = {name: value for name, value in conditions.items() if name not in ("Tag", "And")}
    tags = [conditions["Tag"]] if "Tag" in conditions else []
    return {**item, "Filter": {"And": {**conditions.get("And", {}), **joined, **({"Tags": tags} if tags else {})}}}


def _rule_to(rule: LifecycleRule) -> dict[str, Any]:
    conditions: dict[str, Any] = {"Prefix": rule.prefix}
    if rule.larger_than:
        conditions = {"And": {**conditions, "ObjectSizeGreaterThan": rule.larger_than}}
    item: dict[str, Any] = {
        "ID": rule.name,
        "Filter": conditions,
        "Status": "Enabled" if rule.enabled else "Disabled",
    }
    if rule.expire_days:
        item["Expiration"] = {"Days": rule.expire_days}
    if rule.expire_noncurrent_days:
        item["NoncurrentVersionExpiration"] = {"NoncurrentDays": rule.expire_noncurrent_days}
    if rule.transitions:
        item["Transitions"] = [{"Days": days, "StorageClass": name} for days, name in rule.transitions]
    if rule.abort_uploads_days:
        item["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": rule.abort_uploads_days}
    return item
