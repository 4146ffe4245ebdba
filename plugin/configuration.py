"""What is known of a storage: its section in storage.cfg and its secrets, or, without Proxmox VE, the environment and a file.

One rule: reading opens no socket. A storage becomes an ordinary endpoint of the one configuration (`Storage.join`), so that
buckets and volumes are opened as everywhere else, and a `[ledger.NAME]` that covers the bucket under another endpoint's
name covers it here too.

On a Proxmox VE node: /etc/pve/storage.cfg (PVE::SectionConfig: `TYPE: ID`, then indented `KEY VALUE`) and
/etc/pve/priv/storage/ID.TYPE (`KEY VALUE` lines, mode 0600, written by the Perl hooks). `root` stands before both in tests
and drills. Elsewhere: S3_ENDPOINT, S3_BUCKET, S3_REGION, S3_ACCESS_KEY, S3_SECRET_KEY, S3_PREFIX, and an INI file in the
form of AWS's credentials file.
"""

import configparser
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import SecretStr

from plugin.errors import BadVolume, NoSuchVolume
from plugin.properties import BOTH, BY_NAME, DISKS, FILES, PREFIX, PROPERTIES, SECRETS, of_type
from s3core.credentials import CredentialsError, require_private
from s3core.settings import Config, ConfigError, EndpointSettings

ROOT_VARIABLE: Final = "BUCKETWORKS_PVE_ROOT"
STORAGE_CFG: Final = Path("etc/pve/storage.cfg")
SECRETS_DIRECTORY: Final = Path("etc/pve/priv/storage")
INI_DEFAULT: Final = "default"
INI_PATHS: Final = ("/etc/bucketworks/pve-credentials.ini", "/etc/pve/s3-credentials/aws-credentials")
"""Where commands look for an INI file that nobody named; the second is the original plugin's."""
_STORAGE_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]")
_ENDPOINT_PROPERTIES: Final = {
    "region": "region",
    "addressing": "addressing",
    "fingerprint": "fingerprint",
    "url": "endpoint",
}
_ENDPOINT_SETTING: Final = re.compile(
    rf'set ({"|".join(_ENDPOINT_PROPERTIES)}) =( "[^"]*"(?: \(or "auto"\))?) for endpoint pve-[a-z0-9.-]+-[0-9a-f]{{6}}'
)
_INI_NAMES: Final = {
    "aws_access_key_id": "bw-access-key",
    "access_key": "bw-access-key",
    "aws_secret_access_key": "bw-secret-key",
    "secret_key": "bw-secret-key",
    "aws_session_token": "bw-session-token",
    "session_token": "bw-session-token",
    "endpoint": "bw-endpoint",
    "endpoint_url": "bw-endpoint",
    "region": "bw-region",
    "bucket": "bw-bucket",
    "prefix": "bw-prefix",
    "preset": "bw-preset",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One storage of storage.cfg, as text: also of types that are not ours."""

    type: str
    id: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage of ours, checked. `endpoint_url` is an address, or the name of an endpoint in config.toml, or empty; bytes
    and seconds as the names say; sizes in the units of `plugin.properties` are converted here. `prefix` is "" or ends
    with `/`. `contents` are the content types it may hold."""

    id: str
    type: Literal["bucketfiles", "bucketdisks"]
    bucket: str
    prefix: str
    endpoint_url: str = ""
    preset: str = "generic"
    region: str = ""
    addressing: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    credentials: str = ""
    ca_file: str = ""
    fingerprint: str = ""
    proxy: str = ""
    timeout_s: float = 30.0
    storage_class: str = ""
    part_bytes: int = 16 << 20
    uploads: int = 4
    sse: str = ""
    kms_key_id: str = ""
    sse_customer_key: str = field(default="", repr=False)
    encryption: bool = False
    encryption_key: str = field(default="", repr=False)
    lifecycle: bool = False
    transition_days: int = 0
    transition_class: str = "STANDARD_IA"
    glacier_days: int = 0
    glacier_class: str = "GLACIER"
    object_lock: str = "none"
    lock_days: int = 0
    quota_bytes: int = 0
    requests_per_s: float = 0.0
    bytes_per_s: int = 0
    budget_requests: int = 0
    budget_egress_bytes: int = 0
    budget_action: str = "warn"
    flush: str = "local"
    disk_cache_bytes: int = 4 << 30
    disk_journal_bytes: int = 1 << 30
    lease_s: float = 600.0
    gateway_port: int = 3265
    path: str = ""
    contents: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    disabled: bool = False

    @property
    def digest(self) -> str:
        """Of everything by which a mount reaches and keeps objects, secrets too: another one needs another mount."""
        aside = ("contents", "nodes", "disabled", "budget_action", "quota_bytes")
        told = [(one.name, getattr(self, one.name)) for one in fields(self) if one.name not in aside]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    @property
    def endpoint_name(self) -> str:
        """Its endpoint's name in the joined configuration: storage ids have letters that names of endpoints have not."""
        if self._names_endpoint:
            return self.endpoint_url
        plain = re.sub(r"[^a-z0-9.-]", "-", self.id.lower())
        return f"pve-{plain}-{hashlib.sha256(self.id.encode()).hexdigest()[:6]}"

    @property
    def url(self) -> str:
        """The place of everything it has: `s3://ENDPOINT/BUCKET/PREFIX`, in the joined configuration."""
        return f"s3://{self.endpoint_name}/{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _names_endpoint(self) -> bool:
        return bool(self.endpoint_url) and "." not in self.endpoint_url and ":" not in self.endpoint_url

    def endpoint_settings(self) -> EndpointSettings:
        """As `[endpoint.NAME]` would have it. ConfigError."""
        url = self.endpoint_url
        if url and "://" not in url:
            url = f"https://{url}"
        given: dict[str, Any] = {
            "preset": self.preset,
            "url": url,
            "region": self.region,
            "ca_file": self.ca_file,
            "fingerprint": self.fingerprint,
            "proxy": self.proxy,
            "connect_timeout_s": min(self.timeout_s, 30.0),
            "read_timeout_s": self.timeout_s,
            "deadline_s": max(60.0, 2 * self.timeout_s),
            "requests_per_s": self.requests_per_s,
            "bytes_per_s": self.bytes_per_s,
        }
        if self.addressing:
            given["addressing"] = self.addressing
        if self.credentials:
            given["credentials"] = self.credentials
        elif self.access_key or self.secret_key:
            if not (self.access_key and self.secret_key):
                missing = "bw-secret-key" if self.access_key else "bw-access-key"
                raise ConfigError(
                    f"storage {self.id}: access key and secret key belong together; {missing} is missing",
                    hint=f"give {missing} too, or bw-credentials in place of both",
                )
            given |= {"access_key": self.access_key, "secret_key": SecretStr(self.secret_key)}
            if self.session_token:
                given["session_token"] = SecretStr(self.session_token)
        return EndpointSettings(**given).told_by(f"storage {self.id}")

    def join(self, config: Config) -> Config:
        """`config` with this storage's endpoint in it. ConfigError where it names an endpoint that is not there."""
        if self._names_endpoint:
            if self.endpoint_url not in config.endpoints:
                raise ConfigError(
                    f"storage {self.id}: there is no [endpoint.{self.endpoint_url}] in {config.path}",
                    hint=f"if it is a server's name: bw-endpoint https://{self.endpoint_url}; else create the endpoint with"
                    " `bucketworks endpoint create`",
                )
            return config
        settings = self.endpoint_settings()
        return config.model_copy(update={"endpoints": {**config.endpoints, self.endpoint_name: settings}})


def in_properties(text: str) -> str:
    """What the floors below say to set "for endpoint NAME", in the words of `pvesm set`, where `Storage` made NAME."""
    told, count = _ENDPOINT_SETTING.subn(lambda found: f"set bw-{_ENDPOINT_PROPERTIES[found[1]]}{found[2]}", text)
    return told.replace("set ca_file to", "set bw-ca-file to") if count else text


def neighbours(storage: Storage, others: Mapping[str, Storage]) -> list[Storage]:
    """Those of `others` in the same place, or one in the other: they would list, count and prune each other's objects."""
    place = (storage.bucket, storage.endpoint_url, storage.preset)
    return [
        other
        for id, other in sorted(others.items())
        if id != storage.id
        and (other.bucket, other.endpoint_url, other.preset) == place
        and (other.prefix.startswith(storage.prefix) or storage.prefix.startswith(other.prefix))
    ]


def parse_sections(text: str) -> list[Section]:
    """All storages of a storage.cfg. Lines that fit nothing are passed over, as PVE::SectionConfig does with a warning."""
    sections: list[Section] = []
    options: dict[str, str] | None = None
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            if not stripped:
                options = None
            continue
        head = re.fullmatch(r"(\S+?):\s*(\S+)\s*", line)
        if head is not None and not line[0].isspace():
            options = {}
            sections.append(Section(head[1], head[2], options))
        elif options is not None and line[0].isspace():
            name, _, value = stripped.partition(" ")
            options[name] = value.strip() or "1"
    return sections


def parse_secrets(text: str) -> dict[str, str]:
    """Of /etc/pve/priv/storage/ID.TYPE: `bw-NAME VALUE` lines. BadVolume for what is none, without its value."""
    secrets: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.strip().partition(" ")
        if name not in SECRETS:
            raise BadVolume(
                f"line {number} of the secrets: {name.split('=')[0][:40]!r} is none of {', '.join(SECRETS)}"
            )
        secrets[name] = value.strip()
    return secrets


def storage_of(section: Section, secrets: Mapping[str, str]) -> Storage:
    """The storage of a section of one of our types. ConfigError names property and cure."""
    where = f"storage {section.id}"
    if section.type not in BOTH:
        raise ConfigError(f"{where}: type {section.type} is not one of {', '.join(BOTH)}")
    if not _STORAGE_ID.fullmatch(section.id):
        raise ConfigError(f"{where}: that is no storage id")
    known = {one.name: one for one in of_type(section.type)}
    values: dict[str, str | int | bool] = {}
    for name, text in (dict(section.options) | dict(secrets)).items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise ConfigError(f"{where}: {name} is no property of {section.type}")
        try:
            values[name] = known[name].check(text)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    for one in known.values():
        if one.required and one.name not in values:
            raise ConfigError(f"{where}: {one.name} is missing: {one.reason}")
        if one.name not in values and one.default:
            values[one.name] = one.check(one.default)
    given = {BY_NAME[name].field: value for name, value in values.items()}
    storage = Storage(
        id=section.id,
        type=FILES if section.type == FILES else DISKS,
        path=section.options.get("path", f"/mnt/pve/{section.id}"),
        contents=tuple(_list(section.options.get("content", ""))),
        nodes=tuple(_list(section.options.get("nodes", ""))),
        disabled=section.options.get("disable", "0") == "1",
        **_converted(given),
    )
    _check(storage)
    return storage


def _list(text: str) -> list[str]:
    return [one for one in re.split(r"[,;\s]+", text) if one and one != "none"]


def _converted(given: dict[str, Any]) -> dict[str, Any]:
    """Names and units of `Storage` from those of the properties."""
    units = {
        "endpoint": ("endpoint_url", 1),
        "connection_timeout": ("timeout_s", 1.0),
        "part_size": ("part_bytes", 1 << 20),
        "quota": ("quota_bytes", 1 << 30),
        "requests_per_second": ("requests_per_s", 1.0),
        "rate": ("bytes_per_s", 1 << 20),
        "budget_egress": ("budget_egress_bytes", 1 << 30),
        "disk_cache": ("disk_cache_bytes", 1 << 30),
        "disk_journal": ("disk_journal_bytes", 1 << 30),
        "lease": ("lease_s", 1.0),
    }
    made: dict[str, Any] = {}
    for name, value in given.items():
        target, unit = units.get(name, (name, 1))
        made[target] = value * unit if isinstance(value, int) and not isinstance(value, bool) else value
    prefix = str(made.get("prefix", "")).strip("/")
    made["prefix"] = f"{prefix}/" if prefix else ""
    return made


def _check(storage: Storage) -> None:
    """What properties say together. ConfigError."""
    where = f"storage {storage.id}"
    if any(part in (".", "..") for part in storage.prefix.split("/")):
        raise ConfigError(f"{where}: bw-prefix must not have . or .. in it")
    if storage.sse == "customer" and not storage.sse_customer_key:
        raise ConfigError(f"{where}: bw-sse customer needs bw-sse-customer-key")
    if storage.kms_key_id and storage.sse != "aws:kms":
        raise ConfigError(f"{where}: bw-kms-key-id is for bw-sse aws:kms")
    if storage.encryption and len(storage.encryption_key) < 12:
        raise ConfigError(f"{where}: bw-encryption needs bw-encryption-key, a passphrase of 12 characters or more")
    if storage.glacier_days and storage.transition_days and storage.glacier_days <= storage.transition_days:
        raise ConfigError(f"{where}: bw-glacier-days must be more than bw-transition-days")
    if storage.lock_days and storage.object_lock not in ("governance", "compliance"):
        raise ConfigError(f"{where}: bw-lock-days needs bw-object-lock governance or compliance")
    if storage.credentials and storage.access_key:
        raise ConfigError(f"{where}: bw-credentials and bw-access-key are two sources; keep one")


def read_storages(root: Path = Path("/")) -> dict[str, Storage | ConfigError]:
    """Our storages on this node by id; a storage that cannot be used as it is stands there with its error, so that it does
    not take the others with it. OSError where storage.cfg cannot be read; an absent one has no storages."""
    try:
        text = (root / STORAGE_CFG).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, Storage | ConfigError] = {}
    for section in parse_sections(text):
        if section.type in BOTH:
            try:
                found[section.id] = storage_of(section, read_secrets(section, root))
            except ConfigError as error:
                found[section.id] = error
    return found


def read_secrets(section: Section, root: Path = Path("/")) -> dict[str, str]:
    """The storage's secrets; none where there is no file. ConfigError for a file that others may read."""
    path = root / SECRETS_DIRECTORY / f"{section.id}.{section.type}"
    try:
        text = path.read_text(encoding="utf-8")
        require_private(path)
        return parse_secrets(text)
    except FileNotFoundError:
        return {}
    except (CredentialsError, BadVolume, UnicodeDecodeError) as error:
        raise ConfigError(f"storage {section.id}: {path}: {error}") from error


def find_storage(id: str, root: Path = Path("/")) -> Storage:
    """That storage. NoSuchVolume where there is none of ours with that id, ConfigError where it cannot be used."""
    storages = read_storages(root)
    found = storages.get(id)
    if found is None:
        names = ", ".join(sorted(storages)) or "none"
        raise NoSuchVolume(
            f"there is no storage {id} of type {' or '.join(BOTH)} in {root / STORAGE_CFG}", hint=f"there is {names}"
        )
    if isinstance(found, ConfigError):
        raise found
    return found


def storage_from_environment(
    id: str, environ: Mapping[str, str], ini: Path | None = None, *, type: str = FILES
) -> Storage:
    """A storage without Proxmox VE: from an INI file (section of that name, else `[default]`; `ini`, or the first of
    INI_PATHS that is there), and over it the environment. ConfigError."""
    options: dict[str, str] = {}
    chosen = ini or next((Path(name) for name in INI_PATHS if Path(name).exists()), None)
    if chosen is not None:
        options |= _read_ini(chosen, id)
    for one in PROPERTIES:
        if one.environment and environ.get(one.environment):
            options[one.name] = environ[one.environment]
    if not options.get("bw-bucket"):
        raise ConfigError(
            f"storage {id}: nobody says which bucket it is",
            hint="add it with `pvesm add`, set S3_BUCKET and the others, or name an INI file with `bucket` in it",
        )
    secrets = {name: options.pop(name) for name in SECRETS if name in options}
    return storage_of(Section(type, id, options), secrets)


def _read_ini(path: Path, id: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        text = path.read_text(encoding="utf-8")
        require_private(path)
        parser.read_string(text, str(path))
    except (OSError, UnicodeDecodeError, configparser.Error, CredentialsError) as error:
        raise ConfigError(f"{path}: {error}") from error
    name = id if parser.has_section(id) else INI_DEFAULT
    if not parser.has_section(name):
        raise ConfigError(f"{path}: has neither [{id}] nor [{INI_DEFAULT}]")
    options: dict[str, str] = {}
    for key, value in parser[name].items():
        target = _INI_NAMES.get(key) or (key if key in BY_NAME else "")
        if not target:
            raise ConfigError(f"{path}: [{name}]: {key} is none of {', '.join(sorted(_INI_NAMES))} and no bw- property")
        options[target] = value
    return options
