"""Every property of our two storage types: one table, from which the Perl module of properties and the documents are drawn.

One rule: a property is declared once, here, with type, unit, bounds, default and reason. All begin with `bw-`: Proxmox VE
knows properties of all types in one space, and two plugins that define one name take the whole node's management down
(PVE::SectionConfig). Properties that Proxmox VE itself defines (content, nodes, path, shared, prune-backups) are not here.
Secrets never come to storage.cfg: Proxmox VE hands them to the hooks only ('sensitive-properties'), which keep them in
/etc/pve/priv/storage/STORAGE.TYPE (mode 0600); each is optional, since a required one cannot be kept out of the file.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from s3core.endpoint import PRESETS

Kind = Literal["string", "integer", "boolean"]
FILES: Final = "bucketfiles"
DISKS: Final = "bucketdisks"
BOTH: Final = (FILES, DISKS)
PREFIX: Final = "bw-"


@dataclass(frozen=True, slots=True)
class Property:
    """`name` is that in storage.cfg, `field` that of `configuration.Storage`. `fixed`: cannot change after `pvesm add`.
    `origin`: the parameter of the original plugin that it stands for. `environment`: where commands find it without
    Proxmox VE. `unit` is told in words; bounds are in that unit."""

    name: str
    reason: str
    kind: Kind = "string"
    types: tuple[str, ...] = BOTH
    required: bool = False
    fixed: bool = False
    secret: bool = False
    default: str = ""
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    unit: str = ""
    origin: str = ""
    environment: str = ""

    @property
    def field(self) -> str:
        return self.name.removeprefix(PREFIX).replace("-", "_")

    def check(self, text: str) -> str | int | bool:
        """The value in `text`; ValueError says what it must be."""
        if self.kind == "boolean":
            if text.lower() not in ("0", "1", "yes", "no", "on", "off", "true", "false"):
                raise ValueError(f"{self.name}: {text!r} is not 0 or 1")
            return text.lower() in ("1", "yes", "on", "true")
        if self.kind == "integer":
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise ValueError(f"{self.name}: {text!r} is not a whole number")
            number = int(text)
            low, high = self.minimum, self.maximum
            if (low is not None and number < low) or (high is not None and number > high):
                raise ValueError(
                    f"{self.name}: {number} is not from {low} to {high}{f' {self.unit}' if self.unit else ''}"
                )
            return number
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.name}: {text!r} is none of {', '.join(self.choices)}")
        if self.pattern and not re.fullmatch(self.pattern, text):
            shown = "the value" if self.secret else repr(text)
            raise ValueError(f"{self.name}: {shown} does not fit {self.pattern}")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise ValueError(f"{self.name}: has a control character in it")
        return text


BUCKET_PATTERN: Final = r"[a-z0-9A-Z][a-z0-9A-Z._-]{1,254}"
PREFIX_PATTERN: Final = r"[A-Za-z0-9!_.*'()=+-]+(/[A-Za-z0-9!_.*'()=+-]+)*/?"

PROPERTIES: Final[tuple[Property, ...]] = (
    Property(
        "bw-endpoint",
        "address of the S3 server, or the name of an [endpoint.NAME] in config.toml; empty: the preset's",
        origin="endpoint",
        environment="S3_ENDPOINT",
    ),
    Property(
        "bw-preset",
        "provider whose address, habits and quirks to start from",
        choices=tuple(PRESETS),
        default="generic",
    ),
    Property(
        "bw-bucket",
        "the bucket",
        required=True,
        fixed=True,
        pattern=BUCKET_PATTERN,
        origin="bucket",
        environment="S3_BUCKET",
    ),
    Property(
        "bw-prefix",
        "what all keys begin with; two storages must not lie in each other",
        fixed=True,
        pattern=PREFIX_PATTERN,
        origin="prefix",
        environment="S3_PREFIX",
    ),
    Property(
        "bw-region",
        "region to sign for; `auto` asks the server; empty: the preset's",
        origin="region",
        environment="S3_REGION",
    ),
    Property("bw-addressing", "bucket in the path or in the host name", choices=("auto", "path", "virtual")),
    Property("bw-access-key", "access key", origin="access_key", environment="S3_ACCESS_KEY"),
    Property(
        "bw-secret-key",
        "secret that goes with the access key",
        secret=True,
        origin="secret_key",
        environment="S3_SECRET_KEY",
    ),
    Property("bw-session-token", "only for temporary keys", secret=True),
    Property(
        "bw-credentials",
        "where the keys are, in place of the two above: `file:PATH` (INI form, mode 0600, on each node), `profile:NAME`,"
        " `environment` or `none`",
    ),
    Property("bw-ca-file", "PEM file of authorities to trust in place of the system's, on each node"),
    Property(
        "bw-fingerprint",
        "SHA-256 of the server's certificate, trusted whoever signed it",
        pattern=r"[0-9A-Fa-f:]{64,95}",
    ),
    Property("bw-proxy", "`http://HOST:PORT` of a proxy"),
    Property(
        "bw-connection-timeout",
        "longest wait for a connection and for the next bytes of an answer",
        kind="integer",
        minimum=10,
        maximum=300,
        default="30",
        unit="seconds",
        origin="connection_timeout",
    ),
    Property(
        "bw-storage-class",
        "class that objects are put in; empty: the bucket's default",
        types=(FILES,),
        pattern=r"[A-Z0-9_]+",
        origin="storage_class",
    ),
    Property(
        "bw-part-size",
        "part of a multipart upload; grows by itself where 10,000 parts would not do",
        kind="integer",
        types=(FILES,),
        minimum=5,
        maximum=5120,
        default="16",
        unit="MiB",
        origin="multipart_chunk_size",
    ),
    Property(
        "bw-uploads",
        "parts on their way at once",
        kind="integer",
        types=(FILES,),
        minimum=1,
        maximum=20,
        default="4",
        origin="max_concurrent_uploads",
    ),
    Property(
        "bw-sse",
        "encryption by the server; `customer`: with a key that we send along (SSE-C)",
        types=(FILES,),
        choices=("AES256", "aws:kms", "customer"),
        origin="server_side_encryption",
    ),
    Property("bw-kms-key-id", "key for `aws:kms`; empty: the account's default", types=(FILES,), origin="kms_key_id"),
    Property(
        "bw-sse-customer-key",
        "32 bytes in Base64, for `bw-sse customer`; without it nothing can be read",
        types=(FILES,),
        secret=True,
        pattern=r"[A-Za-z0-9+/]{43}=",
    ),
    Property(
        "bw-encryption",
        "seal everything on this node before it is sent (AES-256-GCM)",
        kind="boolean",
        default="0",
        fixed=True,
    ),
    Property(
        "bw-encryption-key",
        "passphrase (12 characters or more) that opens what is sealed; keep a copy outside the cluster",
        secret=True,
    ),
    Property(
        "bw-lifecycle",
        "keep lifecycle rules for our prefix in the bucket: the two transitions below, and an end to forgotten uploads",
        kind="boolean",
        types=(FILES,),
        default="0",
        origin="lifecycle_enabled",
    ),
    Property(
        "bw-transition-days",
        "age at which backups go to `bw-transition-class`; 0: never",
        kind="integer",
        types=(FILES,),
        minimum=0,
        maximum=36500,
        default="0",
        unit="days",
        origin="transition_days",
    ),
    Property(
        "bw-transition-class",
        "class of the first transition",
        types=(FILES,),
        pattern=r"[A-Z0-9_]+",
        default="STANDARD_IA",
    ),
    Property(
        "bw-glacier-days",
        "age at which backups go to `bw-glacier-class`, from where they must be thawed; 0: never",
        kind="integer",
        types=(FILES,),
        minimum=0,
        maximum=36500,
        default="0",
        unit="days",
        origin="glacier_days",
    ),
    Property(
        "bw-glacier-class", "class of the second transition", types=(FILES,), pattern=r"[A-Z0-9_]+", default="GLACIER"
    ),
    Property(
        "bw-object-lock",
        "`hold`: `protected` is a legal hold too; `governance`, `compliance`: backups are also locked for `bw-lock-days`",
        types=(FILES,),
        choices=("none", "hold", "governance", "compliance"),
        default="none",
    ),
    Property(
        "bw-lock-days",
        "how long a backup cannot be deleted by anybody, from its upload on; 0: not at all",
        kind="integer",
        types=(FILES,),
        minimum=0,
        maximum=36500,
        default="0",
        unit="days",
    ),
    Property(
        "bw-quota",
        "what Proxmox VE is told as the storage's size, and what uploads are refused beyond; 0: no limit",
        kind="integer",
        minimum=0,
        maximum=1 << 40,
        default="0",
        unit="GiB",
    ),
    Property(
        "bw-requests-per-second",
        "most requests of this node in a second; 0: no limit",
        kind="integer",
        minimum=0,
        maximum=1_000_000,
        default="0",
        unit="requests/s",
    ),
    Property(
        "bw-rate",
        "most bytes of this node in a second, both ways together; 0: no limit",
        kind="integer",
        minimum=0,
        maximum=1_000_000,
        default="0",
        unit="MiB/s",
    ),
    Property(
        "bw-budget-requests",
        "requests of this node in a calendar month; 0: no limit",
        kind="integer",
        minimum=0,
        maximum=1 << 40,
        default="0",
        unit="requests",
    ),
    Property(
        "bw-budget-egress",
        "bytes that this node reads in a calendar month; 0: no limit",
        kind="integer",
        minimum=0,
        maximum=1 << 40,
        default="0",
        unit="GiB",
    ),
    Property(
        "bw-budget-action",
        "what happens to new work beyond a budget; deletes are never refused",
        choices=("warn", "refuse"),
        default="warn",
    ),
    Property(
        "bw-flush",
        "what a guest's FLUSH waits for: the journal on this node's disk, or the bucket",
        types=(DISKS,),
        choices=("local", "s3"),
        default="local",
    ),
    Property(
        "bw-disk-cache",
        "local read cache of each active disk",
        kind="integer",
        types=(DISKS,),
        minimum=1,
        maximum=1 << 20,
        default="4",
        unit="GiB",
    ),
    Property(
        "bw-disk-journal",
        "acknowledged writes of each active disk that are not yet in the bucket",
        kind="integer",
        types=(DISKS,),
        minimum=1,
        maximum=1 << 20,
        default="1",
        unit="GiB",
    ),
    Property(
        "bw-lease",
        "how long a disk goes on acknowledging without hearing from the store, and how long another node waits before it takes"
        " over from one that is dead",
        kind="integer",
        types=(DISKS,),
        minimum=10,
        maximum=86400,
        default="600",
        unit="seconds",
    ),
    Property(
        "bw-gateway-port",
        "TCP port on which nodes reach each other's disks during a live migration",
        kind="integer",
        types=(DISKS,),
        minimum=1,
        maximum=65535,
        default="3265",
    ),
)
BY_NAME: Final = {one.name: one for one in PROPERTIES}
SECRETS: Final = tuple(one.name for one in PROPERTIES if one.secret)


def of_type(kind: str) -> tuple[Property, ...]:
    return tuple(one for one in PROPERTIES if kind in one.types)
