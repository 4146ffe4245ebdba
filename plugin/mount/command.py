"""`pve-s3 mount`, `mounts`, `unmount`: the process of one mount; which there are, what is open on them; and taking one away
without hurting anybody."""

import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from plugin.arguments import CredentialsOption, RootOption, StorageArgument, named_storage
from plugin.configuration import Storage
from plugin.errors import BadVolume, Busy, DeadlineOver, NotServed
from plugin.mount import library
from plugin.mount.control import call, socket_path
from plugin.mount.parts import opened_filesystem
from plugin.mount.process import DRAIN_S, MountProcess, MountSettings, is_ours
from plugin.properties import FILES
from s3core.console import Column, JsonOption, program_version, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.logs import configure_logging
from s3core.settings import load_config

log = logging.getLogger(__name__)

STOP_S: Final = DRAIN_S + 30.0

PathOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="DIR", help="Mount here, not at the storage's path.", show_default=False),
]
DrainOption = Annotated[
    float,
    typer.Option("--drain", metavar="SECONDS", help="How long open files are waited for when it is told to stop."),
]


def mount(
    storage: StorageArgument,
    path: PathOption = None,
    drain: DrainOption = DRAIN_S,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
) -> None:
    """Mount a storage and serve it until told to stop (SIGTERM)."""
    found = named_storage(storage, root, credentials)
    if found.type != FILES:
        raise BadVolume(f"storage {storage} is of type {found.type}", hint=f"only {FILES} storages have a mount")
    config = load_config(config_path)
    configure_logging(config.pve.log_level, config.pve.log_format)
    library.check_device()
    library.find_library()
    with opened_filesystem(found, config) as (filesystem, uploader):
        for key in uploader.clean_up():
            log.warning("%s: an upload that a dead process left was aborted", key)
        settings = MountSettings(
            storage=found.id,
            mountpoint=mountpoint_of(found, path),
            socket=socket_path(Path(config.pve.run_dir), found.id),
            version=program_version(),
            drain_s=drain,
            digest=found.digest,
        )
        MountProcess(filesystem, settings, environ=os.environ, upkeep=uploader.clean_up).run()


def mountpoint_of(storage: Storage, given: Path | None = None) -> Path:
    return (given or Path(storage.path or f"/mnt/pve/{storage.id}")).absolute()


def mounts(
    open_files: Annotated[bool, typer.Option("--open", help="One line for each open file.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the mounts of this node, and what is open on them."""
    run_dir = Path(load_config(config_path).pve.run_dir)
    rows: list[dict[str, object]] = []
    for socket in sorted(run_dir.glob("mount-*.sock")):
        name = socket.stem.removeprefix("mount-")
        try:
            told = call(socket, "status")
        except NotServed as error:
            rows.append({"storage": name, "mountpoint": "", "pid": "", "open": "", "state": f"dead: {error}"})
            continue
        state = "stopping" if told["stopping"] else "idle" if told["idle"] else "in use"
        shown = {"storage": name, "mountpoint": told["mountpoint"], "pid": told["pid"], "version": told["version"]}
        if open_files:
            rows += [shown | {"state": state} | one for one in told["open"]]
        else:
            rows.append(shown | {"open": len(told["open"]), "state": state})
    columns = [Column("storage", "storage"), Column("mountpoint", "mountpoint"), Column("state", "state")]
    if open_files:
        columns += [Column("path", "file"), Column("mode", "mode"), Column("size", "bytes"), Column("pid", "opened by")]
    else:
        columns += [Column("open", "open files"), Column("pid", "pid"), Column("version", "version")]
    write_records(rows, columns, as_json=as_json)


def unmount(
    storage: StorageArgument,
    idle: Annotated[bool, typer.Option("--idle", help="Only if nothing is open there; else fail at once.")] = False,
    config_path: ConfigOption = None,
) -> None:
    """Take a mount away: what is open is waited for, unless --idle."""
    socket = socket_path(Path(load_config(config_path).pve.run_dir), storage)
    try:
        told = call(socket, "status")
    except NotServed:
        write_note(f"storage {storage} is not mounted")
        return
    if idle and not call(socket, "stop_idle").get("stopping"):
        raise _in_use(storage, call(socket, "status"))
    if not idle:
        call(socket, "stop")
    deadline = time.monotonic() + STOP_S
    while _answers(socket) or is_ours(Path(told["mountpoint"])):
        if time.monotonic() > deadline:
            raise DeadlineOver(
                f"the mount of {storage} is still there", hint="`pve-s3 mounts --open` tells what is open"
            )
        time.sleep(0.1)


def _in_use(storage: str, told: dict[str, Any]) -> Busy:
    names = [str(one["path"]) for one in told.get("open", [])]
    shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
    return Busy(f"the mount of {storage} is in use: {shown}", hint="`pve-s3 mounts --open` tells by which processes")


def _answers(socket: Path) -> bool:
    try:
        call(socket, "status")
    except NotServed:
        return False
    return True
