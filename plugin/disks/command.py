"""`pve-s3 gateway|disk-serve`: what the units of disks run. `pve-s3 disks`: what an operator looks at."""

import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from plugin.arguments import RootOption, StorageArgument, named_storage, pve_root
from plugin.disks import gateway, launch, peers
from plugin.disks.place import SECRET, member_address, place_of
from plugin.disks.verbs import Disks
from s3core.console import Column, JsonOption, new_app, size_column, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.settings import load_config

app = new_app("disks", "Disks of guests, as the bucket has them.")

PATIENCE_S = 60.0


def run_gateway(
    port: Annotated[int, typer.Argument(metavar="PORT", help="bw-gateway-port of the storages.", min=1, max=65535)],
    root: RootOption = None,
    config_path: ConfigOption = None,
) -> None:
    """Lead initiators of this node, and other nodes that know the cluster's secret, to whoever serves a disk."""
    settings = load_config(config_path).pve
    place = pve_root(root)
    node = settings.node or socket.gethostname().partition(".")[0]
    peer = settings.gateway_peer or member_address(place, node)
    gateway.serve(Path(settings.run_dir) / "disks", place / SECRET, port, settings.gateway_listen, peer)


def disk_serve(
    activation: Annotated[Path, typer.Argument(metavar="FILE", help="The activation, below the run directory.")],
) -> None:
    """Become the `s3block serve` of an active disk."""
    launch.main(activation)


@app.command("list")
def list_disks(
    storage: StorageArgument, root: RootOption = None, config_path: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show every disk of a storage."""
    rows = _disks(storage, root, config_path).listing(None, until=time.monotonic() + PATIENCE_S)
    columns = [
        Column("volname", "DISK"),
        size_column("size", "SIZE"),
        size_column("used", "USED"),
        Column("parent", "CLONE OF"),
    ]
    write_records(rows, columns, as_json=as_json)


@app.command("unnamed")
def unnamed(
    storage: StorageArgument, root: RootOption = None, config_path: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Name volumes that are no disk: what a creation left that was stopped. `s3block delete` removes them."""
    disks = _disks(storage, root, config_path)
    found = disks.unnamed(until=time.monotonic() + PATIENCE_S)
    if as_json:
        write_json(found)
        return
    for name in found:
        write_line(f"{disks.place.store_url}/{name}")
    if found:
        write_note(f"remove with: s3block delete URL --config {disks.place.config_path}")


@app.command("secret")
def secret(root: RootOption = None) -> None:
    """Make the secret by which the cluster's gateways know each other, if there is none; say where it is."""
    path = pve_root(root) / SECRET
    peers.read_secret(path)
    write_line(str(path))


def _disks(storage: str, root: Path | None, config_path: Path | None) -> Disks:
    config = load_config(config_path)
    return Disks(place_of(named_storage(storage, root), config, pve_root(root)))
