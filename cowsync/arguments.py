"""Arguments and options that several `cowsync` commands share, and what becomes of them."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cowsync.errors import Refused
from cowsync.mirror import Mirror, check_current, opened
from cowsync.scan.engine import Crew, Engine, InlineEngine, ProcessEngine
from s3core.console import write_note
from s3core.settings import load_config

MirrorArgument = Annotated[
    str, typer.Argument(metavar="MIRROR", help="A mirror of the configuration file.", show_default=False)
]
DigestArgument = Annotated[
    str,
    typer.Argument(
        metavar="[DIGEST]", help="A plan, by its digest or the beginning of it; the newest where none is named."
    ),
]
ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="tcp://HOST:PORT",
        help="List, compare and copy on the Dask cluster of this scheduler, not here.",
    ),
]
EventsOption = Annotated[
    str,
    typer.Option(
        "--events",
        metavar="FEED",
        help="S3 notifications as JSON lines: a file, a folder of files, a FIFO, or - for standard input.",
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", help="Show at most so many; 0: all.", min=0)]

CLUSTER_ADDRESS = re.compile(r"(tcp|tls)://[^/\s]+:[0-9]+")

ApproveOption = Annotated[
    str,
    typer.Option(
        "--approve", metavar="DIGEST", help="Carry out this plan though the guard holds it (8 digits or more)."
    ),
]


def usage(message: str) -> NoReturn:
    """End with a usage error."""
    raise typer.BadParameter(message)


@contextmanager
def mirror_of(config_path: Path | None, name: str) -> Iterator[Mirror]:
    """The mirror of that name, opened. ConfigError where there is none."""
    with opened(load_config(config_path), name) as mirror:
        yield mirror


@contextmanager
def engine_for(mirror: Mirror, cluster: str = "") -> Iterator[Engine]:
    """What the pieces of a scan run on: a cluster where one is named, else processes, or this one where a single one is
    asked for or the source is in this process alone."""
    lanes = mirror.settings.scanners or os.cpu_count() or 1
    engine: Engine
    if cluster:
        engine = _cluster_engine(mirror, cluster)
    elif lanes == 1 or mirror.settings.source.startswith("memory:"):
        engine = InlineEngine()
    else:
        engine = ProcessEngine(lanes)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def crew_for(mirror: Mirror, cluster: str = "") -> Iterator[Crew | None]:
    """Who carries out lines: a cluster where one is named, else None, this process."""
    if not cluster:
        yield None
        return
    check_cluster(mirror, cluster, ("source", "target"))
    crew = _connected(cluster)
    try:
        yield crew
    finally:
        crew.close()


def check_cluster(mirror: Mirror, cluster: str, reached: Sequence[str]) -> None:
    """A usage error where it is no address of a cluster, or its workers cannot get at what the settings `reached` name.
    Refused for the target of an encrypted mirror, and of one of all versions."""
    if not CLUSTER_ADDRESS.fullmatch(cluster):
        usage(f"--cluster must be the address of a Dask scheduler, tcp://HOST:PORT or tls://HOST:PORT, not {cluster!r}")
    if "target" in reached:
        check_current(mirror, "an apply on a cluster")
    if "target" in reached and mirror.encrypted:
        raise Refused(
            f"mirror {mirror.name} is encrypted: its objects are sealed on this host, and the key goes to no other",
            hint=f"cowsync plan {mirror.name} --cluster … lists there; apply without --cluster",
        )
    for setting in reached:
        if getattr(mirror.settings, setting).startswith("memory:"):
            usage(f"--cluster: the {setting} of mirror {mirror.name} is in the memory of this process alone")


def _cluster_engine(mirror: Mirror, cluster: str) -> Engine:
    check_cluster(mirror, cluster, ("source", "state"))
    if mirror.settings.state.startswith("file:"):
        write_note(
            f"note: the state of {mirror.name} is a folder ({mirror.settings.state}): every worker must have the same one "
            'there, on a shared file system; `state = "s3://..."` needs none'
        )
    return _connected(cluster)


def _connected(cluster: str) -> Crew:
    # Imported when it is used: it needs an extra.
    from cowsync.scan.dask_engine import DaskEngine

    return DaskEngine(cluster)
