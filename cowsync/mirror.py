"""A mirror opened: both buckets, the state, the folder, the catalogue; here and in the workers of a scan or an apply.

One rule: this is the rim. Everything that `work` needs comes out of the configuration here, and what goes to another
process or host is text (the configuration's path and a name), never a socket.
"""

import getpass
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cowsync.apply.copy_line import Place, lies_there
from cowsync.apply.pieces import LinesAnswer, LinesPiece, carry_lines
from cowsync.base.layers import Layers, Library, read
from cowsync.base.state import State
from cowsync.catalogue import Catalogue
from cowsync.errors import Refused
from cowsync.rows import Rows
from cowsync.scan.engine import Hold
from cowsync.scan.filters import Belongs, belongs
from cowsync.scan.ranges import KeyRange
from cowsync.scan.shard import ShardResult, ShardTask, scan_shard
from cowsync.scan.versions import scan_versions
from cowsync.sealing.keys import Keyring, Vault
from cowsync.sealing.only_sealed import OnlySealed
from cowsync.sealing.reading import OpenedBucket
from cowsync.versions import ALL
from integrity.coverage import covered
from integrity.recording import RecordingBucket, recorded_bucket, recorded_store
from s3core.bucket import Bucket
from s3core.bucket_stack import open_bucket
from s3core.build import build_store, parse_store_url
from s3core.console import command_name, program_version
from s3core.credentials import CredentialsError
from s3core.endpoint import Prices
from s3core.key_slot import Secret
from s3core.secret_source import read_secret
from s3core.settings import Config, ConfigError, GuardSettings, MirrorSettings, load_config
from s3core.wrapper import Operation

WORKER_OPEN_BYTES = 8 << 20
"""Segments that a process of a scan keeps: its pieces go through the base in order, and there are many such processes."""


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Mirror:
    """`folder` is on this host, on a disk that syncs: plans, journals, the catalogue, a cache of segments. `piece` runs
    one piece of a scan and may be sent to another process; `prices` are those of both endpoints. `target_identity` is another
    one where the mirror is another bucket or server, or is spoken to otherwise; `told` is what was read of
    earlier restore points, by name."""

    name: str
    settings: MirrorSettings
    source: Place
    target: Place
    state: State
    folder: Path
    piece: Callable[[ShardTask], ShardResult]
    prices: tuple[Prices, Prices] = (Prices(), Prices())
    where: dict[str, str] = field(default_factory=dict)
    target_identity: str = ""
    vault: Vault | None = None
    """The keys, where objects may be sealed; None: they never are."""
    check_recording: Callable[[], None] = _nothing
    """NotRecorded where a ledger covers the target and cannot take records."""
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def encrypted(self) -> bool:
        return self.vault is not None and self.vault.encrypting

    def check_encryption(self, *, begun: bool) -> None:
        """As `Vault.check`."""
        if self.vault is not None:
            self.vault.check(begun=begun)

    def writable(self, *, begun: bool) -> Place:
        """The target as objects are put there: with what seals them, if they are to be sealed. As `Vault.keyring`, and
        NotRecorded where a ledger covers the mirror and cannot take records: then nothing could be written."""
        self.check_recording()
        return replace(self.target, keyring=self.vault.keyring(begun=begun)) if self.vault is not None else self.target

    def opened_target(self, *, begun: bool) -> OpenedBucket | None:
        """The target's bucket with its objects as they were at the source; None where it is not encrypted. As
        `Vault.opening`."""
        keyring = self.vault.opening(begun=begun) if self.vault is not None else None
        return opened_bucket(self.target, keyring) if keyring is not None else None

    def readable(self, *, begun: bool) -> Place:
        """The target, to be read: its objects as they were at the source. As `Vault.opening`."""
        opened = self.opened_target(begun=begun)
        return Place(opened, self.target.prefix) if opened is not None else self.target

    @property
    def plans(self) -> Path:
        return self.folder / "plans"

    @property
    def spool(self) -> Path:
        return self.folder / "scan"

    @property
    def guard(self) -> GuardSettings:
        return self.settings.guard

    @property
    def all_versions(self) -> bool:
        return self.settings.versions == ALL

    @property
    def belongs(self) -> Belongs | None:
        return belongs(self.settings.include, self.settings.exclude)

    def journals(self, digest: str) -> Path:
        return self.folder / "applies" / digest

    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder / "catalogue.sqlite")


@contextmanager
def opened(config: Config, name: str) -> Iterator[Mirror]:
    """ConfigError for a mirror nobody knows or with settings that cannot be, Refused for one that would copy into itself.
    Opens no connection."""
    settings = config.mirror(name)
    check_settings(config, name, settings)
    folder = Path(settings.state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source, source_prefix = open_recorded(config, settings.source)
    # Where all versions are kept a write that is sent twice leaves two of them: it is looked for instead.
    once: Collection[Operation] = ("put", "copy", "delete") if settings.versions == ALL else ()
    target, target_prefix = open_recorded(config, settings.target, once=once)
    tool = command_name() or "cowsync"
    store = recorded_store(build_store(settings.state, config=config), settings.state, config, tool=tool)
    try:
        yield Mirror(
            name,
            settings,
            Place(source, source_prefix),
            Place(OnlySealed(target, target_prefix) if settings.key else target, target_prefix),
            State(store, folder / "segments"),
            folder,
            scan_piece,
            (_prices(config, settings.source), _prices(config, settings.target)),
            {
                "config": str(config.path.absolute()),
                "mirror": name,
                "settings": json.dumps(_compared(config, settings)),
                "target": json.dumps(_compared_for_lines(config, settings)),
                "opening": secrets.token_hex(8),
            },
            _identity(config, settings.target),
            Vault(
                name,
                store,
                target,
                target_prefix,
                secret_for(settings.key, f"mirror {name}") if settings.key else None,
                random=os.urandom,
                now=time.time,
                creator=f"bucketworks {program_version()}",
            ),
            target.ready if isinstance(target, RecordingBucket) else _nothing,
        )
    finally:
        source.close()
        target.close()
        store.close()


def open_recorded(config: Config, url: str, *, once: Collection[Operation] = ()) -> tuple[Bucket, str]:
    """As `open_bucket`. What is done to it is recorded where a ledger covers it, here as in a worker of a cluster, which
    records in its own host's slot: only who sends a request can say durably before it that it will, and after it how it
    ended. Every bucket that cowsync writes objects to is opened here."""
    bucket, prefix = open_bucket(url, config, once=once)
    return recorded_bucket(bucket, url, config, tool=command_name() or "cowsync worker"), prefix


@contextmanager
def open_place(config: Config, url: str) -> Iterator[Place]:
    """Any bucket and prefix, for a restore."""
    bucket, prefix = open_recorded(config, url)
    try:
        yield Place(bucket, prefix)
    finally:
        bucket.close()


def secret_for(source: str, of: str) -> Callable[[bool], Secret]:
    """Reads the secret when it is wanted. CredentialsError where it cannot be had."""

    def ask(question: str) -> str:
        if not sys.stdin.isatty():
            raise CredentialsError(f"{of}: there is no terminal to ask for the passphrase at; use passphrase-file:PATH")
        return getpass.getpass(question)

    def read_it(new: bool) -> Secret:
        try:
            secret = read_secret(source, of, ask=ask, environ=os.environ, new=new)
        except (ValueError, EOFError) as error:
            raise CredentialsError(f"{of}: key: {error or 'no passphrase was given'}") from error
        assert secret is not None  # the source is not empty
        return secret

    return read_it


def opened_bucket(target: Place, keyring: Keyring) -> OpenedBucket:
    """An encrypted mirror's bucket, read as if it were not encrypted."""
    stem = target.prefix

    def belongs(relative: str, key: str) -> bool:
        return key.startswith(stem) and lies_there(relative, key[len(stem) :])

    return OpenedBucket(target.bucket, keyring, belongs)


def check_apart(source: str, target: str) -> None:
    """Refused where one place lies in the other: a mirror would be mirrored again, without end."""
    if lies_in(source, target) or lies_in(target, source):
        raise Refused(
            f"source {source} and target {target} lie in each other",
            hint="choose another bucket, or prefixes of which none begins with the other",
        )


def lies_in(inner: str, outer: str) -> bool:
    """Whether the place that one URL names is the other's, or below it."""
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def check_settings(config: Config, name: str, settings: MirrorSettings) -> None:
    """What the configuration file's own check cannot see. ConfigError, or Refused as `check_apart`."""
    try:
        belongs(settings.include, settings.exclude)
        parse_store_url(settings.state)
        source, target = (_whereabouts(config, url) for url in (settings.source, settings.target))
    except ValueError as error:
        raise ConfigError(f"{config.path}: [mirror.{name}]: {error}") from error
    if not Path(settings.state_dir).is_absolute():
        raise ConfigError(
            f"{config.path}: [mirror.{name}]: state_dir {settings.state_dir!r} must begin with a slash: from another working "
            "directory the mirror would begin anew"
        )
    check_apart(settings.source, settings.target)
    if lies_in(source, target) or lies_in(target, source):
        raise Refused(
            f"source {settings.source} and target {settings.target} lie in each other: their endpoints are one server",
            hint="choose another bucket, or prefixes of which none begins with the other",
        )


def check_restore(config: Config, settings: MirrorSettings, to: str) -> None:
    """Refused for a place to restore to that holds the mirror or the state, or lies in one of them: a restore would write
    over what it reads, and with `delete` remove it. ConfigError for a URL that is none."""
    try:
        place = _whereabouts(config, to)
        ours = (("mirror", settings.target), ("state", settings.state))
        for what, url in ours:
            held = _whereabouts(config, url)
            if lies_in(place, held) or lies_in(held, place):
                raise Refused(
                    f"nothing is restored to {to}: it and the {what} at {url} lie in each other",
                    hint="choose another bucket, or a prefix of which none begins with the other; nothing was moved",
                )
    except ValueError as error:
        raise ConfigError(f"--to: {error}") from error


def _whereabouts(config: Config, url: str) -> str:
    """A place in words that are the same for two endpoints of one server. ValueError for a URL that is none."""
    place = parse_store_url(url)
    if place.scheme != "s3":
        return f"{place.scheme}:{place.name}/{place.path.strip('/')}".rstrip("/")
    endpoint = config.endpoint(place.name)
    # Servers of one provider differ by region, and names of buckets do not.
    address = endpoint.address("", "region")
    return f"{address.host}{address.path}/{place.bucket}/{place.path}".rstrip("/")


def check_versions(mirror: Mirror) -> None:
    """Refused for a mirror of all versions where one of the buckets keeps none."""
    for what, place in (("source", mirror.source), ("mirror", mirror.target)) if mirror.all_versions else ():
        if not place.bucket.properties.versioned:
            raise Refused(
                f'mirror {mirror.name} has versions = "all", and its {what}, {place.bucket.url}, does not keep versions',
                hint="enable versioning there (suspended is not enough, and the keys must be allowed to see it: "
                's3:GetBucketVersioning), or set versions = "current"; nothing was changed',
            )


def check_current(mirror: Mirror, what: str) -> None:
    """Refused for a mirror of all versions, of what is not to be had with them."""
    if mirror.all_versions:
        raise Refused(
            f'{what} knows current objects alone, and mirror {mirror.name} has versions = "all"',
            hint=f"nothing was changed; use: cowsync run {mirror.name}",
        )


def reader(layers: Layers, library: Library) -> Callable[[KeyRange], Iterator[Rows]]:
    """The rows of a base in a range."""
    return lambda within: read(layers, library, within.after, within.upto)


@dataclass(slots=True)
class _Opened:
    """What a worker keeps between the pieces of one run: connections and segments are costly to have anew. A worker that
    outlives a run reads configuration and keys again for the next one, and one that was forked (`process` is not its own)
    leaves its parent's connections alone."""

    opening: str
    process: int
    source: Place
    state: State
    belongs: Belongs | None
    bases: dict[str, Layers] = field(default_factory=dict)


_kept: dict[tuple[str, str], _Opened] = {}
_kept_ends: dict[tuple[str, str], tuple[str, Place, Place]] = {}
"""What a worker keeps between pieces of lines: of which opening, source and mirror."""
_kept_lock = threading.Lock()
"""A worker may run pieces in several threads."""


def scan_piece(task: ShardTask) -> ShardResult:
    """One piece, in a process that knows nothing but what `task.where` says: configuration, mirror and base. ConfigError
    where the configuration that is under that path here and now describes another mirror."""
    where = task.where
    with _kept_lock:
        kept = _kept.get((where["config"], where["mirror"]))
        if kept is None or (kept.opening, kept.process) != (where["opening"], os.getpid()):
            kept = _open_here(where)
            _kept[(where["config"], where["mirror"])] = kept
        base = where["base"]
        if base not in kept.bases:
            kept.bases = {base: kept.state.snapshot(base).layers if base else ()}
        layers = kept.bases[base]
    scan = scan_versions if task.versions else scan_shard
    return scan(task, kept.source.bucket, kept.source.prefix, reader(layers, kept.state), kept.belongs)


def carry_piece(piece: LinesPiece, hold: Hold) -> LinesAnswer:
    """Lines of a plan, in a process that knows nothing but what `piece.where` says. ConfigError as `scan_piece`."""
    where = piece.where
    with _kept_lock:
        kept = _kept_ends.get((where["config"], where["mirror"]))
        if kept is None or kept[0] != where["opening"]:
            kept = (where["opening"], *_open_ends_here(where))
            _kept_ends[(where["config"], where["mirror"])] = kept
    _, source, mirror = kept
    return carry_lines(piece, source, mirror, hold)


def _open_ends_here(where: Mapping[str, str]) -> tuple[Place, Place]:
    config = load_config(Path(where["config"]))
    settings = config.mirror(where["mirror"])
    _check_same(config, where, "target", _compared_for_lines(config, settings))
    if settings.key:
        raise ConfigError(
            f"{config.path}: [mirror.{where['mirror']}]: key: objects are sealed on the command's host alone"
        )
    source, source_prefix = open_recorded(config, settings.source)
    target, target_prefix = open_recorded(config, settings.target)
    return Place(source, source_prefix), Place(target, target_prefix)


def _check_same(config: Config, where: Mapping[str, str], kind: str, compared: Mapping[str, object]) -> None:
    wanted, here = json.loads(where[kind]), json.loads(json.dumps(compared))
    for name, value in wanted.items():
        if here[name] != value:
            raise ConfigError(
                f"{config.path}: [mirror.{where['mirror']}]: {name} is {here[name]!r} here, and {value!r} where the run began",
                hint="all hosts of a run need the same mirror in their configuration; a service reads its own when it starts",
            )


def _open_here(where: Mapping[str, str]) -> _Opened:
    config = load_config(Path(where["config"]))
    settings = config.mirror(where["mirror"])
    _check_same(config, where, "settings", _compared(config, settings))
    bucket, prefix = open_bucket(settings.source, config)
    store = build_store(settings.state, config=config)
    state = State(store, Path(settings.state_dir) / "segments", open_bytes=WORKER_OPEN_BYTES)
    return _Opened(
        where["opening"], os.getpid(), Place(bucket, prefix), state, belongs(settings.include, settings.exclude)
    )


def _compared(config: Config, settings: MirrorSettings) -> dict[str, object]:
    """What must be the same wherever pieces of one scan run, or they list different things."""
    return {
        "source": settings.source,
        "the source's endpoint": endpoint_url(config, settings.source),
        "state": settings.state,
        "the state's endpoint": endpoint_url(config, settings.state),
        "include": settings.include,
        "exclude": settings.exclude,
        "versions": settings.versions,
    }


def _compared_for_lines(config: Config, settings: MirrorSettings) -> dict[str, object]:
    """What must be the same wherever lines of one plan are carried out. What was seen of the mirror's server (that it
    keeps to conditions) is true where it is spoken to in the same way."""
    return {
        "source": settings.source,
        "the source's endpoint": endpoint_url(config, settings.source),
        "target": settings.target,
        "the target's endpoint": _identity(config, settings.target),
        "the ledger that covers the target": ", ".join({place.ledger for place in covered(config, settings.target)}),
    }


def endpoint_url(config: Config, url: str) -> str:
    """The address behind a place, "" where it has no endpoint."""
    place = parse_store_url(url)
    return config.endpoint(place.name).url if place.scheme == "s3" else ""


def _prices(config: Config, url: str) -> Prices:
    place = parse_store_url(url)
    return config.endpoint(place.name).prices if place.scheme == "s3" else Prices()


def _identity(config: Config, url: str) -> str:
    place = parse_store_url(url)
    if place.scheme != "s3":
        return url
    endpoint = config.endpoint(place.name)
    quoted = "quoted" if endpoint.if_match_quoted else "bare"
    return f"{endpoint.url} {endpoint.region} {endpoint.proxy or 'direct'} {quoted} {place.bucket}"
