"""`s3block lio attach|detach|status`: volumes behind the kernel's iSCSI target.

One rule: the daemon says what the volume is (size, sectors, UUID), the configuration who may reach it, the kernel what there
is. Nothing here is remembered between two commands.
"""

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from blockdev.arguments import StateDirOption, VolumeArgument, counted, duration, find, state_of
from blockdev.control import ControlClient, NotServed
from blockdev.errors import NotReady, Refused
from blockdev.lio import plan, saved, setup
from blockdev.lio.condition import condition
from blockdev.lio.found import Found, look
from blockdev.lio.kernel import Kernel
from blockdev.lio.wanted import Chap, Portal, Wanted
from blockdev.place import VolumePlace
from s3core.console import Column, JsonOption, new_app, size_column, write_json, write_line, write_note, write_record
from s3core.credentials import read_secret, secret_path
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.settings import Config, S3BlockSettings, VolumeSettings, load_config

app = new_app("lio", "Volumes behind the kernel's iSCSI target (LIO).")

ANSWER_PATIENCE_S = 5.0
POLL_S = 0.25
STEP_PREFIX = "  "


@app.command("attach")
def attach(
    volume: VolumeArgument,
    portals: Annotated[
        list[str] | None,
        typer.Option(
            "--portal",
            metavar="HOST:PORT",
            help="Listen there, and only there (several: say it again); without it, as listen in the settings.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change what is there and is not as in the settings.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", parser=duration, metavar="TIME", help="Wait so long for the daemon to serve the volume."
        ),
    ] = 0.0,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the kernel offer a volume that is served with door = "lio", now and after the next boot.

    Doing it again changes nothing; after `resize` it brings the new size along; after a crash it makes the rest."""
    config = load_config(config_path)
    place = find(config, volume)
    status = _served(place, state_of(place, state_dir), wait)
    wanted = _wanted(config, place, status, portals)
    changed = setup.attach(wanted, Kernel(), replace=replace, told=_told(as_json))
    if as_json:
        write_json(
            {"volume": wanted.volume, "iqn": wanted.iqn, "lun": wanted.lun, "changed": changed}
            | {"portals": [str(portal) for portal in wanted.portals]}
        )
        return
    if not changed:
        write_note(f"volume {wanted.volume} was attached already")
    for portal in wanted.portals:
        write_line(f"volume {wanted.volume} is LUN {wanted.lun} of target {wanted.iqn} at {portal}")


@app.command("detach")
def detach(
    volume: VolumeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also while initiators are logged in; they lose their disk.")
    ] = False,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a volume out of the kernel, now and after the next boot. Its daemon goes on, and its data stays.

    Refused while initiators are logged in."""
    config = load_config(config_path)
    place = find(config, volume)
    served = _status(state_of(place, state_dir)) is not None
    changed = setup.detach(
        place.name, Kernel(), iqn=str(place.settings.iqn), force=force, served=served, told=_told(as_json)
    )
    if as_json:
        write_json({"volume": place.name, "changed": changed})
    elif changed:
        write_line(f"volume {place.name} is detached from LIO")
    else:
        write_note(f"volume {place.name} was not attached to LIO")


@app.command("status")
def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VOLUME",
            help='Volumes, by name or URL; none: all with door = "lio", and all that LIO has of ours.',
            show_default=False,
        ),
    ] = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how volumes stand between their daemon, the kernel and what is saved. Ends with 1 if there are problems."""
    config = load_config(config_path)
    with _readable():
        found = look()
        kept = saved.read(saved.folder() / saved.NAME)
    rows = [_condition(config, name, found, kept, state_dir) for name in names or _of_interest(config, found)]
    if as_json:
        write_json(rows)
    elif not rows:
        write_note('no volume has door = "lio", and LIO has none of ours')
    for number, row in enumerate(rows if not as_json else []):
        if number:
            write_line()
        _write_condition(row)
    if any(row["problems"] for row in rows):
        raise typer.Exit(ExitCode.FINDING)


def _told(as_json: bool) -> setup.Told:
    return lambda step: None if as_json else write_note(f"{STEP_PREFIX}{step}")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise Refused(f"{error.filename} is not yours to read", hint="run it with sudo") from error


# --- what is asked of the daemon -------------------------------------------------------------------------------------


def _status(directory: Path) -> dict[str, Any] | None:
    """The daemon's status; None where none serves the volume. Raises Refused, NotReady."""
    try:
        with ControlClient(directory, timeout_s=ANSWER_PATIENCE_S) as client:
            return client.ask("status")
    except NotServed:
        return None


def _served(place: VolumePlace, directory: Path, wait_s: float) -> dict[str, Any]:
    """The status of the daemon that serves the volume for LIO. Raises NotServed, NotReady, Refused."""
    until = time.monotonic() + wait_s
    while True:
        status = _status(directory)
        if status is not None and status["state"] == "ready":
            break
        if time.monotonic() >= until:
            if status is None:
                raise NotServed(
                    f"no daemon serves volume {place.name}",
                    hint=f"`systemctl start s3block@{place.name}`, or `s3block serve {place.text}`",
                )
            raise NotReady(f"the daemon of volume {place.name} is {status['state']}", hint="--wait 10m waits for it")
        time.sleep(POLL_S)
    if status.get("door", "lio") != "lio":
        raise Refused(
            f"volume {place.name} is served by the portal of s3block itself",
            hint=f'set door = "lio" in [volume.{place.name}], and serve it again',
        )
    return status


def _wanted(config: Config, place: VolumePlace, status: dict[str, Any], portals: list[str] | None) -> Wanted:
    """Raises BadParameter, Refused, CredentialsError."""
    settings = place.settings
    return Wanted(
        volume=place.name,
        serial=str(status["identity"]),
        size_bytes=int(status["size_bytes"]),
        sector_bytes=int(status["sector_bytes"]),
        iqn=str(settings.iqn),
        lun=settings.lun,
        portals=_addresses(portals) if portals else _addresses(list(settings.listen or ())),
        initiators=tuple(dict.fromkeys(settings.initiators)),
        chap=_chap(settings, "chap"),
        discovery=_chap(config.s3block, "discovery_chap"),
    )


def _chap(settings: VolumeSettings | S3BlockSettings, prefix: str) -> Chap:
    """What the settings that begin with `prefix` say. Raises CredentialsError."""

    def pair(name: str) -> tuple[str, str]:
        user = str(getattr(settings, f"{name}_user"))
        return (
            (user, read_secret(secret_path(getattr(settings, f"{name}_secret_file"), os.environ))) if user else ("", "")
        )

    one_way, mutual = pair(prefix), pair(f"{prefix}_mutual")
    return Chap(*one_way, *mutual)


def _addresses(texts: list[str]) -> tuple[Portal, ...]:
    """Portals, with names of hosts looked up: LIO listens on addresses. BadParameter, Refused."""
    found: dict[Portal, None] = {}
    for text in texts:
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise typer.BadParameter(f"--portal: {text!r} is not HOST:PORT, such as 192.0.2.1:3260 or [::]:3260")
        try:
            found[Portal(str(ipaddress.ip_address(host.strip("[]"))), int(port))] = None
            continue
        except ValueError:
            pass  # a name
        try:
            for *_, address in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
                found[Portal(str(address[0]), int(port))] = None
        except OSError as error:
            raise Refused(f"{host} has no address: {error}", hint="write the address itself") from error
    return tuple(found)


# --- status ----------------------------------------------------------------------------------------------------------


def _of_interest(config: Config, found: Found) -> list[str]:
    configured = {name for name, settings in config.volumes.items() if settings.door == "lio"}
    return sorted(configured | {device.name for device in found.devices if device.ours})


def _condition(config: Config, name: str, found: Found, kept: saved.Document, state_dir: Path | None) -> dict[str, Any]:
    """Never raises for what is wrong with the volume or its daemon, as long as its name means something."""
    if name not in config.volumes and found.device(name) is not None:
        return condition(name, found, None, kept)  # one that was removed from the configuration
    place = find(config, name)
    told = _status(state_of(place, state_dir))
    differing: list[plan.Difference] = []
    if told is not None and "size_bytes" in told:
        differing = plan.differences(_wanted(config, place, told, None), found)
    return condition(place.name, found, told, kept, differing)


def _write_condition(row: dict[str, Any]) -> None:
    lines = [
        Column("name", "volume"),
        Column("state", "daemon"),
        size_column("size_bytes", "size"),
        Column("device", "device", _shown_device),
        Column("uio", "uio", lambda uio: f"/dev/{uio['name']}" if uio else "none"),
        Column("handler", "handler", lambda told: _pairs(told) if told else "not known"),
        Column("saved", "saved", lambda saved: "yes" if saved else "no"),
    ]
    write_record(row, lines, as_json=False)  # headings of 7 letters: the lines below are set like these
    for target in row["targets"]:
        shut = "" if target["open"] else ", closed"
        write_line(f"target   {target['iqn']}, LUN {target['lun']}{shut}")
        write_line(f"  at       {', '.join(target['portals']) or 'nowhere'}")
        who = "anybody" if target["anybody"] else ", ".join(target["initiators"]) or "nobody"
        write_line(f"  for      {who}; CHAP {target['chap']}")
        sessions = [f"{item['initiator']} {item['address']}".strip() for item in target["sessions"]]
        write_line(f"  in use   {counted(len(sessions), 'session')}{': ' if sessions else ''}{', '.join(sessions)}")
    for problem in row["problems"]:
        write_line(f"PROBLEM  {problem}")


def _shown_device(device: dict[str, Any] | None) -> str:
    if device is None:
        return "none"
    state = "" if device["enabled"] else ", not enabled"
    return f"{device['path']}, sectors of {device['sector_bytes']}, time-out {device['command_timeout_s']} s{state}"


def _pairs(told: dict[str, Any]) -> str:
    counters = {key: value for key, value in told.items() if isinstance(value, int | float)}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counters.items()) or "serves no device"
