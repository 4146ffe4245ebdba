"""The configuration file: one table of settings, read by every tool.

One rule: a setting is declared once, below, with type, unit (the end of its name), default and reason. The file is
checked against it, and `settings_table` draws docs/settings.md and the help texts from it. Unknown keys are errors with
a suggestion, never ignored. Reading the file opens no socket and resolves no secret; `Config.endpoint` fetches keys
when somebody is about to use them.
"""

import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from s3core.config_versions import HISTORY, KEY, History, VersionError, at_version, version_of
from s3core.credentials import CredentialsError, check_key_source, check_source, find_credentials, require_private
from s3core.endpoint import PRESETS, Credentials, Endpoint, from_preset
from s3core.quantities import parse_duration, parse_size

log = logging.getLogger(__name__)

DEFAULT_PATH = Path("/etc/bucketworks/config.toml")
PATH_VARIABLE = "BUCKETWORKS_CONFIG"

_told_old: set[tuple[Path, int]] = set()
"""Files that a warning told of: a service reads its file again and again."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3


class ConfigError(Exception):
    """The configuration cannot be used as it is. The message names file, table and setting; `hint` is the cure."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


def check_name(text: str) -> str:
    """`text`, where an endpoint, a volume or a mirror may be called so; else ValueError."""
    if not text or not text[0].isalnum() or not all(c.islower() or c.isdigit() or c in ".-" for c in text):
        raise ValueError("a name is made of a-z, 0-9, '.' and '-' and begins with a letter or digit")
    return text


def _listen(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:3260 or [::]:3260")
    return text


def _network(text: str) -> str:
    ip_network(text, strict=False)
    return text


def _store_url(text: str) -> str:
    if not text.startswith(("s3://", "file://", "memory:")):
        raise ValueError(f"{text!r} is not a place in a store; write s3://ENDPOINT/BUCKET/PREFIX or file:///DIRECTORY")
    return text


def _store_url_or_not(text: str) -> str:
    return _store_url(text) if text else ""


def _web_address_or_not(text: str) -> str:
    if text and not text.startswith(("https://", "http://")):
        raise ValueError(f"{text!r} is no address of a web site; write https://HOST/PATH")
    return text


def _initiator(text: str) -> str:
    if not text.startswith(("iqn.", "eui.", "naa.")) or text != text.lower() or len(text.encode()) > 223:
        raise ValueError(f"{text!r} is not an iSCSI name (iqn., eui. or naa., lower case, at most 223 bytes; RFC 3721)")
    return text


def _one_or_more(value: object) -> object:
    """A list may be written as its only member."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _extent_bytes(size: int) -> int:
    if size not in [(128 * KIB) << shift for shift in range(6)]:
        raise ValueError("must be a power of two from 128K to 4M")
    return size


def _frame_bytes(size: int) -> int:
    if size not in [(16 * KIB) << shift for shift in range(4)]:
        raise ValueError("must be a power of two from 16K to 128K")
    return size


def _listen_or_not(text: str) -> str:
    return _listen(text) if text else ""


Name = Annotated[str, AfterValidator(check_name)]
Bytes = Annotated[int, BeforeValidator(parse_size)]
Seconds = Annotated[float, BeforeValidator(parse_duration)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
Listen = Annotated[str, AfterValidator(_listen)]
IscsiName = Annotated[str, AfterValidator(_initiator)]
Addresses = Annotated[tuple[Listen, ...], BeforeValidator(_one_or_more)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Network = Annotated[str, AfterValidator(_network)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_one_or_more)]
IscsiNames = Annotated[tuple[IscsiName, ...], BeforeValidator(_one_or_more)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)


def _setting(default: Any, reason: str, **constraints: Any) -> Any:
    return Field(default, description=reason, **constraints)


class PriceSettings(_Table):
    """Overrides of the preset's price table, in `currency`; used for estimates only."""

    currency: str | None = _setting(None, "currency of the figures below")
    per_1000_put: float | None = _setting(None, "price of 1,000 PUT, COPY, POST or LIST requests", ge=0)
    per_1000_get: float | None = _setting(None, "price of 1,000 GET or HEAD requests", ge=0)
    per_gib_month: float | None = _setting(None, "price of storing one GiB for a month", ge=0)
    per_gib_egress: float | None = _setting(None, "price of one GiB read over the internet", ge=0)


class EndpointSettings(_Table):
    """`[endpoint.NAME]`: a server that speaks S3. Places in it are written `s3://NAME/BUCKET/PREFIX`."""

    _origin: str = PrivateAttr("")

    @property
    def origin(self) -> str:
        """What errors call it, where it does not stand in the configuration file; else empty."""
        return self._origin

    def told_by(self, origin: str) -> "EndpointSettings":
        """A copy with that `origin`."""
        copy = self.model_copy()
        copy._origin = origin
        return copy

    preset: Literal["aws", "ceph", "minio", "garage", "r2", "wasabi", "b2", "hetzner", "generic"] = _setting(
        "generic", "provider whose address, habits, quirks and prices to start from"
    )
    url: str = _setting("", "address; `{{bucket}}` and `{{region}}` are expanded; empty: the preset's")
    region: str = _setting("", "region to sign for; `auto` asks the server; empty: the preset's")
    addressing: Literal["auto", "path", "virtual"] | None = _setting(
        None, "bucket in the path or in the host name; unset: as the URL or the preset has it"
    )
    credentials: Annotated[str, AfterValidator(check_source)] = _setting(
        "environment", "where the keys are: `environment`, `file:PATH`, `profile:NAME`, `systemd:NAME` or `none`"
    )
    access_key: str = _setting("", "the key itself, in place of `credentials`; the file must then have mode 0600")
    secret_key: SecretStr | None = _setting(None, "the secret that goes with `access_key`", strict=False)
    session_token: SecretStr | None = _setting(None, "only for temporary keys", strict=False)
    ca_file: str = _setting("", "PEM file of authorities to trust in place of the system's")
    fingerprint: str = _setting("", "SHA-256 of the server's certificate, trusted whoever signed it")
    proxy: str = _setting("", "`http://HOST:PORT` of a proxy; empty: none, whatever the environment says")
    connect_timeout_s: Seconds = _setting(5.0, "longest wait for a connection", gt=0)
    read_timeout_s: Seconds = _setting(30.0, "longest wait for the next bytes of an answer", gt=0)
    retries: int = _setting(8, "further attempts, with growing random pauses, of calls that may be repeated", ge=0)
    deadline_s: Seconds = _setting(60.0, "a call with all its retries is given up after this", gt=0)
    requests_per_s: float = _setting(0.0, "most requests in a second; 0: no limit", ge=0)
    bytes_per_s: Bytes = _setting(0, "most bytes in a second, both ways together; 0: no limit", ge=0)
    concurrency: int = _setting(32, "requests in flight at once, and connections kept open", ge=1)
    sign_payload: bool | None = _setting(None, "sign the SHA-256 of bodies; unset: over http only, TLS protects them")
    if_match_quoted: bool | None = _setting(None, "quotes around the ETag in `If-Match`; unset: as the preset has it")
    prices: PriceSettings = _setting(PriceSettings(), "what requests and bytes cost here")


class VolumeSettings(_Table):
    """`[volume.NAME]`: a disk in a bucket, served by `s3block`. Unset values come from `[s3block]`."""

    url: StoreUrl = _setting(..., "where the volume lives: `s3://ENDPOINT/BUCKET/PREFIX` or `file:///DIRECTORY`")
    size_bytes: Bytes | None = _setting(None, "size at creation, a multiple of 4096; later it is read from the volume")
    sector_bytes: Literal[512, 4096] = _setting(512, "what the initiator addresses; fixed at creation")
    extent_bytes: Annotated[Bytes, AfterValidator(_extent_bytes)] = _setting(
        MIB, "unit of the map and of settled objects; fixed at creation; smaller costs PUTs, larger costs bytes"
    )
    frame_bytes: Annotated[Bytes, AfterValidator(_frame_bytes)] = _setting(
        64 * KIB, "what is compressed and fetched on its own; fixed at creation; a cold 4 KiB read fetches one"
    )
    key: Annotated[str, AfterValidator(check_key_source)] = _setting(
        "",
        "opens an encrypted volume: `file:PATH` (32 random bytes or more, mode 0600), `systemd:NAME`,"
        " `passphrase-file:PATH` or `passphrase` (asked for); empty: it is not encrypted",
    )
    flush: Literal["local", "s3"] = _setting(
        "local", "what FLUSH and FUA wait for: the journal on this host's disk, or the bucket"
    )
    commit_bytes: Bytes = _setting(
        8 * MIB, "unsaved data that makes a commit to the bucket; more costs fewer PUTs and a longer RPO", ge=64 * KIB
    )
    commit_interval_s: Seconds = _setting(5.0, "age of unsaved data that makes a commit; bounds the RPO", gt=0)
    commits_per_hour_max: int = _setting(
        0,
        "most commits in an hour for age alone, to save requests; the RPO grows to an hour by that; 0: no limit",
        ge=0,
    )
    lease_s: Seconds = _setting(
        600.0,
        "how long it goes on acknowledging without hearing from the store; a host that takes over waits that long",
        ge=1,
    )
    cache_bytes: Bytes | None = _setting(None, "local read cache; unset: as `[s3block]`", ge=MIB)
    journal_bytes: Bytes | None = _setting(
        None, "acknowledged writes not yet in the bucket; unset: as `[s3block]`", ge=MIB
    )
    state_dir: str = _setting("", "journal, map and cache; empty: a folder of the volume's name in `[s3block]`'s")
    door: Literal["portal", "lio"] = _setting(
        "portal",
        "who speaks iSCSI for it: this program's own portal, or the kernel's target (LIO)",
    )
    listen: Addresses | None = _setting(None, "addresses of its portal; unset: as `[s3block]`")
    advertise: Addresses | None = _setting(
        None,
        "addresses discovery tells instead (NAT): one for each in `listen`; unset: those, or as `[s3block]`",
    )
    iqn: IscsiName | None = _setting(None, "name of its target; unset: `iqn_prefix:NAME`")
    lun: int = _setting(0, "logical unit number within the target; volumes may share an iqn", ge=0, le=255)
    initiators: IscsiNames = _setting((), "iSCSI names that may log in; empty: anybody who reaches the port")
    chap_user: str = _setting("", "user an initiator must log in as; empty: no CHAP")
    chap_secret_file: str = _setting(
        "", "file of mode 0600 whose first line is that user's secret (12 to 255 bytes); or `systemd:NAME`"
    )
    chap_mutual_user: str = _setting("", "user the target answers as (CHAP both ways); empty: one way")
    chap_mutual_secret_file: str = _setting(
        "", "file of mode 0600 with the target's secret, or `systemd:NAME`; must differ from the other"
    )
    quota_bytes: Bytes = _setting(
        0, "data the volume may hold, in whole extents before compression, without snapshots; 0: no limit", ge=0
    )
    quota_warning: float = _setting(
        0.8, "share of `quota_bytes` from which on initiators are told (thin provisioning threshold)", gt=0, le=1
    )
    read_only: bool = _setting(False, "refuse every write; the volume is attached and fenced all the same")
    unfenced: bool = _setting(
        False, "use a bucket without working conditional writes; two hosts writing at once then destroy the volume"
    )
    metrics_listen: Annotated[str, AfterValidator(_listen_or_not)] | None = _setting(
        None, "as in `[s3block]`, for this volume's process: a host with a unit for each volume needs a port for each"
    )


class S3BlockSettings(_Table):
    """`[s3block]`: the daemon, and what its volumes have in common."""

    listen: Addresses = _setting(
        ("127.0.0.1:3260",),
        "addresses of the portal; loopback until you say otherwise, since CHAP is off",
        strict=False,
    )
    advertise: Addresses = _setting(
        (), "addresses discovery tells instead of `listen` (NAT), in the same order; empty: those", strict=False
    )
    discovery_chap_user: str = _setting(
        "", "user an initiator must give to be told the targets; empty: no CHAP for that"
    )
    discovery_chap_secret_file: str = _setting(
        "", "file of mode 0600 whose first line is that user's secret; or `systemd:NAME`"
    )
    discovery_chap_mutual_user: str = _setting("", "user discovery answers as (CHAP both ways); empty: one way")
    discovery_chap_mutual_secret_file: str = _setting(
        "", "file of mode 0600 with the secret of that one, or `systemd:NAME`; must differ from the other"
    )
    iqn_prefix: IscsiName = _setting(
        "iqn.2025-01.internal.bucketworks", "first half of target names; `internal` is the domain kept for private use"
    )
    state_dir: str = _setting("/var/lib/bucketworks", "a folder for each volume is made here, on a disk that syncs")
    cache_bytes: Bytes = _setting(4 * GIB, "read cache of a volume", ge=MIB)
    journal_bytes: Bytes = _setting(
        GIB, "journal of a volume; from half full on writes are slowed, when it is full they are told BUSY", ge=MIB
    )
    metrics_listen: Annotated[str, AfterValidator(_listen_or_not)] = _setting(
        "", "`HOST:PORT` for Prometheus to scrape, without password or TLS; empty: off"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least important message to log")
    log_format: Literal["text", "json"] = _setting("text", "`key=value` lines or JSON lines")


def _percent(default: float, reason: str) -> Any:
    return _setting(default, reason, ge=0)


class GuardSettings(_Table):
    """`[mirror.NAME.guard]`: what `cowsync` holds for an approval, judged on a whole plan before anything moves."""

    vanished_percent: float = _percent(
        10.0, "most keys that may be gone since the last run, and most that one run may remove; 100: no limit"
    )
    vanished_keys: int = _setting(0, "the same as a number, for buckets where 10 % is too many; 0: no limit", ge=0)
    vanished_bytes: Bytes = _setting(0, "the same in bytes; 0: no limit", ge=0)
    prefix_vanished_percent: float = _percent(
        50.0, "most keys that may be gone below one first component of keys, such as `photos/`; 100: no limit"
    )
    shrink_percent: float = _percent(
        20.0, "how much fewer keys the source may have than last time, new ones included; 100: no limit"
    )
    modified_percent: float = _percent(
        10.0, "most keys that may be overwritten above the median of earlier runs; 100: no limit"
    )
    modified_spread: float = _setting(
        6.0, "the same in median deviations of earlier runs, where that is more: unsteady buckets get more room", ge=0
    )
    modified_runs: int = _setting(30, "earlier runs that tell what is usual", ge=1)
    all_changed: bool = _setting(True, "hold when no object is as it was; false for buckets written anew each time")
    suffix_percent: float = _percent(
        1.0, "most keys that may come with suffixes that the bucket hardly had, such as `.locked`; 100: no limit"
    )
    rename_percent: float = _percent(
        1.0, "most keys that may be gone and there again with a new suffix behind them; 100: no limit"
    )
    floor_keys: int = _setting(
        10, "fewer keys than this never count as a percentage: small buckets change by a lot every day", ge=0
    )
    canaries: Patterns = _setting(
        (), "keys that must be there unchanged: objects nobody has a reason to touch", strict=False
    )
    clock_skew_s: Seconds = _setting(
        300.0, "how far this host's clock may be from the source's, since ages are judged by both; 0: no limit"
    )


class MirrorSettings(_Table):
    """`[mirror.NAME]`: one source, kept on one mirror by `cowsync`. Several sources or several mirrors: several tables."""

    source: StoreUrl = _setting(..., "what is mirrored: `s3://ENDPOINT/BUCKET/PREFIX`; it is only read")
    target: StoreUrl = _setting(..., "where it is mirrored to: `s3://ENDPOINT/BUCKET/PREFIX`, for nothing else")
    state: Annotated[str, AfterValidator(_store_url_or_not)] = _setting(
        "", "where what is known is kept, fit for another host to go on; empty: the folder `state` in `state_dir`"
    )
    state_dir: str = _setting(
        "", "plans, journals and a cache of the state; empty: `/var/lib/bucketworks/cowsync/NAME`, on a disk that syncs"
    )
    key: Annotated[str, AfterValidator(check_key_source)] = _setting(
        "",
        "seals what is put on the target, so that its provider reads none of it: `file:PATH` (32 random bytes or more, mode"
        " 0600), `systemd:NAME`, `passphrase-file:PATH` or `passphrase` (asked for); without it the mirror cannot be read;"
        " empty: it is not encrypted; fixed with the first run",
    )
    include: Patterns = _setting((), "keys that belong, such as `photos/**`; empty: all", strict=False)
    exclude: Patterns = _setting(
        (),
        "keys that do not belong; wins over `include`. What the mirror has of them counts as lost by the source",
        strict=False,
    )
    versions: Literal["current", "all"] = _setting(
        "current", "`all`: every version and delete marker of every key; both buckets must keep versions"
    )
    vanished: Literal["keep", "remove"] = _setting(
        "keep", "what becomes of objects on the mirror that the source has lost; kept until you say otherwise"
    )
    vanished_runs: int = _setting(3, "runs that must have missed an object before it may be removed", ge=1)
    vanished_s: Seconds = _setting(7 * 86400.0, "how long it must have been missed before it may be removed")
    check_target: bool = _setting(
        True, "look before an overwrite whether the mirror still holds what was put there; costs a HEAD each"
    )
    conditional_puts: Literal["auto", "yes", "no"] = _setting(
        "auto",
        "whether a PUT to the mirror carries the condition that nobody wrote there, in place of that HEAD; auto: where a "
        "probe has seen within a day that the server keeps to it",
    )
    scanners: int = _setting(0, "processes that list and compare; 0: one for each processor", ge=0)
    listings: int = _setting(
        3, "listings at once in each of these processes, since a store takes its time to answer", ge=1
    )
    shard_keys: int = _setting(50_000, "keys in one piece of a scan", ge=1000)
    copiers: int = _setting(16, "copies at once", ge=1)
    part_bytes: Bytes = _setting(
        64 * MIB, "part of a streamed or very large copy where the source tells no part size of its own", ge=5 * MIB
    )
    every_s: Seconds = _setting(
        3600.0, "time from one run of `cowsync watch` to the next; each lists the whole source", gt=0
    )
    events: str = _setting(
        "",
        "where `cowsync watch` finds S3 notifications as JSON lines: a file, a folder, a FIFO, `-` for standard input",
    )
    events_every_s: Seconds = _setting(5.0, "how long notifications are gathered before the source is asked", gt=0)
    events_keys_max: int = _setting(
        50_000, "more keys than these at a time are a flood: the source is listed instead", ge=1
    )
    snapshots_kept: int = _setting(90, "restore points kept by `cowsync watch`; 0: all", ge=0)
    listen: Annotated[str, AfterValidator(_listen_or_not)] = _setting(
        "", "`HOST:PORT` where `cowsync watch` answers `/healthz` and `/metrics`, without password or TLS; empty: off"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "least important message that `cowsync watch` logs"
    )
    log_format: Literal["text", "json"] = _setting("text", "`key=value` lines or JSON lines")
    guard: GuardSettings = _setting(GuardSettings(), "what is held for an approval")


def _origin_or_not(text: str) -> str:
    if text and (text != text.strip("/") or any(c.isspace() or c == "+" or not c.isprintable() for c in text)):
        raise ValueError(f"{text!r} is no origin: a URL without scheme, blanks and '+', such as example.com/ledger")
    return text


class LedgerSettings(_Table):
    """`[ledger.NAME]`: the signed record of what is done to buckets, kept by `s3integrity`."""

    url: StoreUrl = _setting(
        ...,
        "where the ledger lies: `s3://ENDPOINT/BUCKET/PREFIX` in a bucket of its own, best with Object Lock, or `file:///DIRECTORY`",
    )
    origin: Annotated[str, AfterValidator(_origin_or_not)] = _setting(
        "",
        "its name in checkpoints and proofs, such as `example.com/ledger`; empty: `bucketworks/NAME`; fixed with `init`",
    )
    covers: Patterns = _setting(
        (),
        "buckets whose operations our tools record in it: `s3://ENDPOINT/BUCKET` or `s3://ENDPOINT/BUCKET/PREFIX`",
        strict=False,
    )
    vkey: str = _setting(
        "", "the ledger's public key, to which all trust goes back (`init` prints it); never read from the bucket"
    )
    state_dir: str = _setting(
        "", "local log, keys and pins; empty: `/var/lib/bucketworks/ledger/NAME`, on a disk that syncs"
    )
    writer: Annotated[str, AfterValidator(lambda text: check_name(text) if text else "")] = _setting(
        "", "this host's name in the ledger; empty: its host name"
    )
    slots: int = _setting(8, "processes of this host that may record at once; each has a log and a key", ge=1, le=64)
    reads: bool = _setting(False, "whether GETs are recorded too; each costs a record")
    checkpoint_records: int = _setting(1000, "records after which a checkpoint is signed and put in the store", ge=1)
    checkpoint_s: Seconds = _setting(10.0, "age of an unpublished record that makes a checkpoint", gt=0)
    heartbeat_s: Seconds = _setting(60.0, "an open writer signs a checkpoint at least this often, idle or not", gt=0)
    group_s: Seconds = _setting(0.01, "how long records may wait for others to share one sync of the disk", ge=0)
    epoch_records: int = _setting(1_000_000, "records after which a writer takes a new key", ge=1)
    epoch_s: Seconds = _setting(86_400.0, "age at which a writer takes a new key", gt=0)
    seal_s: Seconds = _setting(
        60.0, "how often `serve` writes the heads of all writers into the ledger's own log", gt=0
    )
    silence_s: Seconds = _setting(
        300.0, "older evidence than this is told as stale: of the ledger's own log, and of a writer that is open", gt=0
    )
    retain_s: Seconds = _setting(
        0.0, "Object Lock retention put on what is written, in compliance mode; 0: the bucket's own default", ge=0
    )
    witnesses: Patterns = _setting(
        (),
        "who cosigns the ledger's own log: `URL VKEY`, the address before `/add-checkpoint` and the witness's public key",
        strict=False,
    )
    witnesses_needed: int = _setting(0, "cosignatures without which verification fails", ge=0)
    timestamps: str = _setting("", "address of an RFC 3161 time-stamping authority that `anchor` asks; empty: none")
    timestamp_roots: str = _setting(
        "", "PEM file with the root certificates under which its timestamps are believed; empty: kept, but not verified"
    )
    listen: Annotated[str, AfterValidator(_listen_or_not)] = _setting(
        "", "`HOST:PORT` where `serve` answers `/healthz`, `/metrics` and event notifications; empty: off"
    )
    webhook_token_file: str = _setting(
        "",
        "file (mode 0600) with the token that senders of notifications must show, or `systemd:NAME`; empty: none is asked",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least important message that is logged")
    log_format: Literal["text", "json"] = _setting("text", "`key=value` lines or JSON lines")


class PveSettings(_Table):
    """`[pve]`: what a Proxmox VE node keeps locally for storages on S3; they themselves are in storage.cfg."""

    state_dir: str = _setting(
        "/var/lib/bucketworks/pve", "catalogue, cache and spool of each storage, on a disk that syncs"
    )
    run_dir: str = _setting("/run/bucketworks", "sockets")
    cache_bytes: Bytes = _setting(
        32 * GIB, "local copies of ISO images, templates and imports, for each storage; the least used go first", ge=MIB
    )
    spool_bytes: Bytes = _setting(
        2 * GIB, "parts of uploads on their way, for each upload; a writer waits when it is full", ge=16 * MIB
    )
    upload_wait_s: Seconds = _setting(
        300.0, "how long a backup waits for a store that takes nothing before it fails", gt=0
    )
    read_wait_s: Seconds = _setting(60.0, "how long a read of a backup waits for the store before it fails", gt=0)
    refresh_s: Seconds = _setting(60.0, "age at which the catalogue is compared with the bucket again", gt=0)
    probe_s: Seconds = _setting(30.0, "how often each storage is tried; after three misses it counts as inactive", gt=0)
    metrics_listen: Annotated[str, AfterValidator(_listen_or_not)] = _setting(
        "", "`HOST:PORT` for Prometheus to scrape, without password or TLS; empty: off"
    )
    node: str = _setting("", "name of this node in the cluster; empty: the host's name")
    gateway_listen: str = _setting("127.0.0.1", "address at which this node's QEMU and kernel find the disks")
    gateway_peer: str = _setting(
        "", "address at which other nodes find them (live migration); empty: this node's in the cluster, or none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least important message that is logged")
    log_format: Literal["text", "json"] = _setting("text", "`key=value` lines or JSON lines")


class EnvctlDriverSettings(_Table):
    """`[envctl.driver.NAME]`: where machines are made. `kind = "pve"`: a Proxmox VE cluster; `qemu`: this host."""

    kind: Literal["pve", "qemu"] = _setting("pve", "what makes machines")
    url: str = _setting(
        "", "`https://NODE:8006` of any node of the cluster; better of several, with commas between (pve)"
    )
    token: str = _setting(
        "", "where the API token is: `file:PATH` or `systemd:NAME`; `USER@REALM!NAME=SECRET` in it (pve)"
    )
    ca_file: str = _setting("", "PEM file of authorities to trust in place of the system's (pve)")
    fingerprint: str = _setting(
        "", "SHA-256 of the nodes' certificates, with commas between, trusted whoever signed them (pve)"
    )
    verify_tls: bool = _setting(True, "off: anybody on the way can read the token; `doctor` says so (pve)")
    pool: str = _setting("", "resource pool that machines go into (pve)")
    storage: str = _setting("", "storage of full clones; empty: the template's (pve)")
    vmid_first: int = _setting(90_000, "first number of the range that is ours alone (pve)", ge=100)
    vmid_last: int = _setting(98_999, "last number of it (pve)", ge=100)
    clones_at_once: int = _setting(2, "of one template", ge=1)
    bridge: str = _setting("", "`qemu-bridge-helper`'s bridge; empty: user networking behind this host (qemu)")
    state_dir: str = _setting("/var/lib/bucketworks/envctl/machines", "disks and sockets of machines (qemu)")
    accelerator: Literal["auto", "kvm", "tcg"] = _setting("auto", "`auto`: KVM where there is /dev/kvm (qemu)")


class OidcSettings(_Table):
    """`[envctl.oidc]`: sign in with an identity provider (OpenID Connect, code flow with PKCE)."""

    issuer: str = _setting("", "its address; empty: local accounts alone")
    client_id: str = _setting("", "as the provider knows the console")
    client_secret: str = _setting("", "where the secret is: `file:PATH` or `systemd:NAME`; empty: a public client")
    title: str = _setting("Single sign-on", "the button's text")
    groups_claim: str = _setting("groups", "claim whose values make members of groups")
    name_claim: str = _setting("preferred_username", "claim that a new account is called by")
    create_users: bool = _setting(True, "make an account at the first sign-in; else an admin does it before")
    scopes: Patterns = _setting(("openid", "profile", "email"), "what is asked for")


class EnvctlSettings(_Table):
    """`[envctl]`: the console that gives each user a machine and keeps the homes in a bucket."""

    listen: Listen = _setting("127.0.0.1:8480", "where the console listens")
    url: str = _setting("", "address at which browsers (and guests) find it; empty: http://`listen`")
    guest_url: str = _setting(
        "", "address for guests, where it is another: http://10.0.2.2:8480 behind QEMU's user network"
    )
    certificate: str = _setting("", "PEM file to serve https itself; empty: a proxy in front does, or loopback alone")
    private_key: str = _setting("", "PEM file of its key, mode 0600; or `systemd:NAME`")
    proxies: Networks = _setting((), "addresses or networks of proxies whose X-Forwarded-For is believed")
    state_dir: str = _setting("/var/lib/bucketworks/envctl", "database, key file")
    database: str = _setting("", "`postgresql+psycopg://USER@HOST/NAME`; empty: SQLite in `state_dir`")
    homes: str = _setting("", "`s3://ENDPOINT/BUCKET/PREFIX` or `file:///DIRECTORY` where homes are kept")
    ledger: str = _setting("", "name of a `[ledger.NAME]` that gets a record of each change too; empty: none")
    backup_interval_s: Seconds = _setting(300.0, "how often a home is saved", ge=30)
    keep_deleted_s: Seconds = _setting(30 * 86400.0, "how long the home of a deleted environment is kept", ge=0)
    orphan_grace_s: Seconds = _setting(
        86400.0, "how long a machine that no environment has is left before it is destroyed", ge=0
    )
    idle_stop_s: Seconds = _setting(0.0, "a machine that nobody uses is stopped after this; 0: never", ge=0)
    shutdown_s: Seconds = _setting(180.0, "how long a machine may take to shut down in order", gt=0)
    boot_s: Seconds = _setting(600.0, "how long a new machine may take until its agent answers", gt=0)
    restore_s: Seconds = _setting(6 * 3600.0, "how long a home may take to come back", gt=0)
    retention_fine_s: Seconds = _setting(86400.0, "every snapshot is kept for this long", ge=0)
    retention_hourly_s: Seconds = _setting(7 * 86400.0, "one an hour for this long", ge=0)
    retention_daily_s: Seconds = _setting(30 * 86400.0, "one a day for this long", ge=0)
    retention_weekly_s: Seconds = _setting(365 * 86400.0, "one a week for this long", ge=0)
    guard_fraction: float = _setting(
        0.3, "part of the files that changes at once before the snapshot before it is pinned", gt=0, le=1
    )
    bandwidth_bytes_per_s: Bytes = _setting(0, "most a guest sends or fetches in a second; 0: no limit", ge=0)
    session_idle_s: Seconds = _setting(8 * 3600.0, "a sign-in ends when nobody used it for this long", gt=0)
    session_s: Seconds = _setting(7 * 86400.0, "a sign-in ends after this at the latest", gt=0)
    require_totp: Literal["nobody", "admins", "everybody"] = _setting("nobody", "who must have a second factor")
    metrics_token: str = _setting(
        "", "where the token for /metrics is: `file:PATH` or `systemd:NAME`; empty: loopback alone may read them"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "least important message that is logged")
    log_format: Literal["text", "json"] = _setting("text", "`key=value` lines or JSON lines")
    oidc: OidcSettings = _setting(OidcSettings(), "sign in with an identity provider")
    driver: dict[Name, EnvctlDriverSettings] = Field(default_factory=dict, description="what makes machines, by name")


class StatusSettings(_Table):
    """`[status]`: what `bucketworks status` looks at, where hosts publish what they see, where requests are counted."""

    publish: Annotated[str, AfterValidator(_store_url_or_not)] = _setting(
        "",
        "where each host puts its status, for `bucketworks status --all` and the console: `s3://ENDPOINT/BUCKET/PREFIX` or"
        " `file:///DIRECTORY`, for nothing else; empty: nowhere",
    )
    host: Annotated[str, AfterValidator(lambda text: check_name(text) if text else "")] = _setting(
        "", "what this host is called there; empty: its host name up to the first dot"
    )
    deadline_s: Seconds = _setting(5.0, "longest wait for all that is asked; what has not answered is unknown", gt=0)
    manual: Annotated[str, AfterValidator(_web_address_or_not)] = _setting(
        "", "where this manual is served, `https://...`, for the console's links to the runbook; empty: pages are named"
    )
    stale_s: Seconds = _setting(900.0, "a published status that is older is told as stale", gt=0)
    spending_dir: str = _setting(
        "",
        "where requests and bytes are counted by endpoint and month; empty: `/var/lib/bucketworks/spending`; a"
        " service that is not root: in its state directory; other users: a folder below their home",
    )


TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("endpoint.NAME", EndpointSettings),
    ("endpoint.NAME.prices", PriceSettings),
    ("volume.NAME", VolumeSettings),
    ("s3block", S3BlockSettings),
    ("mirror.NAME", MirrorSettings),
    ("mirror.NAME.guard", GuardSettings),
    ("ledger.NAME", LedgerSettings),
    ("pve", PveSettings),
    ("envctl", EnvctlSettings),
    ("envctl.oidc", OidcSettings),
    ("envctl.driver.NAME", EnvctlDriverSettings),
    ("status", StatusSettings),
)

_AnyTable = TypeVar("_AnyTable", EndpointSettings, VolumeSettings, MirrorSettings, LedgerSettings)


class Config(_Table):
    """A whole configuration file, checked. An absent file is an empty one."""

    endpoints: dict[Name, EndpointSettings] = Field(default_factory=dict, alias="endpoint")
    volumes: dict[Name, VolumeSettings] = Field(default_factory=dict, alias="volume")
    mirrors: dict[Name, MirrorSettings] = Field(default_factory=dict, alias="mirror")
    ledgers: dict[Name, LedgerSettings] = Field(default_factory=dict, alias="ledger")
    s3block: S3BlockSettings = S3BlockSettings()
    pve: PveSettings = PveSettings()
    envctl: EnvctlSettings = EnvctlSettings()
    status: StatusSettings = StatusSettings()
    path: Path = Field(default=DEFAULT_PATH, exclude=True)
    """Where it was read from, or would have been: messages and `endpoint create` name it."""

    def endpoint(self, name: str, environ: Mapping[str, str] | None = None) -> Endpoint:
        """The endpoint with its keys, fetched now from their source. ConfigError names setting and cure."""
        settings = self._find("endpoint", name, self.endpoints, "create it: bucketworks endpoint create {}")
        plain = settings_to_endpoint(name, settings, path=self.path)
        try:
            return replace(plain, credentials=self._credentials(name, settings, environ))
        except CredentialsError as error:
            raise ConfigError(str(error)) from error

    def volume(self, name: str) -> VolumeSettings:
        """The volume's settings with everything unset filled in from `[s3block]`."""
        found = self._find("volume", name, self.volumes, "add it to the file, or create it: s3block create {}")
        return self.with_defaults(name, found)

    def with_defaults(self, name: str, volume: VolumeSettings) -> VolumeSettings:
        """`volume` with everything unset filled in from `[s3block]`, as `Config.volume` gives it."""
        common = self.s3block
        return volume.model_copy(
            update={
                "cache_bytes": volume.cache_bytes if volume.cache_bytes is not None else common.cache_bytes,
                "journal_bytes": volume.journal_bytes if volume.journal_bytes is not None else common.journal_bytes,
                "state_dir": volume.state_dir or str(Path(common.state_dir) / name),
                "listen": volume.listen if volume.listen is not None else common.listen,
                # What is advertised belongs to what is listened on: a volume with its own portal has its own.
                "advertise": volume.advertise
                if volume.advertise is not None
                else common.advertise
                if volume.listen is None
                else (),
                "iqn": volume.iqn or f"{common.iqn_prefix}:{name}",
            }
        )

    def mirror(self, name: str) -> MirrorSettings:
        """The mirror's settings with its folder and the place of its state filled in."""
        found = self._find("mirror", name, self.mirrors, "add it to the file, or create it: cowsync init {}")
        state_dir = found.state_dir or f"/var/lib/bucketworks/cowsync/{name}"
        state = found.state or f"file://{quote(str((Path(state_dir) / 'state').absolute()))}"
        return found.model_copy(update={"state_dir": state_dir, "state": state})

    def ledger(self, name: str) -> LedgerSettings:
        """The ledger's settings with its origin and folder filled in."""
        found = self._find("ledger", name, self.ledgers, "add it to the file, or create it: s3integrity init {}")
        return found.model_copy(
            update={
                "origin": found.origin or f"bucketworks/{name}",
                "state_dir": found.state_dir or f"/var/lib/bucketworks/ledger/{name}",
            }
        )

    def whereabouts(self, url: str) -> str:
        """A place in words that are the same for two endpoints of one server, without a slash at the end. ValueError for a
        URL that is none, ConfigError for an endpoint nobody configured. Keys are not asked for."""
        from s3core.build import parse_store_url

        place = parse_store_url(url)
        if place.scheme != "s3":
            return f"{place.scheme}:{place.name}/{place.path.strip('/')}".rstrip("/")
        settings = self._find("endpoint", place.name, self.endpoints, "create it: bucketworks endpoint create {}")
        # Servers of one provider differ by region, and names of buckets do not. With and without TLS it is one server.
        address = settings_to_endpoint(place.name, settings, path=self.path).address("", "region")
        host = address.host if address.port in (80, 443) else f"{address.host}:{address.port}"
        return f"{host}{address.path}/{place.bucket}/{place.path}".rstrip("/")

    def _find(self, kind: str, name: str, among: Mapping[str, _AnyTable], cure: str) -> _AnyTable:
        if name in among:
            return among[name]
        close = get_close_matches(name, among, n=1)
        hint = f"did you mean {close[0]}?" if close else cure.format(name)
        raise ConfigError(f"{self.path}: there is no [{kind}.{name}]", hint=hint)

    def _credentials(self, name: str, settings: EndpointSettings, environ: Mapping[str, str] | None) -> Credentials:
        if settings.access_key and settings.secret_key is not None:
            token = settings.session_token.get_secret_value() if settings.session_token else ""
            secret = settings.secret_key.get_secret_value()
            return Credentials(settings.access_key, secret, token, source=settings.origin or f"{self.path}")
        return find_credentials(name, settings.credentials, os.environ if environ is None else environ)


def config_path_of(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Path:
    """The file that is read: `path`, else the one BUCKETWORKS_CONFIG names, else DEFAULT_PATH."""
    named = (os.environ if environ is None else environ).get(PATH_VARIABLE, "")
    return path if path is not None else Path(named) if named else DEFAULT_PATH


def load_config(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration from `path`, else from the file BUCKETWORKS_CONFIG names, else from DEFAULT_PATH.

    An absent file is an empty configuration, unless `path` named it. ConfigError lists everything that is wrong."""
    chosen = config_path_of(path, environ=environ)
    try:
        text = chosen.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if path is not None:
            raise ConfigError(f"{path}: no such configuration file") from error
        return Config(path=chosen)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{chosen}: is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{chosen}: cannot be read: {error.strerror}") from error
    config = parse_config(text, path=chosen)
    if any(settings.secret_key for settings in config.endpoints.values()):
        try:
            require_private(chosen)
        except CredentialsError as error:
            raise ConfigError(str(error)) from error
    return config


def parse_tables(text: str, *, path: Path = DEFAULT_PATH, history: History = HISTORY) -> dict[str, Any]:
    """The tables in `text` as the newest version has them, without `version`. ConfigError where it is not TOML, and for a file
    that is newer than this program. An older one is read, and a warning says what to run."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    try:
        version = version_of(tables)
        if version > history.current:
            raise ConfigError(
                f"{path}: is of version {version}, and this program knows versions up to {history.current}",
                hint="install the program that wrote it, or run its `bucketworks config migrate --to "
                f"{history.current}` there; the backup beside the file is of the version before",
            )
        if version < history.current and (path, version) not in _told_old:
            _told_old.add((path, version))
            log.warning(
                "%s is of version %d and is read as such; version %d is current: run `bucketworks config migrate`",
                path,
                version,
                history.current,
            )
        tables = at_version(tables, history.current, history)
    except VersionError as error:
        raise ConfigError(f"{path}: {error}") from error
    del tables[KEY]
    return tables


def require_current(text: str, path: Path, history: History = HISTORY) -> None:
    """ConfigError for the text of a file that is of an older version."""
    try:
        version = version_of(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, VersionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if version < history.current:
        raise ConfigError(
            f"{path}: is of version {version}, and only files of version {history.current} are changed",
            hint="run `bucketworks config migrate` first",
        )


def parse_config(text: str, *, path: Path = DEFAULT_PATH, history: History = HISTORY) -> Config:
    """The configuration in `text`; `path` is for messages. ConfigError lists everything that is wrong."""
    tables = parse_tables(text, path=path, history=history)
    if "path" in tables:
        raise ConfigError(f"{path}: unknown table 'path'")
    try:
        config = Config.model_validate({**tables, "path": path})
    except ValidationError as error:
        problems = [_problem(dict(one), tables) for one in error.errors(include_url=False, include_input=False)]
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems)) from error
    for name, endpoint in config.endpoints.items():
        if bool(endpoint.access_key) != bool(endpoint.secret_key):
            raise ConfigError(f"{path}: [endpoint.{name}]: access_key and secret_key belong together; one is missing")
        if endpoint.access_key and "credentials" in endpoint.model_fields_set:
            raise ConfigError(f"{path}: [endpoint.{name}]: access_key and credentials are two sources; keep one")
        settings_to_endpoint(name, endpoint, path=path)
    for name, volume in config.volumes.items():
        _check_chap(f"{path}: [volume.{name}]", volume, "chap")
    _check_chap(f"{path}: [s3block]", config.s3block, "discovery_chap")
    for name, mirror in config.mirrors.items():
        if mirror.versions == "all" and mirror.vanished == "remove":
            raise ConfigError(
                f'{path}: [mirror.{name}]: vanished = "remove" has no meaning with versions = "all"',
                hint="delete markers come along; versions that the source has deleted for good stay on the mirror",
            )
    units: dict[tuple[str | None, int], str] = {}
    for name in config.volumes:
        served = config.volume(name)
        other = units.setdefault((served.iqn, served.lun), name)
        if other != name:
            raise ConfigError(
                f"{path}: [volume.{name}]: lun {served.lun} of {served.iqn} is [volume.{other}]",
                hint="give it another lun",
            )
    for setting in ("state", "state_dir"):
        places: dict[str, str] = {}
        for name in config.mirrors:
            place = str(getattr(config.mirror(name), setting))
            other = places.setdefault(place.rstrip("/"), name)
            if other != name:
                raise ConfigError(
                    f"{path}: [mirror.{name}]: {setting} {place} is that of [mirror.{other}]",
                    hint="what is known of one mirror is not true of another: give it a place of its own",
                )
    _check_covers(config)
    _check_envctl(config)
    return config


def _check_envctl(config: Config) -> None:
    where, envctl = f"{config.path}: [envctl]", config.envctl
    if bool(envctl.certificate) != bool(envctl.private_key):
        raise ConfigError(f"{where}: certificate and private_key belong together; one is missing")
    for name, url in (("url", envctl.url), ("guest_url", envctl.guest_url)):
        if url and (not url.startswith(("http://", "https://")) or "?" in url or "#" in url):
            raise ConfigError(f"{where}: {name}: {url!r} is no address, such as https://console.example")
    if envctl.certificate and envctl.url.startswith("http://"):
        raise ConfigError(f"{where}: url is http:// and the console serves https", hint="write https:// in url")
    if envctl.homes:
        try:
            _store_url(envctl.homes)
        except ValueError as error:
            raise ConfigError(f"{where}: homes: {error}") from error
    if envctl.ledger and envctl.ledger not in config.ledgers:
        raise ConfigError(f"{where}: ledger: there is no [ledger.{envctl.ledger}]", hint="create it: s3integrity init")
    for driver, one in envctl.driver.items():
        if one.vmid_first > one.vmid_last:
            raise ConfigError(f"{config.path}: [envctl.driver.{driver}]: vmid_first is above vmid_last")


def _check_covers(config: Config) -> None:
    """A ledger that recorded what is written to itself would never come to an end; a place in two ledgers would be in
    neither whole."""
    seen: dict[str, tuple[str, str]] = {}
    for name, ledger in config.ledgers.items():
        where = f"{config.path}: [ledger.{name}]: covers"
        for url in ledger.covers:
            try:
                covered, own = config.whereabouts(url), config.whereabouts(ledger.url)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from error
            if _lies_in(own, covered) or _lies_in(covered, own):
                raise ConfigError(
                    f"{where} {url}, and the ledger lies in it, or it in the ledger: {ledger.url}",
                    hint="a ledger has a bucket of its own",
                )
            for other, (holder, as_url) in seen.items():
                if holder != name and (_lies_in(other, covered) or _lies_in(covered, other)):
                    raise ConfigError(
                        f"{where} {url}, and [ledger.{holder}] covers {as_url}",
                        hint="one place is recorded in one ledger",
                    )
            seen[covered] = (name, url)


def _lies_in(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")


def _check_chap(where: str, table: "VolumeSettings | S3BlockSettings", prefix: str) -> None:
    one_way, mutual = f"{prefix}_user", f"{prefix}_mutual_user"
    for user in (one_way, mutual):
        secret = f"{user.removesuffix('user')}secret_file"
        if bool(getattr(table, user)) != bool(getattr(table, secret)):
            raise ConfigError(f"{where}: {user} and {secret} belong together; one is missing")
    if getattr(table, mutual) and not getattr(table, one_way):
        raise ConfigError(f"{where}: {mutual} needs {one_way} (RFC 7143 section 12.1.3)")


def settings_to_endpoint(name: str, settings: EndpointSettings, *, path: Path = DEFAULT_PATH) -> Endpoint:
    """The endpoint the settings and their preset describe, without keys. ConfigError."""
    given = settings.prices.model_dump(exclude_none=True)
    quoted = settings.if_match_quoted
    try:
        plain = from_preset(
            settings.preset, name, url=settings.url, region=settings.region, addressing=settings.addressing
        )
        return replace(
            plain,
            ca_file=settings.ca_file,
            fingerprint=settings.fingerprint,
            proxy=settings.proxy,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            retries=settings.retries,
            deadline_s=settings.deadline_s,
            requests_per_s=settings.requests_per_s,
            bytes_per_s=settings.bytes_per_s,
            concurrency=settings.concurrency,
            sign_payload=settings.sign_payload,
            if_match_quoted=PRESETS[settings.preset].if_match_quoted if quoted is None else quoted,
            prices=replace(plain.prices, **given) if given else plain.prices,
        )
    except ValueError as error:
        where = settings.origin or f"{path}: [endpoint.{name}]"
        raise ConfigError(f"{where}: {error}") from error


def _problem(error: dict[str, Any], tables: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"] if part != "[key]"]
    if error["type"] == "extra_forbidden":
        return _unknown(place)
    # Positions within a list or a union follow the setting's own name and say nothing to a reader.
    depth = 1 if place[0] in ("s3block", "pve", "envctl", "status") else 2
    if place[0] == "envctl" and place[1:2] in (["oidc"], ["driver"]):
        depth = min(len(place), 2 if place[1] == "oidc" else 3)
    table, rest = ".".join(place[:depth]), place[depth : depth + 1]
    if rest in (["prices"], ["guard"]) and len(place) > 3:
        table, rest = f"{table}.{rest[0]}", place[3:4]
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "missing":
        message = f"is required: {_model(place).model_fields[rest[0]].description}"
    elif error["type"] in ("model_type", "dict_type"):
        message = "must be a table"
    if not rest:
        return f"[{table}]: {message}"
    return f"[{table}]: {message}" if message.startswith(f"{rest[0]} ") else f"[{table}]: {rest[0]}: {message}"


def _unknown(place: list[str]) -> str:
    *within, word = place
    if not within:
        known = ["endpoint", "volume", "s3block", "mirror", "ledger", "pve", "envctl", "status"]
        return f"unknown table [{word}]{_suggest(word, known)}"
    chosen = _model(within)
    close = _suggest(word, list(chosen.model_fields))
    if not close:
        homes = [table for table, other in TABLES if word in other.model_fields and other is not chosen]
        close = f"; it is a setting of [{homes[0]}]" if homes else ""
    return f"[{'.'.join(within)}]: unknown setting {word!r}{close}"


def _suggest(word: str, known: list[str]) -> str:
    close = get_close_matches(word.lower(), known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _model(place: list[str]) -> type[BaseModel]:
    if place[0] == "s3block":
        return S3BlockSettings
    if place[0] == "pve":
        return PveSettings
    if place[0] == "volume":
        return VolumeSettings
    if place[0] == "mirror":
        return GuardSettings if place[2:3] == ["guard"] else MirrorSettings
    if place[0] == "ledger":
        return LedgerSettings
    if place[0] == "status":
        return StatusSettings
    if place[0] == "envctl":
        if place[1:2] == ["oidc"]:
            return OidcSettings
        return EnvctlDriverSettings if place[1:2] == ["driver"] else EnvctlSettings
    return PriceSettings if place[2:3] == ["prices"] else EndpointSettings
