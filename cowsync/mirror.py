"""A mirror opened: both buckets, the state, the folder, the catalogue; here and in the workers of a scan.

One rule: this is the rim. Everything that `work` needs comes out of the configuration here, and what goes to another
process or host is text (the configuration's path and a name), never a socket.
"""

from collections.abc import Callable, Iterator
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
from cowsync.scan.shard import ShardResult, ShardTask
from s3core.endpoint import Prices
from s3core.settings import GuardSettings, MirrorSettings


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
