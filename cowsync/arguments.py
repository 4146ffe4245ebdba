"""Arguments and options that several `cowsync` commands share, and what becomes of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cowsync.mirror import Mirror, opened
from cowsync.scan.engine import Engine, InlineEngine, ProcessEngine
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
LimitOption = Annotated[int, typer.Option("--limit", help="Show at most so many; 0: all.", min=0)]


def usage(message: str) -> NoReturn:
    """End with a usage error."""
    raise typer.BadParameter(message)


@contextmanager
def mirror_of(config_path: Path | None, name: str) -> Iterator[Mirror]:
    """The mirror of that name, opened. ConfigError where there is none."""
    with opened(load_config(config_path), name) as mirror:
        yield mirror


@contextmanager
def engine_for(mirror: Mirror) -> Iterator[Engine]:
    """What the pieces of a scan run on: processes, or this one where a single one is asked for or the source is in
    this process alone."""
    lanes = mirror.settings.scanners or os.cpu_count() or 1
    inline = lanes == 1 or mirror.settings.source.startswith("memory:")
    engine: Engine = InlineEngine() if inline else ProcessEngine(lanes)
    try:
        yield engine
    finally:
        engine.close()
