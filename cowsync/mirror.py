"""A mirror opened: both buckets, the state, the folder, the catalogue; here and in the workers of a scan.

One rule: this is the rim. Everything that `work` needs comes out of the configuration here, and what goes to another
process or host is text (the configuration's path and a name), never a socket.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cowsync.apply.copy_line import Place
from cowsync.base.layers import Layers, Library, read
from cowsync.base.state import State
from cowsync.catalogue import Catalogue
from cowsync.errors import Refused
from cowsync.rows import Rows
from cowsync.scan.filters import Belongs, belongs
from cowsync.scan.ranges import KeyRange
from cowsync.scan.shard import ShardResult, ShardTask, scan_shard
from s3core.bucket_stack import open_bucket
from s3core.build import build_store, parse_store_url
from s3core.endpoint import Prices
from s3core.settings import Config, GuardSettings, MirrorSettings, load_config

WORKER_OPEN_BYTES = 8 << 20
"""Segments that a process of a scan keeps: its pieces go through the base in order, and there are many such processes."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """`folder` is on this host, on a disk that syncs: plans, journals, the catalogue, a cache of segments. `piece` runs
    one piece of a scan and may be sent to another process; `prices` are those of both endpoints."""

    name: str
    settings: MirrorSettings
    source: Place
    target: Place
    state: State
    folder: Path
    piece: Callable[[ShardTask], ShardResult]
    prices: tuple[Prices, Prices] = (Prices(), Prices())
    where: dict[str, str] = field(default_factory=dict)

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
    def belongs(self) -> Belongs | None:
        return belongs(self.settings.include, self.settings.exclude)

    def journals(self, digest: str) -> Path:
        return self.folder / "applies" / digest

    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder / "catalogue.sqlite")


@contextmanager
def opened(config: Config, name: str) -> Iterator[Mirror]:
    """ConfigError for a mirror nobody knows, Refused for one that would copy into itself. Opens no connection."""
    settings = config.mirror(name)
    check_apart(settings.source, settings.target)
    folder = Path(settings.state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source, source_prefix = open_bucket(settings.source, config)
    target, target_prefix = open_bucket(settings.target, config)
    store = build_store(settings.state, config=config)
    try:
        yield Mirror(
            name,
            settings,
            Place(source, source_prefix),
            Place(target, target_prefix),
            State(store, folder / "segments"),
            folder,
            scan_piece,
            (_prices(config, settings.source), _prices(config, settings.target)),
            {"config": str(config.path), "mirror": name},
        )
    finally:
        source.close()
        target.close()
        store.close()


@contextmanager
def open_place(config: Config, url: str) -> Iterator[Place]:
    """Any bucket and prefix, for a restore."""
    bucket, prefix = open_bucket(url, config)
    try:
        yield Place(bucket, prefix)
    finally:
        bucket.close()


def check_apart(source: str, target: str) -> None:
    """Refused where one place lies in the other: a mirror would be mirrored again, without end."""
    first, second = (f"{url.rstrip('/')}/" for url in (source, target))
    if first.startswith(second) or second.startswith(first):
        raise Refused(
            f"source {source} and target {target} lie in each other",
            hint="choose another bucket, or prefixes of which none begins with the other",
        )


def reader(layers: Layers, library: Library) -> Callable[[KeyRange], Iterator[Rows]]:
    """The rows of a base in a range."""
    return lambda within: read(layers, library, within.after, within.upto)


@dataclass(slots=True)
class _Opened:
    """What a worker keeps between pieces: connections and segments are costly to have anew."""

    name: str
    source: Place
    state: State
    belongs: Belongs | None
    base: str = ""
    layers: Layers = ()


_kept: dict[tuple[str, str], _Opened] = {}


def scan_piece(task: ShardTask) -> ShardResult:
    """One piece, in a process that knows nothing but what `task.where` says: configuration, mirror and base."""
    where = task.where
    kept = _kept.get((where["config"], where["mirror"]))
    if kept is None:
        config = load_config(Path(where["config"]))
        settings = config.mirror(where["mirror"])
        bucket, prefix = open_bucket(settings.source, config)
        store = build_store(settings.state, config=config)
        state = State(store, Path(settings.state_dir) / "segments", open_bytes=WORKER_OPEN_BYTES)
        kept = _Opened(where["mirror"], Place(bucket, prefix), state, belongs(settings.include, settings.exclude))
        _kept[(where["config"], where["mirror"])] = kept
    if kept.base != where["base"]:
        kept.layers = kept.state.snapshot(where["base"]).layers if where["base"] else ()
        kept.base = where["base"]
    return scan_shard(task, kept.source.bucket, kept.source.prefix, reader(kept.layers, kept.state), kept.belongs)


def _prices(config: Config, url: str) -> Prices:
    place = parse_store_url(url)
    return config.endpoint(place.name).prices if place.scheme == "s3" else Prices()
