"""`pve-s3 list|upload|download|rm` and `status|usage|warm`: volumes, for an operator.

One rule: the first ones ask the bucket and need nothing but a configuration; the last ones ask the core, whose numbers and
local copies they are about.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.arguments import (
    CredentialsOption,
    QuietOption,
    RootOption,
    StorageArgument,
    VolumeArgument,
    begin_logging,
    named_storage,
    pve_root,
)
from plugin.backup_command import send_shown, write_sent
from plugin.configuration import read_storages
from plugin.core_client import ask
from plugin.errors import BadVolume, NoSuchVolume, PluginError
from plugin.layout import DIRECTORIES, parse_volname, sidecars, volume_of_key
from plugin.protection import delete_volume
from plugin.restore_command import COLUMNS, fetch_shown, records, write_fetched
from plugin.session import opened, volume_named
from s3core.console import (
    Column,
    JsonOption,
    size_column,
    write_json,
    write_line,
    write_note,
    write_record,
    write_records,
)
from s3core.endpoint_commands import ConfigOption
from s3core.endpoint_commands import usage as wrong_usage
from s3core.exit_codes import ExitCode
from s3core.settings import ConfigError, load_config

ContentOption = Annotated[
    str, typer.Option("--content", metavar="CONTENT", help=f"Of one content alone: {', '.join(DIRECTORIES)}.")
]


def list_volumes(
    storage: StorageArgument,
    content: ContentOption = "",
    vmid: Annotated[int, typer.Option("--vmid", metavar="N", help="Backups of this guest alone.")] = 0,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the volumes of a storage as they are in the bucket now."""
    begin_logging()
    if content and content not in DIRECTORIES:
        wrong_usage(f"--content is one of {', '.join(DIRECTORIES)}, not {content!r}")
    with opened(named_storage(storage, root, credentials), config_path) as session:
        write_records(records(session, content=content, vmid=vmid), COLUMNS, as_json=as_json)


def upload(
    storage: StorageArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to send.", show_default=False)],
    name: Annotated[
        str,
        typer.Option(
            "--as", metavar="VOLUME", help="CONTENT/NAME. Without it FILE's own name tells: ISO images, backups."
        ),
    ] = "",
    notes: Annotated[str, typer.Option("--notes", metavar="TEXT", help="Of a backup.")] = "",
    quiet: QuietOption = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a file as a volume, verified. The same command goes on after a crash, and says so when it is there."""
    begin_logging()
    chosen = named_storage(storage, root, credentials)
    volume = volume_named(name) if name else parse_volname(_guessed(file.name))
    if notes and volume.content != "backup":
        wrong_usage("--notes are for backups")
    with opened(chosen, config_path, begin=True) as session:
        done = send_shown(session, file, volume, notes=notes, quiet=quiet)
    write_sent(storage, done, as_json)


def _guessed(name: str) -> str:
    for volname in (f"backup/{name}", f"iso/{name}"):
        found = volume_of_key(f"{DIRECTORIES[volname.partition('/')[0]]}/{name}")
        if found is not None and (found.content != "backup" or found.vmid):
            return volname
    raise BadVolume(f"{name} does not tell what it is", hint="say it with --as, such as --as vztmpl/debian-12.tar.zst")


def download(
    storage: StorageArgument,
    volume: VolumeArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file, or a folder for it.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that has other bytes.")] = False,
    quiet: QuietOption = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a volume into a file, verified. The same command goes on after a crash."""
    begin_logging()
    with opened(named_storage(storage, root, credentials), config_path) as session:
        write_fetched(storage, fetch_shown(session, volume_named(volume), file, force, quiet), as_json)


def remove(
    storage: StorageArgument,
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="What to delete.", show_default=False)],
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete volumes in the bucket, with their notes, logs and indexes. What is protected or locked is refused."""
    begin_logging()
    named = [volume_named(one) for one in volumes]
    with opened(named_storage(storage, root, credentials), config_path) as session:
        for volume in named:
            key = session.key(volume)
            there = session.there(key)
            delete_volume(session.bucket, key, now=time.time())
            if not there:  # what lay beside it is gone now
                raise NoSuchVolume(f"{storage}:{volume.volname} is not in {session.bucket.url}")
            for one in (key, *(session.storage.prefix + beside for beside in sidecars(volume.key))):
                session.catalogue.deleted(one)
            if not as_json:
                write_line(f"{storage}:{volume.volname}: deleted")
    if as_json:
        write_json({"deleted": [f"{storage}:{volume.volname}" for volume in named]})


def status(root: RootOption = None, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the storages of this node as the core sees them. Ends with 1 where one is not active."""
    begin_logging()
    run_dir = Path(load_config(config_path).pve.run_dir)
    rows: list[dict[str, Any]] = []
    for id, found in sorted(read_storages(pve_root(root)).items()):
        row: dict[str, Any] = {"storage": id, "active": False, "used": None, "total": None, "reason": ""}
        if isinstance(found, ConfigError):
            row["reason"] = str(found)
        else:
            try:
                row |= ask(run_dir, "status", id)
            except PluginError as error:
                row["reason"] = str(error)
        rows.append(row)
    columns = (
        Column("storage", "storage"),
        Column("active", "active", lambda flag: "yes" if flag else "NO"),
        *(size_column("used", "used"), size_column("total", "total"), Column("reason", "reason")),
    )
    write_records(rows, columns, as_json=as_json)
    if not all(row["active"] for row in rows):
        raise typer.Exit(ExitCode.FINDING)


def usage(storage: StorageArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what a storage holds, and what this node asked of it this month: requests, bytes, cost, budget."""
    begin_logging()
    told = ask(Path(load_config(config_path).pve.run_dir), "usage", storage)
    if as_json:
        write_json(told)
        return
    record = {
        "objects": told["objects"],
        "bytes": told["bytes"],
        **{f"month_{name}": value for name, value in told["month"].items()},
        "cost": ", ".join(f"{name} {value:.2f}" for name, value in told["cost"].items()) + f" {told['currency']}",
        "budget": ", ".join(f"{name} {100 * share:.0f} %" for name, share in told["budget"].items()) or "none",
        "cached": told["cache"]["bytes"],
    }
    lines = (
        *(Column("objects", "objects"), size_column("bytes", "bytes"), Column("month_requests", "requests this month")),
        *(size_column("month_up", "sent"), size_column("month_down", "fetched"), Column("cost", "cost")),
        *(Column("budget", "budget used"), size_column("cached", "local copies")),
    )
    write_record(record, lines, as_json=False)


def warm(
    storage: StorageArgument,
    volumes: Annotated[
        list[str] | None, typer.Argument(metavar="[VOLUME...]", help="Without any: all ISO images and templates.")
    ] = None,
    quiet: QuietOption = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch volumes into this node's cache ahead of time."""
    begin_logging()
    args = {"volnames": [volume_named(one, "iso").volname for one in volumes]} if volumes else {}
    told = ask(
        Path(load_config(config_path).pve.run_dir),
        "warm",
        storage,
        args,
        said=(lambda text: None) if quiet else write_note,
    )
    if as_json:
        write_json(told)
        return
    for one in told["fetched"]:
        write_line(f"{storage}:{one}: is here")
