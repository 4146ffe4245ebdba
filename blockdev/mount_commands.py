"""`s3block mount|umount` and `s3block initiator login|logout`: a volume as a file system of this host.

One rule: everything that can be refused is refused here before anything is changed; what is changed then is in
`mounting.plan`, step by step.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from blockdev.arguments import VolumeArgument, duration, find, opened, usage
from blockdev.errors import NotReady, Refused
from blockdev.mounting import initiator, plan, units
from blockdev.mounting.host import UNITS, Host, RealHost
from blockdev.mounting.initiator import Chap, Unit
from blockdev.mounting.units import MountUnit
from blockdev.place import VolumePlace, is_url
from blockdev.volumes import look
from s3core.console import Column, JsonOption, new_app, write_json, write_line, write_note, write_records
from s3core.credentials import read_secret, secret_path
from s3core.endpoint_commands import ConfigOption
from s3core.settings import DEFAULT_PATH, Config, ConfigError, VolumeSettings, load_config, parse_tables

app = new_app("initiator", "This host's own iSCSI session to a volume that it serves.")

PORT = 860
"""iSCSI's system port (RFC 7143 section 4.2.7.1): below 1024, so that only root can listen there in the daemon's absence."""
LOOPBACKS = tuple(f"127.0.0.{last}" for last in range(1, 255))
POLL_S = 0.5

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the steps and which of them are done already; change nothing.")
]


def real_host() -> Host:
    return RealHost()


# --- mount -----------------------------------------------------------------------------------------------------------


def mount(
    volume: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME]",
            help="A volume of the configuration file, or its URL; a URL is added to the file under the volume's name.",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        str | None, typer.Argument(metavar="[DIRECTORY]", help="Where, such as /srv/data.", show_default=False)
    ] = None,
    mkfs: Annotated[
        str, typer.Option("--mkfs", metavar="ext4|xfs", help="Make this file system on a volume that holds nothing.")
    ] = "",
    door: Annotated[
        str,
        typer.Option(
            "--door", metavar="portal|lio", help="Who speaks iSCSI for it; else as in its settings.", show_default=False
        ),
    ] = "",
    options: Annotated[
        str, typer.Option("--options", "-o", metavar="LIST", help="Options of mount(8); `_netdev` is always there.")
    ] = plan.DEFAULT_OPTIONS,
    dry_run: DryRunOption = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mount a volume on this host, now and after every boot; without arguments, show what is mounted so.

    Doing it again changes nothing, and finishes what was killed or failed half-way."""
    host = real_host()
    if volume is None:
        _show(host, as_json)
        return
    if directory is None:
        usage("say where: s3block mount VOLUME DIRECTORY")
    if mkfs not in ("", *plan.MKFS):
        usage(f"--mkfs makes {' or '.join(plan.MKFS)}, not {mkfs!r}")
    if door not in ("", "portal", "lio"):
        usage(f"--door is portal or lio, not {door!r}")
    try:
        where = units.check_directory(directory)
        options = units.check_options(options)
    except ValueError as error:
        usage(str(error))
    _require_root(host)
    with _turn(host, dry_run=dry_run):
        config = load_config(config_path)
        place = find(config, volume)
        _require_host(host, config, mkfs)
        wanted = _wanted(host, config, place, where, mkfs, door, options)
        _require_free(host, wanted)
        steps = plan.mount_plan(wanted)
        if dry_run:
            _print_plan(host, steps, as_json)
            return
        if not _served(host, wanted):
            _require_volume(config, place)
        changed = plan.perform(steps, host, _told(as_json))
    if as_json:
        write_json(
            {"volume": wanted.volume, "url": place.url, "directory": where, "device": str(wanted.unit.device)}
            | {"changed": changed}
        )
        return
    if not changed:
        write_note(f"volume {wanted.volume} was mounted already")
    write_line(f"volume {wanted.volume} is mounted at {where}, now and after every boot")
    write_note(f"undo: s3block umount {wanted.volume}")


def umount(
    what: Annotated[
        str, typer.Argument(metavar="VOLUME|DIRECTORY", help="What `s3block mount` was told.", show_default=False)
    ],
    leave_journal: Annotated[
        bool,
        typer.Option(
            "--leave-journal",
            help="Also when the store does not take the rest: it stays in the journal on this host, for the next time.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what `mount` did: unmount, log out, stop, disable. The volume and its data stay in the bucket.

    Refused while the directory is in use. Doing it again changes nothing, and finishes what was stopped half-way."""
    host = real_host()
    _require_root(host)
    _require_systemd(host)
    with _turn(host, dry_run=dry_run):
        config = load_config(config_path)
        units_here = _mount_units(host)
        if what.startswith("/"):
            here = [unit for unit in units_here if unit.directory == "/" + what.strip("/")]
            if not here:
                raise Refused(f"no volume is mounted at {what} by `s3block mount`", hint="`s3block mount` lists them")
            name = here[0].volume
        else:
            name = what.rpartition("/")[2] if is_url(what) else what
        if name not in config.volumes:
            config.volume(name)  # raises, with the nearest name
        place = find(config, name)
        unit = Unit(_portal(place.settings), str(place.settings.iqn), place.settings.lun)
        mounted = tuple(one for one in units_here if one.volume == name)
        _require_alone(host, place, name)
        settings, secrets = _added(config, name)
        steps = plan.umount_plan(
            plan.Mounted(name, place.state_dir, mounted, unit, config.path, leave_journal, settings, secrets)
        )
        if dry_run:
            _print_plan(host, steps, as_json)
            return
        changed = plan.perform(steps, host, _told(as_json))
    if as_json:
        write_json({"volume": name, "url": place.url, "state_dir": str(place.state_dir), "changed": changed})
        return
    if not changed:
        write_note(f"volume {name} was not mounted")
        return
    write_line(f"volume {name} is not mounted any more, nor will it be after a boot")
    write_note(f"what stays: the volume at {place.url}, its settings in {config.path}, its cache in {place.state_dir}")


# --- the session -----------------------------------------------------------------------------------------------------


@app.command("login")
def login(
    volume: VolumeArgument,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", parser=duration, metavar="TIME", help="Wait so long for the daemon to serve the volume."
        ),
    ] = 0.0,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Log this host in to a volume that it serves; prints the disk. Doing it again changes nothing."""
    host = real_host()
    _require_root(host)
    initiator.require_tool(host)
    place = find(load_config(config_path), volume)
    until = host.now() + wait
    while (state := (host.daemon(place.state_dir) or {}).get("state")) != "ready":
        if host.now() >= until:
            raise NotReady(
                f"volume {place.name} is not served on this host"
                if state is None
                else f"volume {place.name} is {state}",
                hint=f"`systemctl status {units.daemon_unit(place.name)}` says why",
            )
        host.sleep(POLL_S)
    unit = _unit(place)
    device = initiator.login(host, unit, _chap(place.settings))
    if as_json:
        write_json({"volume": place.name, "device": str(device), "iqn": unit.iqn, "portal": unit.portal})
    else:
        write_line(str(device))


@app.command("logout")
def logout(
    volume: VolumeArgument,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            parser=duration,
            metavar="TIME",
            help="While somebody uses the disk: write out what is in memory and unmount it again and again, for so long.",
        ),
    ] = 0.0,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End this host's session to a volume; refused while its disk is in use. The daemon goes on."""
    host = real_host()
    _require_root(host)
    place = find(load_config(config_path), volume)
    _unmount_again(host, place, host.now() + wait)
    ended = initiator.logout(host, _unit(place))
    if as_json:
        write_json({"volume": place.name, "ended": ended})
    elif ended:
        write_line(f"this host is logged out of volume {place.name}")
    else:
        write_note(f"this host was not logged in to volume {place.name}")


def _unmount_again(host: Host, place: VolumePlace, until: float) -> None:
    """When a host goes down, services may still be ending that use a mount and are not ordered after it: systemd has tried to
    unmount it once by then, and would stop the daemon next."""
    device = _unit(place).device
    while host.in_use(device) and host.now() < until:
        there = {one.directory for one in host.mounted()}
        for unit in _mount_units(host):
            if unit.volume == place.name and unit.directory in there:
                # With nobody to take it, it would wait for ever.
                if (host.daemon(place.state_dir) or {}).get("state") == "ready":
                    host.run("sync", "-f", unit.directory)
                host.run("systemctl", "stop", "--no-block", unit.name)
        host.sleep(POLL_S)


# --- what is wanted --------------------------------------------------------------------------------------------------


def _wanted(
    host: Host, config: Config, place: VolumePlace, directory: str, mkfs: str, door: str, options: str
) -> plan.Wanted:
    """Raises Refused, ConfigError."""
    name = place.name
    own = config.volumes.get(name)
    if own is not None and own.url.rstrip("/") != place.store_url:
        raise Refused(
            f"[volume.{name}] in {config.path} is the volume at {own.url}, not {place.url}",
            hint="the name is what units and targets are called by: import or clone one of the two under another name",
        )
    if place.settings.key == "passphrase":
        raise Refused(
            f"volume {name} asks for a passphrase, and nobody is there at boot",
            hint="use passphrase-file:PATH or systemd:NAME",
        )
    if own is not None and door and door != own.door:
        raise Refused(f'[volume.{name}] says door = "{own.door}"', hint="change it there, or leave --door away")
    settings: dict[str, str | tuple[str, ...]] = {}
    secrets: tuple[Path, ...] = ()
    if own is None:
        settings["url"] = place.store_url
        if door == "lio":
            settings["door"] = door
    if not (own.listen if own is not None else None) and "listen" not in config.s3block.model_fields_set:
        # Nobody has said who may reach it: this host alone, and of its users root alone.
        settings["listen"] = (_free_address(host, config),)
        if own is None or not own.chap_user:
            secrets = _secret_files(config, name)
            settings |= {"chap_user": name, "chap_secret_file": str(secrets[0])}
            settings |= {"chap_mutual_user": f"{name}-target", "chap_mutual_secret_file": str(secrets[1])}
    served = place.settings
    if "listen" in settings:
        served = served.model_copy(update={"listen": settings["listen"]})
    unit = Unit(_portal(served), str(served.iqn), served.lun)

    def lacks(text: str | None) -> bool:
        table = parse_tables(text, path=config.path).get("volume", {}).get(name, {}) if text else {}
        return any(key not in table for key in settings)

    return plan.Wanted(
        volume=name,
        config=config.path,
        state_dir=place.state_dir,
        door=cast('Literal["portal", "lio"]', door or served.door),
        unit=unit,
        mount=MountUnit(name, unit.device, directory, options),
        mkfs=cast('Literal["", "ext4", "xfs"]', mkfs),
        secrets=secrets,
        settings=tuple(settings.items()),
        lacks=lacks,
    )


def _secret_files(config: Config, name: str) -> tuple[Path, Path]:
    return config.path.parent / f"{name}.chap", config.path.parent / f"{name}.chap-mutual"


def _added(config: Config, name: str) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Settings and secrets of a configured volume that are there by `mount` alone."""
    own, files = config.volumes[name], _secret_files(config, name)
    keys: list[str] = []
    if own.listen and all(_ours(address) for address in own.listen):
        keys.append("listen")
    if (own.chap_secret_file, own.chap_mutual_secret_file) == (str(files[0]), str(files[1])):
        keys += ["chap_user", "chap_secret_file", "chap_mutual_user", "chap_mutual_secret_file"]
    elif str(files[0]) in (own.chap_secret_file, own.chap_mutual_secret_file):
        return tuple(keys), ()
    return tuple(keys), files


def _ours(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return port == str(PORT) and host in LOOPBACKS


def _free_address(host: Host, config: Config) -> str:
    """Raises Refused."""
    taken = {address for volume in config.volumes.values() for address in volume.listen or ()}
    for loopback in LOOPBACKS:
        if f"{loopback}:{PORT}" not in taken and host.can_listen(loopback, PORT):
            return f"{loopback}:{PORT}"
    raise Refused(
        f"no address of this host's loopback is free at port {PORT}", hint="set listen in the volume's settings"
    )


def _unit(place: VolumePlace) -> Unit:
    return Unit(_portal(place.settings), str(place.settings.iqn), place.settings.lun)


def _portal(settings: VolumeSettings) -> str:
    """Where this host reaches the first address the volume is served at."""
    address = (settings.listen or ("127.0.0.1:3260",))[0]
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '127.0.0.1'}.get(host, host) }:{port}"


def _chap(settings: VolumeSettings) -> Chap:
    """Raises CredentialsError."""

    def secret(path: str) -> str:
        return read_secret(secret_path(path, os.environ)) if path else ""

    return Chap(
        settings.chap_user,
        secret(settings.chap_secret_file),
        settings.chap_mutual_user,
        secret(settings.chap_mutual_secret_file),
    )


# --- what stands in the way ------------------------------------------------------------------------------------------


def _turn(host: Host, *, dry_run: bool) -> AbstractContextManager[None]:
    """Two that look at once would both find a free address, or a blank disk."""
    if dry_run:
        return nullcontext()
    return host.turn(lambda: write_note("waiting for another s3block mount or umount on this host"))


def _require_root(host: Host) -> None:
    if not host.root():
        raise Refused("this changes mounts and services, which is root's to do", hint="run it with sudo")


def _require_systemd(host: Host) -> None:
    if not host.is_there(Path("/run/systemd/system")) or not host.has("systemctl"):
        raise Refused(
            "this host was not booted with systemd, which is what mounts after a boot",
            hint="in a container: mount on the host, and hand the directory in",
        )


def _require_host(host: Host, config: Config, mkfs: str) -> None:
    """Raises Refused, ConfigError."""
    _require_root(host)
    _require_systemd(host)
    initiator.require_tool(host)
    for tool in ("blkid", *(plan.MKFS[mkfs][:1] if mkfs else ())):
        if not host.has(tool):
            raise Refused(f"{tool} is not installed", hint=f"apt install {plan.PACKAGES[tool]}")
    if config.path.resolve() != DEFAULT_PATH:
        raise ConfigError(
            f"services read {DEFAULT_PATH}, not {config.path}", hint="put the endpoint and the volume there; then mount"
        )
    for unit in (units.daemon_unit("x"), units.initiator_unit("x")):
        if host.run("systemctl", "cat", unit).status:
            raise Refused(
                f"systemd does not know {unit.replace('x.', '.')}",
                hint="install the Debian package, or copy deploy/systemd/s3block*@.service to /etc/systemd/system and run"
                " `systemctl daemon-reload`",
            )


def _require_free(host: Host, wanted: plan.Wanted) -> None:
    """That neither the directory nor the volume is something else's. Raises Refused."""
    directory, name = wanted.mount.directory, wanted.volume
    for unit in _mount_units(host):
        if unit.volume == name and unit.directory != directory:
            raise Refused(f"volume {name} is mounted at {unit.directory}", hint=f"first: s3block umount {name}")
        if unit.volume != name and unit.directory == directory:
            raise Refused(f"{directory} is where volume {unit.volume} is mounted", hint="take another directory")
    for line in (host.text(Path("/etc/fstab")) or "").splitlines():
        words = line.split()
        if len(words) > 1 and not line.lstrip().startswith("#") and words[1].rstrip("/") == directory:
            raise Refused(
                f"{directory} is in /etc/fstab: {words[0]}", hint="take another directory, or remove that line"
            )
    ours = host.text(UNITS / wanted.mount.name)
    if ours is not None and not units.volume_of(ours):
        raise Refused(f"{UNITS / wanted.mount.name} is somebody else's", hint="take another directory")
    there = [one for one in host.mounted() if one.directory == directory]
    if there and ours is None:
        raise Refused(f"{directory} is a mount of {there[-1].source}", hint="take another directory, or unmount that")
    if not there:
        try:
            entries = host.entries(Path(directory))
        except NotADirectoryError as error:
            raise Refused(f"{directory} is no directory") from error
        if [entry for entry in entries or [] if entry != "lost+found"]:
            raise Refused(
                f"{directory} is not empty: a mount would hide {entries and entries[0]}", hint="take an empty one"
            )
    told = host.daemon(wanted.state_dir)
    if told is not None and plan.state(host, units.daemon_unit(name)) in plan.ENDED:
        raise Refused(
            f"process {told.get('pid')} serves volume {name} on this host, and is not {units.daemon_unit(name)}",
            hint="end it first",
        )
    if told is not None and told.get("portals") and wanted.settings:
        raise Refused(
            f"{units.daemon_unit(name)} serves volume {name} at {', '.join(told['portals'])} by older settings",
            hint=f"systemctl stop {units.daemon_unit(name)}, then again",
        )


def _require_volume(config: Config, place: VolumePlace) -> None:
    """That there is such a volume, before a service is set up that would look for it for ever. Raises store errors."""
    with opened(config, place.store_url) as store:
        found = look(store, place.name)
    if found.error is not None:
        raise found.error
    assert found.volume is not None
    if found.volume.encryption is not None and not place.settings.key:
        raise ConfigError(
            f"volume {place.name} is encrypted", hint=f'name its key: key = "file:PATH" in [volume.{place.name}]'
        )


def _require_alone(host: Host, place: VolumePlace, name: str) -> None:
    """That nobody else has the volume as a disk: stopping its daemon would take it away. Raises Refused."""
    told = host.daemon(place.state_dir) or {}
    ours = _initiator_name(host)
    others = sorted({str(one["initiator"]) for one in told.get("sessions", [])} - {ours})
    if others:
        raise Refused(f"volume {name} is in use by {', '.join(others)}", hint="log them out first; nothing was stopped")


def _initiator_name(host: Host) -> str:
    for line in (host.text(Path("/etc/iscsi/initiatorname.iscsi")) or "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "InitiatorName":
            return value.strip()
    return ""


def _served(host: Host, wanted: plan.Wanted) -> bool:
    return host.daemon(wanted.state_dir) is not None


# --- what is there ---------------------------------------------------------------------------------------------------


def _mount_units(host: Host) -> list[MountUnit]:
    found = []
    for entry in host.entries(UNITS) or []:
        if entry.endswith(".mount"):
            unit = units.parse(host.text(UNITS / entry) or "")
            if unit is not None:
                found.append(unit)
    return found


def _show(host: Host, as_json: bool) -> None:
    there = {one.directory: one for one in host.mounted()}
    rows: list[dict[str, Any]] = [
        {
            "volume": unit.volume,
            "directory": unit.directory,
            "mounted": unit.directory in there,
            "filesystem": there[unit.directory].kind if unit.directory in there else None,
            "device": str(unit.device),
            "options": unit.options,
        }
        for unit in _mount_units(host)
    ]
    if not rows and not as_json:
        write_note("no volume is mounted here; s3block mount VOLUME DIRECTORY does it")
        return
    columns = [
        Column("volume", "VOLUME"),
        Column("directory", "DIRECTORY"),
        Column("mounted", "MOUNTED", lambda yes: "yes" if yes else "no"),
        Column("filesystem", "TYPE"),
    ]
    write_records(rows, columns, as_json=as_json)


def _print_plan(host: Host, steps: tuple[plan.Step, ...], as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for step in steps:
        # From the first one that is not done on, nobody can know: a file system is looked for on a disk that is there.
        known = all(row["done"] for row in rows)
        rows.append({"step": str(step), "done": known and step.done(host)})
    if as_json:
        write_json(rows)
        return
    for row in rows:
        write_line(f"{'done' if row['done'] else 'to do':<5}  {row['step']}")


def _told(as_json: bool) -> plan.Told:
    return lambda step: None if as_json else write_note(f"  {step}")
