"""Arguments and options that several `s3block` commands share, and what becomes of them.

One rule: whatever is wrong with the command line is found here, before a store is contacted, and ends in a usage error.
"""

import getpass
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from blockdev.place import VolumePlace, open_store, resolve
from blockdev.segments.key_slot import Secret
from s3core.console import progress, write_note
from s3core.credentials import KEY_SOURCES, check_key_source
from s3core.exit_codes import ExitCode
from s3core.quantities import parse_duration, parse_size
from s3core.secret_source import read_secret
from s3core.settings import Config
from s3core.settings_table import reason
from s3core.store import ObjectStore

VolumeArgument = Annotated[
    str,
    typer.Argument(
        metavar="VOLUME",
        help="A volume of the configuration file, or its URL: s3://ENDPOINT/BUCKET/PREFIX/NAME, file:///DIRECTORY/NAME.",
        show_default=False,
    ),
]

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        help="Folder for journals, maps and caches; each volume has one of its name in it.",
        show_default=False,
    ),
]


def usage(message: str) -> NoReturn:
    """End with a usage error."""
    raise typer.BadParameter(message)


def option(setting: str, flag: str, **more: Any) -> Any:
    """An option that stands in for a setting of [volume.NAME]; its help is the setting's reason."""
    return typer.Option(flag, help=reason("volume.NAME", setting), show_default=False, **more)


def size_option(setting: str, flag: str) -> Any:
    return option(setting, flag, parser=size, metavar="SIZE")


def duration_option(setting: str, flag: str) -> Any:
    return option(setting, flag, parser=duration, metavar="TIME")


KeyOption = Annotated[str | None, option("key", "--key", metavar="SOURCE")]

EncryptOption = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt it, with a key of its own that --key locks; --key alone does it too.")
]
CompressionOption = Annotated[
    str,
    typer.Option(
        "--compression", metavar="zstd|zstd-1..zstd-19|none", help="What frames are packed with; zstd is zstd-1."
    ),
]


def secret_of(place: VolumePlace) -> Secret | None:
    """What opens the volume, by its settings; None: it is not encrypted. BadParameter, CredentialsError."""
    return secret_from(place.settings.key, place.name)


def secret_for_new(place: VolumePlace, encrypt: bool) -> Secret | None:
    """The secret of a volume that is about to be made; None: it is not to be encrypted. BadParameter, CredentialsError."""
    if encrypt and not place.settings.key:
        usage(f"--encrypt needs a key: --key SOURCE, or key in [volume.{place.name}]; SOURCE is {KEY_SOURCES}")
    return secret_from(place.settings.key, place.name, new=True)


def secret_from(source: str, name: str, *, new: bool = False, flag: str = "--key") -> Secret | None:
    """The secret that `source` (see `credentials.KEY_SOURCES`) stands for; None for an empty one. `new`: it is about to be
    given to volume `name`, so a passphrase is asked for twice. BadParameter, CredentialsError."""

    def ask(question: str) -> str:
        if not sys.stdin.isatty():
            usage(f"{flag} passphrase: standard input is no terminal to ask at; use passphrase-file:PATH")
        try:
            return getpass.getpass(question)
        except EOFError as error:
            raise typer.Abort from error

    try:
        return read_secret(source, f"volume {name}", ask=ask, environ=os.environ, new=new)
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}") from error


def size(text: str) -> int:
    """Bytes, as a parser of options and arguments."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def duration(text: str) -> float:
    """Seconds, as an option's parser."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def find(config: Config, text: str, *, key: str | None = None) -> VolumePlace:
    """The volume a VOLUME argument means; `key` (of a --key option) stands in for its setting. BadParameter, ConfigError."""
    try:
        found = resolve(config, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if key is None:
        return found
    try:
        settings = found.settings.model_copy(update={"key": check_key_source(key)})
    except ValueError as error:
        raise typer.BadParameter(f"--key: {error}") from error
    return replace(found, settings=settings)


@contextmanager
def opened(config: Config, store_url: str) -> Iterator[ObjectStore]:
    """The store, closed afterwards."""
    store = open_store(config, store_url)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def steps(
    label: str, total: float | None, *, unit: Literal["bytes", "items"] = "items", quiet: bool = False
) -> Iterator[Callable[[float], None]]:
    """Progress of a long act, as a function to be told of steps done."""
    with progress(label, total, unit=unit, quiet=quiet) as shown:
        yield shown.advance


def consent(question: str, *, yes: bool, otherwise: str) -> None:
    """Ask before something that cannot be taken back; returns when the answer is yes. `otherwise` is what is said of a no,
    which ends the command. Without a terminal to ask at, only `yes` will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        usage(f"standard input is no terminal to ask at; say --yes if you mean it: {question}")
    if not typer.confirm(question, err=True):
        write_note(otherwise)
        raise typer.Exit(ExitCode.REFUSED)


def state_of(place: VolumePlace, state_dir: Path | None) -> Path:
    """What the volume keeps on this host, with --state-dir or without."""
    return place.state_dir if state_dir is None else state_dir / place.name


def moment(seconds: Any) -> str:
    """Unix seconds as people read them; nothing for None."""
    return "" if seconds is None else datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def counted(number: int, thing: str) -> str:
    """`1 object`, `2 objects`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
