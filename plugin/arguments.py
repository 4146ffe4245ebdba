"""Arguments and options that several commands share, and what becomes of them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from plugin.configuration import ROOT_VARIABLE, STORAGE_CFG, Storage, find_storage, storage_from_environment
from s3core.console import DEBUG_VARIABLE
from s3core.logs import configure_logging
from s3core.settings import ConfigError

LOG_LEVELS = ("debug", "info", "warning", "error")

StorageArgument = Annotated[
    str, typer.Argument(metavar="STORAGE", help="A storage of storage.cfg, by its id.", show_default=False)
]
VolumeArgument = Annotated[
    str,
    typer.Argument(
        metavar="VOLUME", help="A volume: CONTENT/NAME, with or without STORAGE: before it.", show_default=False
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--pve-root", metavar="DIR", help="Folder that stands for / of the node, for drills.", hidden=True),
]
CredentialsOption = Annotated[
    Path | None,
    typer.Option("--credentials", metavar="FILE", help="INI file with keys and bucket, where there is no storage.cfg."),
]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def begin_logging() -> None:
    """What a command logs, on standard error: warnings, or what PVE_S3_LOG_LEVEL or PVE_S3_DEBUG asks for. ConfigError."""
    level = os.environ.get("PVE_S3_LOG_LEVEL", "").lower() or "warning"
    if os.environ.get("PVE_S3_DEBUG", "0").lower() not in ("", "0", "no", "false"):
        level = "debug"
        os.environ[DEBUG_VARIABLE] = "1"
    if level not in LOG_LEVELS:
        raise ConfigError(f"PVE_S3_LOG_LEVEL is one of {', '.join(LOG_LEVELS)}, not {level!r}")
    configure_logging(level, "text")


def pve_root(given: Path | None = None) -> Path:
    """What stands before /etc/pve: the option, else the variable, else /."""
    return given or Path(os.environ.get(ROOT_VARIABLE) or "/")


def named_storage(id: str, root: Path | None = None, credentials: Path | None = None) -> Storage:
    """The storage of that id: of storage.cfg where there is one and no file of credentials was named, else of the
    environment. NoSuchVolume, ConfigError."""
    place = pve_root(root)
    if credentials is None and (place / STORAGE_CFG).exists():
        return find_storage(id, place)
    return storage_from_environment(id, os.environ, credentials)
