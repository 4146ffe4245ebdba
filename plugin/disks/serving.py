"""Disks that are active on this node: which they are, the process that serves each, and where an initiator is led.

    RUN/disks/STORAGE/VOLUME.json     an activation: the disk is wanted here; gone after a reboot
    STATE/STORAGE/disks/VOLUME/       journal, map, cache and control socket of its `s3block serve`
    STATE/STORAGE/disks/VOLUME.log    what that process says

One rule: nothing is remembered. Whether a disk is served here its control socket tells, whether another node serves it that
node's gateway; who may serve it the volume's log decides, so that a wrong belief costs a refusal and no data.

What a crash leaves: an activation without a process, which the next login at the gateway or the next activation starts
again; a process without an activation, which ends when it is deactivated once more or when the node stops.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from blockdev.control import ControlClient, NotServed
from blockdev.errors import BlockError
from plugin.disks import peers
from plugin.disks.records import Records, Serving
from plugin.errors import Busy, DeadlineOver, PluginError, Refused
from s3core.build import build_store
from s3core.settings import load_config

UNIT: Final = "bucketworks-disk@.service"
LOOK_PATIENCE_S: Final = 5.0
POLL_S: Final = 0.1
_started: list[subprocess.Popen[bytes]] = []
"""Begun by this process, so that they are not left as zombies of it."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A disk that is wanted on this node. `target`: its iSCSI name; `snapshot`: it is a view of that one; `kernel`: the
    kernel is logged in to it; `config` is for `s3block serve`, `store_config` for its place in the store."""

    storage: str
    name: str
    volume: str
    target: str
    store_url: str
    config: str
    store_config: str
    state_dir: str
    log: str
    node: str
    peer_host: str
    port: int
    secret: str
    snapshot: str = ""
    kernel: bool = False

    @property
    def process_file(self) -> Path:
        return Path(self.state_dir).with_name(f"{self.volume}.run")

    @staticmethod
    def read(path: Path) -> "Activation":
        """Raises FileNotFoundError."""
        told: dict[str, Any] = json.loads(path.read_bytes())
        return Activation(**told)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, path)


@dataclass(frozen=True, slots=True)
class Looked:
    """What the process of a disk says of itself. `portal`: where it listens, None while it does not."""

    pid: int
    state: str
    portal: tuple[str, int] | None
    sessions: int
    size_bytes: int | None
    allocated_bytes: int | None


@dataclass(frozen=True, slots=True)
class Route:
    """Where the connection of an initiator goes: to a portal of this node, or to another node's gateway."""

    host: str
    port: int
    local: bool


def activations(run_dir: Path) -> Iterator[tuple[Path, Activation]]:
    """Of all storages; `run_dir` is the folder of all disks."""
    for path in sorted(run_dir.glob("*/*.json")):
        with contextlib.suppress(FileNotFoundError):
            yield path, Activation.read(path)


def active(run_dir: Path, target: str) -> tuple[Path, Activation] | None:
    return next((found for found in activations(run_dir) if found[1].target == target), None)


def initiators(path: Path) -> int:
    """How many connections of this node's initiators the gateway has for an activation, wherever they lead."""
    return sum(1 for _ in _present(path).glob("*"))


def note_initiator(path: Path, name: str, *, here: bool) -> None:
    """Told by the gateway when a connection begins and ends. What a gateway that was killed left, `forget_initiators`
    removes."""
    folder = _present(path)
    if here:
        folder.mkdir(exist_ok=True, mode=0o700)
        (folder / name).touch()
    else:
        (folder / name).unlink(missing_ok=True)


def forget_initiators(run_dir: Path, gateway: str) -> None:
    """When a gateway begins it has no connections. `gateway`: what its names begin with."""
    for file in run_dir.glob(f"*/*.initiators/{gateway}*"):
        file.unlink(missing_ok=True)


def _present(path: Path) -> Path:
    return path.with_suffix(".initiators")


def look(state_dir: Path) -> Looked | None:
    """None: no process serves from there. Raises Busy when one does and does not answer."""
    try:
        with ControlClient(state_dir, timeout_s=LOOK_PATIENCE_S) as client:
            told = client.ask("status")
    except NotServed:
        return None
    except BlockError as error:
        raise Busy(f"the process that serves {state_dir.name} does not answer: {error}") from error
    portals = told.get("portals") or []
    host, _, port = str(portals[0]).rpartition(":") if portals else ("", "", "")
    ready = told["state"] == "ready" and bool(portals)
    return Looked(
        pid=int(told["pid"]),
        state=str(told["state"]),
        portal=(host.strip("[]"), int(port)) if ready else None,
        sessions=len(told.get("sessions") or []),
        size_bytes=told.get("size_bytes"),
        allocated_bytes=told.get("allocated_bytes"),
    )


@contextlib.contextmanager
def held(activation: Activation, until: float) -> Iterator[None]:
    """Core and gateway start and stop a disk one after the other. Raises Busy."""
    path = Path(activation.state_dir).with_name(f"{activation.volume}.lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(f"disk {activation.name} is just being started or stopped") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def open_records(activation: Activation) -> tuple[Records, Any]:
    """And the store, to be closed."""
    store = build_store(activation.store_url, config=load_config(Path(activation.store_config)))
    return Records(store), store


def route(path: Path, *, until: float) -> Route:
    """Where an initiator of this active disk goes, after starting its process where nobody serves it. Raises Refused where
    the volume may not be attached here, DeadlineOver, store errors, FileNotFoundError where it is not active any more."""
    with held(Activation.read(path), until):
        return _route(path, Activation.read(path), until)


def _route(path: Path, activation: Activation, until: float) -> Route:
    while True:
        here = look(Path(activation.state_dir))
        if here is not None and here.portal is not None:
            return Route(*here.portal, local=True)
        if here is None:
            there = _elsewhere(activation)
            if isinstance(there, Route):
                return there
            if not there:
                return _begin(path, activation, until)
        _pause(activation, until)


def _elsewhere(activation: Activation) -> Route | bool:
    """The node that serves it; True: one is about to begin or to end; False: nobody that can be asked does."""
    records, store = open_records(activation)
    try:
        serving = records.serving(activation.volume)
    finally:
        store.close()
    if serving is None or serving.node == activation.node or not serving.host:
        return False
    try:
        said = peers.ask(serving.host, serving.port, peers.read_secret(Path(activation.secret)), activation.target)
    except PluginError:
        return False
    return Route(serving.host, serving.port, local=False) if said == "serving" else said == "busy"


def _begin(path: Path, activation: Activation, until: float) -> Route:
    # One that was begun before may still attach, or may be about to end: then another one is begun.
    others = running(activation) is not None
    ended = partial(_is_over, activation) if others else launch(path)
    while True:
        over = ended()  # before the look: it may be ready and be stopped in between, never the other way round
        here = look(Path(activation.state_dir))
        if here is not None and here.portal is not None:
            break
        if here is None and over and running(activation) is not None:
            others, ended = True, partial(_is_over, activation)  # of two that began at once, this one was faster
        elif here is None and over and others:
            others, ended = False, launch(path)
        elif here is None and over:
            activation.process_file.unlink(missing_ok=True)
            raise Refused(f"disk {activation.name} cannot be served here: {complaint(activation)}")
        _pause(activation, until)
    records, store = open_records(activation)
    try:
        records.serve(activation.volume, Serving(activation.node, activation.peer_host, activation.port))
    finally:
        store.close()
    return Route(*here.portal, local=True)


def _pause(activation: Activation, until: float) -> None:
    if time.monotonic() > until:
        raise DeadlineOver(
            f"disk {activation.name} is not served yet",
            hint=f"its process goes on; {activation.log} says what it waits for",
        )
    time.sleep(POLL_S)


def running(activation: Activation) -> int | None:
    """The process that serves the disk, or tries to: it holds a lock for all of its life."""
    try:
        descriptor = os.open(activation.process_file, os.O_RDWR)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0)
    return None


def crashed(activation: Activation) -> bool:
    """Whether its process ended here without being told to."""
    return activation.process_file.exists() and running(activation) is None


def _is_over(activation: Activation) -> bool:
    return running(activation) is None


def revive(path: Path, activation: Activation) -> bool:
    """Start the process again that ended here without being told to: nobody else may serve the disk until it has. False:
    none did."""
    if not crashed(activation):
        return False
    with contextlib.suppress(Busy), held(activation, time.monotonic()):
        if running(activation) is None:
            launch(path)
    return True


def launch(path: Path) -> Callable[[], bool]:
    """Start the process of an activation: as a unit of its own where systemd runs, else in its own session. What is
    returned tells whether it has ended."""
    unit = unit_of(path)
    if unit is not None:
        start_unit(unit)
        return lambda: _unit_ended(unit)
    process = subprocess.Popen(
        [sys.executable, "-m", "plugin.disks.launch", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    adopt(process)
    return lambda: process.poll() is not None


def start_unit(unit: str) -> None:
    """Until its program runs. Raises Refused with what systemd says."""
    subprocess.run(["systemctl", "reset-failed", unit], check=False, capture_output=True)
    told = subprocess.run(["systemctl", "start", unit], check=False, capture_output=True, text=True)
    if told.returncode != 0:
        raise Refused(f"{unit} does not start: {' '.join(told.stderr.split())}", hint=f"see `journalctl -u {unit}`")


def unit_of(path: Path) -> str | None:
    """None where systemd does not run, or does not have our unit."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemd-escape") is None:
        return None
    if subprocess.run(["systemctl", "cat", UNIT], check=False, capture_output=True).returncode != 0:
        return None
    told = subprocess.run(
        ["systemd-escape", "--path", f"--template={UNIT}", str(path)], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def adopt(process: subprocess.Popen[bytes]) -> None:
    """A process that outlives us; should it end before, it is not left as a zombie."""
    _started[:] = [one for one in _started if one.poll() is None]
    _started.append(process)


def _unit_ended(unit: str) -> bool:
    told = subprocess.run(
        ["systemctl", "show", "-p", "ActiveState", "--value", unit], check=False, capture_output=True, text=True
    )
    return told.stdout.strip() in ("failed", "inactive")


def complaint(activation: Activation) -> str:
    """The last error in the log of the disk's process, with its hint; says where the log is when there is none."""
    try:
        lines = Path(activation.log).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("error: "):
            hint = lines[number + 1].strip() if number + 1 < len(lines) and lines[number + 1].startswith("  ") else ""
            return lines[number].removeprefix("error: ") + (f" ({hint})" if hint else "")
    return f"its process ended; see {activation.log}"


def stop(activation: Activation, *, until: float) -> bool:
    """Carry everything to the bucket, then end the process; False: none was there. Any node may serve it after that.

    What is to be carried is carried while initiators are still served: where the store does not take it in time
    (DeadlineOver) the disk goes on being served here and nothing has changed. Refused when the process could not detach at
    its very end: then the journal here has what the bucket lacks, and only this node can serve it."""
    state_dir = Path(activation.state_dir)
    here = look(state_dir)
    pid = here.pid if here is not None else running(activation)
    if not pid:
        return False
    if here is not None and here.portal is not None:
        try:
            with ControlClient(state_dir, timeout_s=max(1.0, until - time.monotonic())) as client:
                client.ask("flush")
        except NotServed:
            return False
        except BlockError as error:
            raise DeadlineOver(
                f"the store has not taken what disk {activation.name} holds: {error}",
                hint="it goes on being served here; deactivate it again when the store answers",
            ) from error
    end(pid, until=until, what=f"the process of disk {activation.name}")
    wrong = complaint(activation)
    if not wrong.startswith("its process ended"):
        raise Refused(f"disk {activation.name} was not left in order: {wrong}")
    activation.process_file.unlink(missing_ok=True)
    return True


def end(pid: int, *, until: float, what: str) -> None:
    """SIGTERM, and wait until it is gone. Raises DeadlineOver."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    if not readable:
        raise DeadlineOver(f"{what} has not ended yet", hint="it goes on carrying to the bucket")
    _started[:] = [process for process in _started if process.poll() is None]
