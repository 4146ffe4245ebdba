"""How an object is to be kept: storage class, encryption by the server, Object Lock, checksum; as values and as headers.

One rule: an option that the server does not honour is an error or is seen in HEAD, never a silent wish: what was asked for
and what HEAD answers are the same words (`s3core.bucket.ObjectFacts`).
Source: Amazon S3 API reference, PutObject and CreateMultipartUpload; "Using server-side encryption with customer-provided
keys (SSE-C)"; "Locking objects with Object Lock".
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import md5
from typing import Literal, get_args

Checksum = Literal["", "crc32", "sha256"]
Encryption = Literal["", "AES256", "aws:kms", "aws:kms:dsse"]
LockMode = Literal["GOVERNANCE", "COMPLIANCE"]
RestoreTier = Literal["Standard", "Bulk", "Expedited"]

CUSTOMER_KEY_BYTES = 32
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects must be restored before they are read. GLACIER_IR is read at once."""


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """A key for SSE-C: the server encrypts with it and forgets it. Who loses it loses the object. ValueError unless it has 32
    bytes."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != CUSTOMER_KEY_BYTES:
            raise ValueError(f"a customer key has {CUSTOMER_KEY_BYTES} bytes, not {len(self.key)}")

    @property
    def md5(self) -> str:
        """What the server tells of the key it wants: the Base64 MD5."""
        return base64.b64encode(md5(self.key, usedforsecurity=False).digest()).decode()

    def headers(self, *, of_source: bool = False) -> dict[str, str]:
        """For a request on the object; `of_source`, on what a copy reads."""
        stem = "x-amz-copy-source-server-side-encryption-customer-" if of_source else _CUSTOMER
        return {
            stem + "algorithm": "AES256",
            stem + "key": base64.b64encode(self.key).decode(),
            stem + "key-md5": self.md5,
        }


@dataclass(frozen=True, slots=True)
class Retention:
    """Until when (Unix seconds) a version cannot be deleted. GOVERNANCE: not without s3:BypassGovernanceRetention.
    COMPLIANCE: by nobody, and it cannot be shortened."""

    mode: LockMode
    until: float

    def __post_init__(self) -> None:
        if self.mode not in get_args(LockMode):
            raise ValueError(f"a retention's mode is GOVERNANCE or COMPLIANCE, not {self.mode!r}")

    @property
    def until_text(self) -> str:
        """Whole seconds, rounded up: never shorter than asked for."""
        return datetime.fromtimestamp(-(-self.until // 1), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Give the same to every call of one upload. "" and None: as the bucket has it by default. `checksum` is sent with
    the bytes and kept by servers that have checksums (`BucketProperties.checksums`); to others it is not sent.
    ValueError for what no server takes."""

    storage_class: str = ""
    encryption: Encryption = ""
    """By the server, with its own key (AES256) or one of its key service."""
    kms_key_id: str = ""
    customer_key: CustomerKey | None = None
    retention: Retention | None = None
    legal_hold: bool = False
    checksum: Checksum = ""

    def __post_init__(self) -> None:
        if self.encryption not in get_args(Encryption):
            raise ValueError(f"encryption is AES256, aws:kms or aws:kms:dsse, not {self.encryption!r}")
        if self.checksum not in get_args(Checksum):
            raise ValueError(f"checksum is crc32 or sha256, not {self.checksum!r}")
        if self.kms_key_id and not self.encryption.startswith("aws:kms"):
            raise ValueError("a KMS key id needs the encryption aws:kms")
        if self.customer_key and self.encryption:
            raise ValueError("a customer key (SSE-C) and encryption by the server exclude each other")
        for name in ("storage_class", "kms_key_id"):
            value = getattr(self, name)
            if not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
                raise ValueError(f"{name} must be printable ASCII without blanks: {value!r}")

    @property
    def etag_is_md5(self) -> bool:
        """Whether S3 promises that the ETag is the MD5 of the bytes (API reference, "Object": ETag). Servers other than AWS may
        give it under a key all the same."""
        return self.customer_key is None and not self.encryption.startswith("aws:kms")

    def over(self, defaults: "WriteOptions") -> "WriteOptions":
        """These options, and `defaults` where they say nothing. Encryption is one choice of three fields."""
        if self == NO_OPTIONS:
            return defaults
        chosen = {name: getattr(self, name) for name in _ALONE if getattr(self, name)}
        if self.encryption or self.customer_key:
            chosen |= {"encryption": self.encryption, "kms_key_id": self.kms_key_id, "customer_key": self.customer_key}
        return replace(defaults, **chosen)


NO_OPTIONS = WriteOptions()
_ENCRYPTED_BY = ("encryption", "kms_key_id", "customer_key")
_ALONE = tuple(option.name for option in fields(WriteOptions) if option.name not in _ENCRYPTED_BY)
_CUSTOMER = "x-amz-server-side-encryption-customer-"


def option_headers(options: WriteOptions) -> dict[str, str]:
    """For PutObject, CopyObject and CreateMultipartUpload; without what belongs to the checksum."""
    headers = customer_headers(options.customer_key)
    if options.storage_class:
        headers["x-amz-storage-class"] = options.storage_class
    if options.encryption:
        headers["x-amz-server-side-encryption"] = options.encryption
    if options.kms_key_id:
        headers["x-amz-server-side-encryption-aws-kms-key-id"] = options.kms_key_id
    if options.retention:
        headers["x-amz-object-lock-mode"] = options.retention.mode
        headers["x-amz-object-lock-retain-until-date"] = options.retention.until_text
    if options.legal_hold:
        headers["x-amz-object-lock-legal-hold"] = "ON"
    return headers


def customer_headers(customer_key: CustomerKey | None) -> dict[str, str]:
    """For requests on an object that is there, or on an upload's parts."""
    return customer_key.headers() if customer_key else {}


@dataclass(frozen=True, slots=True)
class Kept:
    """How the server keeps an object, out of the headers of HEAD. "" and None: nothing, or not told. `customer_key_md5`: of the
    key it is encrypted with (SSE-C)."""

    encryption: str = ""
    kms_key_id: str = ""
    customer_key_md5: str = ""
    retention: Retention | None = None
    legal_hold: bool = False
    restoring: bool = False
    """It lies in an archive and was asked for; reading it is refused until it is there."""
    restored_until: float = 0.0
    """Unix seconds until when the readable copy of an archived object stays; 0.0 where there is none."""


NOT_TOLD = Kept()


def answered_options(headers: Mapping[str, str]) -> Kept:
    """Out of an answer's headers (lower-case names). What cannot be read is not told."""
    mode, until = headers.get("x-amz-object-lock-mode", ""), headers.get("x-amz-object-lock-retain-until-date", "")
    restore = headers.get("x-amz-restore", "")
    return Kept(
        encryption=headers.get("x-amz-server-side-encryption", ""),
        kms_key_id=headers.get("x-amz-server-side-encryption-aws-kms-key-id", ""),
        customer_key_md5=headers.get(_CUSTOMER + "key-md5", ""),
        retention=read_retention(mode, until),
        legal_hold=headers.get("x-amz-object-lock-legal-hold", "") == "ON",
        restoring='ongoing-request="true"' in restore,
        restored_until=_expiry(restore),
    )


def read_retention(mode: str, until: str) -> Retention | None:
    """Of its two texts; None where there is none."""
    if mode not in get_args(LockMode):
        return None
    try:
        moment = datetime.fromisoformat(until)
    except ValueError:
        return None
    # Looked at above, which mypy does not follow.
    return Retention(mode, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())  # type: ignore[arg-type]


def _expiry(restore: str) -> float:
    """Of `ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"` (API reference, HeadObject)."""
    text = restore.partition('expiry-date="')[2].partition('"')[0]
    try:
        return datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
