"""`pve-s3 upgrade-mounts`: mounts on which nothing is open end, so that they begin again with the code that is installed now.

One rule: a mount with an open file goes on as it is: an ISO image in a guest, a backup that is written.
"""

import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.errors import NotServed
from plugin.mount.control import call
from plugin.service.mounts import SYSTEMD, UNIT
from s3core.console import Column, JsonOption, program_version, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.settings import load_config

COLUMNS = (
    *(Column("storage", "storage"), Column("version", "version"), Column("open", "open files"), Column("done", "done")),
)
COMMAND_S = 60.0


def upgrade_mounts(
    stop: Annotated[
        bool, typer.Option("--stop", help="End them for good, also those of this version: for removal.")
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start mounts of another version anew where nothing is open on them; show the others. With --stop all idle ones end, and
    the command ends with 1 where one has open files."""
    rows = [_row(path, stop) for path in sorted(Path(load_config(config_path).pve.run_dir).glob("mount-*.sock"))]
    write_records([row for row in rows if row["done"]], COLUMNS, as_json=as_json)
    if stop and any(row["done"] == "in use" for row in rows):
        raise typer.Exit(ExitCode.FINDING)


def _row(path: Path, stop: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"storage": path.stem.removeprefix("mount-"), "version": "", "open": 0, "done": ""}
    try:
        told = call(path, "status")
        row |= {"version": told.get("version", ""), "open": len(told.get("open", []))}
        if not stop and row["version"] == program_version():
            return row
        ended = call(path, "stop_idle").get("stopping", False)
    except NotServed as error:
        write_note(f"{row['storage']}: {error}")
        return row
    row["done"] = "in use"
    if ended:
        row["done"] = "ended"
        if not stop and SYSTEMD.is_dir():  # elsewhere the core starts it when Proxmox VE asks next
            unit = UNIT.format(row["storage"])
            subprocess.run(["systemctl", "--no-block", "restart", unit], timeout=COMMAND_S, check=False)
            row["done"] = "started anew"
    return row
