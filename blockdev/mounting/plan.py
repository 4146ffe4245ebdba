"""The steps to a mounted volume, and back. Each step is a value: `str` says what it does, `done` looks, `act` acts.

One rule: a step looks before it acts and again afterwards, so a run that was killed anywhere is finished by the same command,
and a second run changes nothing. Nothing is ever written over a disk that holds anything.

The order keeps every moment safe. There: secrets before the settings that name them, settings before the daemon, the daemon
before the session, the file system before the mount, and the boot is told last of what it then will find. Back: the mount first
(what is in memory goes to the volume), then the session, then the daemon (what is in its journal goes to the bucket).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from blockdev.errors import NotReady, Refused, StoreUnreachable
from blockdev.mounting import initiator, units
from blockdev.mounting.host import UNITS, Host, said
from blockdev.mounting.initiator import Unit
from blockdev.mounting.units import MountUnit
from s3core.settings import parse_tables

Told = Callable[[str], None]

MKFS: Final = {
    # What was never written reads as zeros: neither zeros nor discards have to go to the bucket.
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
}
PACKAGES: Final = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "blkid": "util-linux", "systemctl": "systemd"}
LABEL_CHARACTERS: Final = {"ext4": 16, "xfs": 12}
DEFAULT_OPTIONS: Final = "noatime,discard"
"""Reading is not to cost PUTs; what is deleted is to leave the bucket too."""

READY_S: Final = 240.0
"""A daemon may have to read its map from the bucket, or wait for another host's lease to run out."""
RESTARTS: Final = 3
"""Failures of a daemon after which the reason is told, and no longer waited for."""
START_S: Final = 300.0
STOP_S: Final = 900.0
MKFS_S: Final = 3600.0
KNOWN_S: Final = 60.0
"""A daemon tells soon what its volume holds, once the bucket has what was written."""
POLL_S: Final = 0.5
ENDED: Final = ("inactive", "failed", "")
BLOCK: Final = 4096
ENDS_BLOCKS: Final = 256
_AMBIVALENT: Final = 8
_NOTHING: Final = 2
"""blkid(8): exit codes of --probe. 2 is also that of a disk that is not there or cannot be read."""


class Step(ABC):
    """`done`, `act` and `str` for people. `act` may be run again after it was killed at any moment."""

    @abstractmethod
    def done(self, host: Host) -> bool: ...

    @abstractmethod
    def act(self, host: Host) -> None: ...

    def failed(self, host: Host) -> Exception:
        """What to say when the step is not done after `act` came back."""
        return NotReady(
            f"this was done and did not hold: {self}", hint="run the same command again; it goes on from here"
        )


def perform(plan: Sequence[Step], host: Host, told: Told) -> list[str]:
    """Run what is not done yet; what was, in words. Raises what a step raises: those before it stay done."""
    changed = []
    for step in plan:
        if step.done(host):
            continue
        told(str(step))
        step.act(host)
        if not step.done(host):
            raise step.failed(host)
        changed.append(str(step))
    return changed


# --- the way there ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeepSecret(Step):
    """A CHAP secret of mode 0600; one that is there stays."""

    path: Path

    def __str__(self) -> str:
        return f"make a CHAP secret in {self.path}"

    def done(self, host: Host) -> bool:
        return bool(host.text(self.path))

    def act(self, host: Host) -> None:
        host.write(self.path, host.secret() + "\n", 0o600)


@dataclass(frozen=True, slots=True)
class Configure(Step):
    """Settings that [volume.NAME] lacks. `lacks` was found out with `values`."""

    path: Path
    volume: str
    values: tuple[tuple[str, str | tuple[str, ...]], ...]
    lacks: Callable[[str | None], bool]

    def __str__(self) -> str:
        return f"write {', '.join(key for key, _ in self.values)} to [volume.{self.volume}] in {self.path}"

    def done(self, host: Host) -> bool:
        return not self.lacks(host.text(self.path))

    def act(self, host: Host) -> None:
        plain = {key: value if isinstance(value, str) else list(value) for key, value in self.values}
        host.configure(self.path, self.volume, plain)


@dataclass(frozen=True, slots=True)
class Enable(Step):
    """A unit that is to be started with every boot."""

    unit: str

    def __str__(self) -> str:
        return f"have {self.unit} started at boot"

    def done(self, host: Host) -> bool:
        return host.run("systemctl", "is-enabled", "--quiet", self.unit).status == 0

    def act(self, host: Host) -> None:
        _systemctl(host, "enable", self.unit)


@dataclass(frozen=True, slots=True)
class Serve(Step):
    """The daemon, until it serves the volume."""

    volume: str
    state_dir: Path
    wait_s: float = READY_S

    def __str__(self) -> str:
        return f"start {units.daemon_unit(self.volume)} and wait until it serves {self.volume}"

    def done(self, host: Host) -> bool:
        return _ready(host, self.state_dir) and _active(host, units.daemon_unit(self.volume))

    def act(self, host: Host) -> None:
        unit = units.daemon_unit(self.volume)
        # Not waited for: it is up to systemd for how long a start that fails is begun again.
        _systemctl(host, "start", "--no-block", unit)
        until = host.now() + self.wait_s
        while not _ready(host, self.state_dir):
            now = state(host, unit)
            if now == "failed" or _restarts(host, unit) >= RESTARTS or host.now() > until:
                raise NotReady(
                    f"volume {self.volume} is not served: {unit} is {now or 'gone'}, and its last words are: "
                    f"{last_words(host, unit)}",
                    hint="mend that and run the same command again: it goes on from here",
                )
            host.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Start(Step):
    """A unit that is to be active; `patience_s` is its own."""

    unit: str

    def __str__(self) -> str:
        return f"start {self.unit}"

    def done(self, host: Host) -> bool:
        return _active(host, self.unit)

    def act(self, host: Host) -> None:
        _systemctl(host, "start", self.unit, timeout_s=START_S)


@dataclass(frozen=True, slots=True)
class HaveDevice(Step):
    """The session's unit, and the device it brings; one that lost its session is started anew."""

    volume: str
    unit: Unit

    def __str__(self) -> str:
        return f"log in: start {units.initiator_unit(self.volume)}, which brings {self.unit.device}"

    def done(self, host: Host) -> bool:
        return host.is_there(self.unit.device) and _active(host, units.initiator_unit(self.volume))

    def act(self, host: Host) -> None:
        _systemctl(host, "restart", units.initiator_unit(self.volume), timeout_s=START_S)


@dataclass(frozen=True, slots=True)
class MakeFileSystem(Step):
    """A file system on a disk that holds nothing at all. `kind` empty: there must be one already.

    That nothing is known on a disk is no proof of that, and for blkid a disk that cannot be read is one without anything: so
    both ends must have been read, and the daemon must say that nothing was written.

    That it was begun is noted in `note`, first and with the volume's identity: what a killed mkfs leaves looks like data, and
    is not."""

    volume: str
    device: Path
    kind: Literal["", "ext4", "xfs"]
    state_dir: Path

    def __str__(self) -> str:
        return f"make {self.kind} on {self.device}" if self.kind else f"find a file system on {self.device}"

    @property
    def note(self) -> Path:
        return self.state_dir / "mkfs-begun"

    def done(self, host: Host) -> bool:
        return bool(self._found(host)) and host.text(self.note) is None

    def act(self, host: Host) -> None:
        noted = host.text(self.note)
        begun = noted is not None and noted.split()[1:] == [self._told(host, "identity")]
        found = self._found(host)
        if found and noted is not None and (not begun or self._whole(host, found)):
            host.remove(self.note)
            return
        if not self.kind:
            raise Refused(f"volume {self.volume} holds no file system", hint="--mkfs ext4 or --mkfs xfs makes one")
        self._require_readable(host)
        if begun:
            self._run(host, "blkdiscard", str(self.device))
        else:
            self._require_blank(host)
        host.write(self.note, f"{self.kind} {self._told(host, 'identity')}\n", 0o600)
        program, *words = MKFS[self.kind]
        label = self.volume[: LABEL_CHARACTERS[self.kind]]
        self._run(host, program, *words, "-L", label, str(self.device))
        host.remove(self.note)

    def _run(self, host: Host, program: str, *words: str) -> None:
        done = host.run(program, *words, timeout_s=MKFS_S)
        if done.status:
            raise NotReady(f"{program} {self.device}: {said(done)}", hint="run the same command again: it begins anew")

    def _told(self, host: Host, key: str) -> Any:
        """Something of what the daemon says of its volume. Raises NotReady."""
        told = host.daemon(self.state_dir) or {}
        if key not in told:
            raise NotReady(
                f"the daemon of volume {self.volume} does not answer; nothing was written",
                hint="run the same command again",
            )
        return told[key]

    def _require_readable(self, host: Host) -> None:
        """Both ends, where everything that is known has its marks; so it is a disk of the volume's size. Raises NotReady."""
        blocks = int(self._told(host, "size_bytes")) // BLOCK
        last = min(blocks, ENDS_BLOCKS)
        for skipped, wanted in ((0, last), (blocks - last, last)):
            done = host.run(
                "dd",
                f"if={self.device}",
                "of=/dev/null",
                f"bs={BLOCK}",
                f"skip={skipped}",
                f"count={wanted + (skipped > 0)}",
            )
            if done.status or not done.output.startswith(f"{wanted}+0 "):
                raise NotReady(
                    f"{self.device} cannot be read, or is not the volume of {blocks * BLOCK} bytes: {said(done)}",
                    hint="nothing was written; the kernel's log and the daemon's say more",
                )

    def _require_blank(self, host: Host) -> None:
        """That nothing was ever written, or all of it discarded. Raises Refused, NotReady."""
        until = host.now() + KNOWN_S
        while True:
            told = host.daemon(self.state_dir) or {}
            worker, front = told.get("worker") or {}, told.get("front") or {}
            if holds := int(told.get("allocated_bytes", 0)):
                raise Refused(
                    f"volume {self.volume} holds no file system that is known here, but {holds} bytes of something",
                    hint=f"look what it is: `blkid -p {self.device}`, `file -s {self.device}`; nothing was written",
                )
            # What was written counts as held when it is committed and the worker has told of that commit.
            committed = front.get("rpo_bytes", -1) == 0
            if committed and "extents_mapped" in worker and worker["commit_sequence"] >= told["commit_sequence"]:
                return
            if host.now() > until:
                raise NotReady(
                    f"whether volume {self.volume} holds anything is not known: "
                    + (
                        "the bucket lacks what was written last"
                        if front and not committed
                        else "its daemon does not say"
                    ),
                    hint="nothing was written; run the same command again when the store answers",
                )
            host.sleep(POLL_S)

    def _whole(self, host: Host, kind: str) -> bool:
        """Whether the mkfs that was begun came to its end. That of ext4 writes the superblock that blkid finds last of all;
        that of xfs writes it first, with sb_inprogress, its byte 126, set. Raises NotReady."""
        if kind != "xfs":
            return True
        done = host.run("od", "-An", "-tu1", "-j126", "-N1", str(self.device))
        if done.status:
            raise NotReady(f"{self.device} cannot be read: {said(done)}", hint="nothing was written")
        return done.output.strip() == "0"

    def _found(self, host: Host) -> str:
        """The kind of file system; empty for a disk without anything known. Raises Refused for anything else."""
        done = host.run("blkid", "-p", "-o", "export", str(self.device))
        if done.status == _NOTHING:
            return ""
        if done.status == _AMBIVALENT:
            raise Refused(
                f"{self.device} has traces of several things, none of which can be told for sure",
                hint="`wipefs` lists them; nothing was written",
            )
        if done.status:
            raise NotReady(f"blkid {self.device}: {said(done)}")
        told = dict(line.split("=", 1) for line in done.output.splitlines() if "=" in line)
        kind = told.get("TYPE", "")
        if not kind:
            raise Refused(
                f"{self.device} has a partition table ({told.get('PTTYPE', 'unknown')})",
                hint="mount one of its partitions by hand, or take another volume; nothing was written",
            )
        if told.get("USAGE", "filesystem") != "filesystem":
            raise Refused(f"{self.device} holds {kind}, which is no file system", hint="nothing was written")
        if self.kind and kind != self.kind:
            raise Refused(
                f"volume {self.volume} holds {kind} already, and --mkfs says {self.kind}",
                hint="without --mkfs it is mounted as it is; nothing was written",
            )
        return kind


@dataclass(frozen=True, slots=True)
class MakeDirectory(Step):
    directory: Path

    def __str__(self) -> str:
        return f"make {self.directory}"

    def done(self, host: Host) -> bool:
        return host.entries(self.directory) is not None

    def act(self, host: Host) -> None:
        host.make_directory(self.directory)


@dataclass(frozen=True, slots=True)
class WriteUnit(Step):
    unit: MountUnit

    def __str__(self) -> str:
        return f"write {UNITS / self.unit.name}"

    def done(self, host: Host) -> bool:
        return host.text(UNITS / self.unit.name) == self.unit.text() and not _stale(host, self.unit.name)

    def act(self, host: Host) -> None:
        host.write(UNITS / self.unit.name, self.unit.text(), 0o644)
        _systemctl(host, "daemon-reload")


@dataclass(frozen=True, slots=True)
class Mount(Step):
    unit: MountUnit

    def __str__(self) -> str:
        return f"mount {self.unit.directory}: start {self.unit.name}"

    def done(self, host: Host) -> bool:
        return any(one.directory == self.unit.directory for one in host.mounted()) and _active(host, self.unit.name)

    def act(self, host: Host) -> None:
        done = host.run("systemctl", "start", self.unit.name, timeout_s=START_S)
        if done.status:
            raise NotReady(
                f"{self.unit.directory} was not mounted: {last_words(host, self.unit.name)}",
                hint=f"`systemctl status {self.unit.name}` says more",
            )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that is to be mounted. `settings` are those its table lacks, `secrets` the files they name."""

    volume: str
    config: Path
    state_dir: Path
    door: Literal["portal", "lio"]
    unit: Unit
    mount: MountUnit
    mkfs: Literal["", "ext4", "xfs"]
    secrets: tuple[Path, ...] = ()
    settings: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    lacks: Callable[[str | None], bool] = lambda text: False


def mount_plan(wanted: Wanted) -> tuple[Step, ...]:
    """From whatever there is to a file system that is mounted now and after every boot."""
    name = wanted.volume
    steps: list[Step] = [KeepSecret(path) for path in wanted.secrets]
    if wanted.settings:
        steps.append(Configure(wanted.config, name, wanted.settings, wanted.lacks))
    steps += [Enable(units.daemon_unit(name)), Serve(name, wanted.state_dir)]
    if wanted.door == "lio":
        steps += [Enable(units.lio_unit(name)), Start(units.lio_unit(name))]
    return (
        *steps,
        HaveDevice(name, wanted.unit),
        MakeFileSystem(name, wanted.unit.device, wanted.mkfs, wanted.state_dir),
        Enable(units.initiator_unit(name)),
        MakeDirectory(Path(wanted.mount.directory)),
        WriteUnit(wanted.mount),
        Mount(wanted.mount),
        Enable(wanted.mount.name),
    )


# --- and back --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unmount(Step):
    """What is in memory goes to the volume. Whoever uses the directory keeps it."""

    unit: MountUnit

    def __str__(self) -> str:
        return f"unmount {self.unit.directory}"

    def done(self, host: Host) -> bool:
        return not any(one.directory == self.unit.directory for one in host.mounted())

    def act(self, host: Host) -> None:
        done = host.run("systemctl", "stop", self.unit.name, timeout_s=STOP_S)
        if not self.done(host):
            raise Refused(
                f"{self.unit.directory} is still mounted: {said(done) if done.status else 'somebody uses it'}",
                hint=f"`fuser -vm {self.unit.directory}` says who; nothing else was stopped",
            )


@dataclass(frozen=True, slots=True)
class Disable(Step):
    unit: str

    def __str__(self) -> str:
        return f"have {self.unit} no longer started at boot"

    def done(self, host: Host) -> bool:
        return host.run("systemctl", "is-enabled", "--quiet", self.unit).status != 0

    def act(self, host: Host) -> None:
        _systemctl(host, "disable", self.unit)


@dataclass(frozen=True, slots=True)
class RemoveUnit(Step):
    name: str

    def __str__(self) -> str:
        return f"remove {UNITS / self.name}"

    def done(self, host: Host) -> bool:
        return host.text(UNITS / self.name) is None

    def act(self, host: Host) -> None:
        host.remove(UNITS / self.name)
        _systemctl(host, "daemon-reload")


@dataclass(frozen=True, slots=True)
class Stop(Step):
    unit: str

    def __str__(self) -> str:
        return f"stop {self.unit}"

    def done(self, host: Host) -> bool:
        return state(host, self.unit) in ENDED

    def act(self, host: Host) -> None:
        _systemctl(host, "stop", self.unit, timeout_s=STOP_S)


@dataclass(frozen=True, slots=True)
class LogOut(Step):
    """The session, also one that its unit knows nothing of."""

    unit: Unit

    def __str__(self) -> str:
        return f"log out of {self.unit.iqn}"

    def done(self, host: Host) -> bool:
        return not host.is_there(self.unit.device)

    def act(self, host: Host) -> None:
        initiator.logout(host, self.unit)


@dataclass(frozen=True, slots=True)
class CarryToBucket(Step):
    """The daemon, which carries to the bucket what it lacks before it ends. `leave`: also where it cannot."""

    volume: str
    state_dir: Path
    leave: bool = False
    wait_s: float = READY_S

    def __str__(self) -> str:
        return f"stop {units.daemon_unit(self.volume)}, which carries the rest to the bucket"

    def done(self, host: Host) -> bool:
        now = state(host, units.daemon_unit(self.volume))
        return now in ENDED and (self.leave or now != "failed")

    def act(self, host: Host) -> None:
        unit = units.daemon_unit(self.volume)
        if not self.leave:
            # One that is attaching, or has failed, has carried nothing: its journal may hold what the bucket lacks.
            if not _ready(host, self.state_dir):
                _systemctl(host, "start", "--no-block", unit)
            until = host.now() + self.wait_s
            while not _ready(host, self.state_dir):
                if state(host, unit) == "failed" or host.now() > until:
                    raise self._left(host)
                host.sleep(POLL_S)
        _systemctl(host, "stop", unit, timeout_s=STOP_S)

    def failed(self, host: Host) -> Exception:
        return self._left(host)

    def _left(self, host: Host) -> Exception:
        unit = units.daemon_unit(self.volume)
        return StoreUnreachable(
            f"the bucket may lack what the journal in {self.state_dir} holds; {unit} says: {last_words(host, unit)}",
            hint="nothing is lost: run the same command when the store answers; --leave-journal leaves it on this host",
        )


@dataclass(frozen=True, slots=True)
class Deconfigure(Step):
    """Settings of [volume.NAME] that `mount` has added."""

    path: Path
    volume: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"take {', '.join(self.keys)} out of [volume.{self.volume}] in {self.path}"

    def done(self, host: Host) -> bool:
        text = host.text(self.path)
        table = parse_tables(text, path=self.path).get("volume", {}).get(self.volume, {}) if text else {}
        return not any(key in table for key in self.keys)

    def act(self, host: Host) -> None:
        host.deconfigure(self.path, self.volume, self.keys)


@dataclass(frozen=True, slots=True)
class ForgetSecret(Step):
    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def done(self, host: Host) -> bool:
        return host.text(self.path) is None

    def act(self, host: Host) -> None:
        host.remove(self.path)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What is to be taken away. `unit` is None where nothing is known of a session."""

    volume: str
    state_dir: Path
    mounts: tuple[MountUnit, ...]
    unit: Unit | None
    config: Path
    leave_journal: bool = False
    settings: tuple[str, ...] = ()
    secrets: tuple[Path, ...] = ()


def umount_plan(what: Mounted) -> tuple[Step, ...]:
    """The way back, in the order that loses nothing."""
    name = what.volume
    steps: list[Step] = []
    for mount in what.mounts:
        steps += [Unmount(mount), Disable(mount.name), RemoveUnit(mount.name)]
    steps += [Stop(units.initiator_unit(name)), Disable(units.initiator_unit(name))]
    if what.unit is not None:
        steps.append(LogOut(what.unit))
    return (
        *steps,
        Stop(units.lio_unit(name)),
        Disable(units.lio_unit(name)),
        CarryToBucket(name, what.state_dir, leave=what.leave_journal),
        Disable(units.daemon_unit(name)),
        # Settings before the secrets that they name: a volume whose secret is missing could not be served.
        *([Deconfigure(what.config, name, what.settings)] if what.settings else []),
        *map(ForgetSecret, what.secrets),
    )


# --- systemd ---------------------------------------------------------------------------------------------------------


def last_words(host: Host, unit: str) -> str:
    return said(host.run("journalctl", "-u", unit, "-n", "3", "-o", "cat", "--no-pager"))


def _systemctl(host: Host, *words: str, timeout_s: float = 60.0) -> None:
    """NotReady, with the unit's last words where one was meant."""
    done = host.run("systemctl", *words, timeout_s=timeout_s)
    if done.status:
        why = last_words(host, words[-1]) if words[0] in ("start", "restart", "stop") else said(done)
        raise NotReady(f"systemctl {' '.join(words)}: {why}", hint="mend that and run the same command again")


def _ready(host: Host, state_dir: Path) -> bool:
    return (host.daemon(state_dir) or {}).get("state") == "ready"


def _active(host: Host, unit: str) -> bool:
    return state(host, unit) == "active"


def state(host: Host, unit: str) -> str:
    """Its ActiveState (org.freedesktop.systemd1(5))."""
    return _shown(host, unit, "ActiveState")


def _restarts(host: Host, unit: str) -> int:
    """Since it was started."""
    number = _shown(host, unit, "NRestarts")
    return int(number) if number.isdigit() else 0


def _stale(host: Host, unit: str) -> bool:
    """Whether systemd has not read the file that is there now."""
    return _shown(host, unit, "NeedDaemonReload") == "yes" or _shown(host, unit, "LoadState") == "not-found"


def _shown(host: Host, unit: str, key: str) -> str:
    return host.run("systemctl", "show", "--value", "-p", key, unit).output.strip()
