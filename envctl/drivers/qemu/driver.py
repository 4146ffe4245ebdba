"""The driver: machines as QEMU processes of this host.

One rule: the driver remembers nothing. What there is stands in folders (`folder`), what runs is what holds a lock there, and a
task's name says all that its end can be told by. So a console may be killed at any moment, and several workers of one host may
ask at once. Machines survive the console: they are processes of their own sessions; a unit that runs it must not end them
with it (`KillMode=process`).

Tasks:
    copy:<machine>                    `disk.qcow2` is there: ok; what copies still runs: running; else failed
    shutdown:<machine>:<unix seconds> nothing runs: ok; that moment has passed: failed; else running
Everything else is done when the call returns.
"""

import asyncio
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from envctl.drivers.port import (
    DONE,
    CloneSpec,
    ConsoleTarget,
    DriverFinding,
    MachineFound,
    MachineRef,
    MachineSpec,
    MachineStatus,
    NodeHeadroom,
    TaskRef,
    TaskStatus,
)
from envctl.drivers.qemu.command import DISK_ID, OPTIONS, SOCKET_NAME_BYTES, SOCKET_PATH_BYTES_MAX, qemu_command
from envctl.drivers.qemu.folder import MachineFolder, machine_folders, process_fields, sweep
from envctl.drivers.qemu.image import Image, ImageUnreadable, begin_copy, copying, create_layer, grow, look_at, stamp_of
from envctl.drivers.qemu.machine import Machine, parse_ref, ref_of
from envctl.drivers.qemu.programs import has_ended, launch, run
from envctl.drivers.qemu.qmp import MonitorGone, MonitorNotListening, MonitorRefused, ask
from envctl.errors import DriverBusy, DriverFailed

if TYPE_CHECKING:
    from s3core.settings import EnvctlDriverSettings

_log = logging.getLogger(__name__)

GIB: Final = 1 << 30
QEMU: Final = "qemu-system-x86_64"
QEMU_IMG: Final = "qemu-img"
END_S: Final = 10.0
"""How long QEMU gets to end by itself (it flushes the disk) before it is killed."""
START_S: Final = 60.0
BEGUN_S: Final = 3600.0
"""What was begun so long ago and never became a machine is nobody's."""
_KVM: Final = "/dev/kvm"
_Answer = TypeVar("_Answer")


class QemuDriver:
    """`EnvDriver` (port) for `[envctl.driver.NAME]` with `kind = "qemu"`."""

    def __init__(
        self,
        name: str,
        settings: "EnvctlDriverSettings",
        *,
        node: str | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._settings = name, settings
        self._root = Path(settings.state_dir)
        self._node = node or socket.gethostname()
        self._now, self._monotonic = now, monotonic
        self._locks: dict[str, asyncio.Lock] = {}
        self._samples: dict[str, tuple[float, float]] = {}
        """Processor seconds of a machine's process, and when: the load is their difference to the next look."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def clones_at_once(self) -> int:
        return self._settings.clones_at_once

    @property
    def vmid_range(self) -> tuple[int, int] | None:
        return None

    # --- what there is

    async def inventory(self) -> Sequence[MachineFound]:
        return await _in_thread(self._inventory)

    async def find(self, tag: str) -> Sequence[MachineFound]:
        return [found for found in await self.inventory() if found.tag == tag]

    def _inventory(self) -> list[MachineFound]:
        if not self._root.exists():
            return []  # the first clone makes it
        sweep(self._root, self._now() - BEGUN_S, copying)
        folders = list(machine_folders(self._root))
        return [self._found(folder) for folder in folders]

    def _found(self, folder: MachineFolder) -> MachineFound:
        parsed = parse_ref(folder.path.name)
        assert parsed is not None
        try:
            machine = folder.read()
        except ValueError as error:
            # Shown, and destroyed like any other: what stands in the file is not needed for that.
            machine, locked = None, f"damaged: {error}"
        else:
            locked = "clone" if copying(folder.path) else ""
        return MachineFound(
            machine=MachineRef(folder.path.name),
            tag=parsed[0],
            name=machine.name if machine else "",
            node=self._node,
            vmid=None,
            running=folder.holder() != 0,
            locked=locked,
            cores=machine.cores if machine else 0,
            memory_mib=machine.memory_mib if machine else 0,
            disk_gib=machine.disk_gib if machine else 0,
            uuid=machine.uuid if machine else "",
        )

    # --- making and unmaking

    async def clone(self, spec: CloneSpec) -> TaskRef:
        """A layer is there at once, a copy (`full`) is a task. The same environment and generation again: nothing, or the same
        task. DriverFailed: an image that cannot be used."""
        ref = ref_of(spec.environment_id, spec.generation)
        unknown = sorted(set(spec.options) - set(OPTIONS))
        if unknown:
            raise DriverFailed(
                f"the template has options that are none: {', '.join(unknown)}", hint=f"there are: {', '.join(OPTIONS)}"
            )
        task = DONE if not _is_yes(spec.options.get("full")) else _copy_task(ref)
        async with self._alone(ref) as folder:
            if await _in_thread(folder.exists):
                return task
            image = await self._look_at(spec.source)
            machine = Machine(
                environment=spec.environment_id,
                generation=spec.generation,
                name=spec.name,
                description=spec.description,
                source=spec.source,
                source_stamp=image.stamp,
                options=dict(spec.options),
                disk_gib=-(-image.virtual_bytes // GIB),
            )
            new = await _in_thread(folder.new)
            await _in_thread(new.write, machine)
            if task == DONE:
                await create_layer(image, Path(new.places.disk))
                await _in_thread(new.sync_disk)
            else:
                await _begin_copy(image, new.path)
            await _in_thread(new.appear)
        return task

    async def configure(self, machine: MachineRef, spec: MachineSpec) -> TaskRef:
        """What needs a restart takes effect with the next start. A tag or description is of the machine's record alone."""
        async with self._alone(machine) as folder:
            there = await self._whole_machine(folder)
            wanted = replace(
                there,
                cores=spec.cores,
                memory_mib=spec.memory_mib,
                disk_gib=max(spec.disk_gib, there.disk_gib),
                uuid=spec.uuid,
                seed_url=spec.seed_url,
                description=spec.description,
            )
            if spec.tag != there.tag:
                raise DriverFailed(f"machine {machine} belongs to {there.tag}, not to {spec.tag}")
            await self._make_so(folder, wanted)
        return DONE

    async def resize(self, machine: MachineRef, cores: int, memory_mib: int, disk_gib: int) -> TaskRef:
        """The disk grows at once, also under a running machine, unless it is attached as NVMe: then with the next start."""
        async with self._alone(machine) as folder:
            there = await self._whole_machine(folder)
            larger = max(disk_gib, there.disk_gib)
            await self._make_so(folder, replace(there, cores=cores, memory_mib=memory_mib, disk_gib=larger))
        return DONE

    async def _make_so(self, folder: MachineFolder, wanted: Machine) -> None:
        # The disk first, so that a record never promises what there was no room for.
        if await _in_thread(folder.holder):
            # QEMU cannot tell a guest that an NVMe disk has grown; `start` makes that good.
            if wanted.options.get("disk") != "nvme" and await self._disk_bytes(folder) < wanted.disk_gib * GIB:
                await self._ask(folder, "block_resize", {"device": DISK_ID, "size": wanted.disk_gib * GIB})
        else:
            await grow(Path(folder.places.disk), wanted.disk_gib * GIB)
        await _in_thread(folder.write, wanted)

    async def _disk_bytes(self, folder: MachineFolder) -> int:
        for device in await self._ask(folder, "query-block"):
            if device["device"] == DISK_ID:
                return int(device["inserted"]["image"]["virtual-size"])
        raise DriverFailed(f"QEMU of {folder.path.name} has no disk {DISK_ID}")

    async def destroy(self, machine: MachineRef) -> TaskRef:
        async with self._alone(machine) as folder:
            if not await _in_thread(folder.exists):
                return DONE
            await self._end(folder)
            if await _in_thread(copying, folder.path):
                raise DriverBusy(f"machine {machine} is still being copied", nothing_done=True)
            await _in_thread(folder.remove)
        self._samples.pop(machine, None)
        return DONE

    # --- running

    async def start(self, machine: MachineRef) -> TaskRef:
        """Returns when QEMU has opened its disk and listens. DriverFailed carries what QEMU said."""
        async with self._alone(machine) as folder:
            there = await self._whole_machine(folder)
            if await _in_thread(folder.holder):
                return DONE
            if (
                not _is_yes(there.options.get("full"))
                and await _in_thread(stamp_of, there.source) != there.source_stamp
            ):
                raise DriverFailed(
                    f"the image {there.source} is not the one that machine {machine} is a layer over",
                    hint="images of templates are never changed: add a new template, and reset the environment to rebuild it",
                )
            try:
                await grow(Path(folder.places.disk), there.disk_gib * GIB)
            except DriverFailed:
                if await _in_thread(folder.holder):
                    return DONE  # another worker has started it
                raise
            accelerators = self._accelerators()
            for accelerator in accelerators:
                try:
                    await self._launch(folder, there, accelerator)
                    break
                except DriverBusy:
                    raise
                except DriverFailed as error:
                    if accelerator == accelerators[-1]:
                        raise
                    # A /dev/kvm that is there and does not work, as in some machines within machines.
                    _log.warning("machine %s does not start with %s, trying the next: %s", machine, accelerator, error)
        return DONE

    async def _launch(self, folder: MachineFolder, machine: Machine, accelerator: str) -> None:
        log = folder.path / "log"
        try:
            command = qemu_command(
                machine, folder.places, program=QEMU, accelerator=accelerator, bridge=self._settings.bridge
            )
        except ValueError as error:
            raise DriverFailed(f"machine {machine.ref}: {error}", hint="change the template's options") from error
        try:
            alive = await launch(command, log)
        except OSError as error:
            raise DriverFailed(f"this host: {error}") from error
        try:
            give_up = self._monotonic() + START_S
            while True:
                with suppress(MonitorGone):
                    await ask(folder.places.monitor, "query-status", timeout_s=START_S)
                    return
                # Another worker may have been quicker: then this one could not have the lock, and the other answers soon.
                if await _in_thread(has_ended, alive) and not await _in_thread(folder.holder):
                    said = (await _in_thread(log.read_text, "utf-8", "replace")).strip()[-1000:]
                    raise DriverFailed(f"QEMU did not start {folder.path.name}: {said or 'it said nothing'}")
                if self._monotonic() > give_up:
                    raise DriverBusy(f"QEMU of {folder.path.name} started, and does not answer after {START_S:g} s")
                await asyncio.sleep(0.05)
        except MonitorRefused as error:
            raise DriverFailed(f"QEMU of {folder.path.name}: {error}") from error
        finally:
            os.close(alive)

    async def shutdown(self, machine: MachineRef, timeout_s: float) -> TaskRef:
        async with self._alone(machine) as folder:
            if not await _in_thread(folder.holder):
                return DONE
            try:
                await self._ask(folder, "system_powerdown")
            except DriverBusy:
                if await _in_thread(folder.holder):
                    raise
        return TaskRef(f"shutdown:{machine}:{self._now() + timeout_s:.0f}")

    async def stop(self, machine: MachineRef) -> TaskRef:
        async with self._alone(machine) as folder:
            await self._end(folder)
        return DONE

    async def _end(self, folder: MachineFolder) -> None:
        if not await _in_thread(folder.holder):
            return
        # No answer: it may be on its way out, or hang. Both are seen below.
        with suppress(MonitorGone, MonitorRefused):
            await ask(folder.places.monitor, "quit", timeout_s=END_S)
        if not await _in_thread(folder.wait_until_ended, END_S):
            await _in_thread(folder.kill)
            if not await _in_thread(folder.wait_until_ended, END_S):
                raise DriverBusy(
                    f"the QEMU process {folder.holder()} of {folder.path.name} does not end, even by SIGKILL",
                    hint="it waits for a disk or file system of this host that does not answer",
                )

    # --- looking

    async def task(self, task: TaskRef) -> TaskStatus:
        kind, _, rest = task.partition(":")
        ref, _, until = rest.partition(":")
        if kind not in ("copy", "shutdown") or parse_ref(ref) is None:
            return TaskStatus("unknown", f"{task!r} is no task of this driver")
        folder = MachineFolder(self._root, MachineRef(ref))
        if kind == "copy":
            return await _in_thread(self._copy_status, folder)
        if not await _in_thread(folder.holder):
            return TaskStatus("ok")
        if self._now() < float(until):
            return TaskStatus("running")
        return TaskStatus("failed", "the machine did not shut down in time")

    @staticmethod
    def _copy_status(folder: MachineFolder) -> TaskStatus:
        under_way = copying(folder.path)  # before the disk: it is renamed in between, never the other way
        if folder.whole():
            return TaskStatus("ok")
        if under_way:
            return TaskStatus("running")
        try:
            said = (folder.path / "copy.log").read_text(errors="replace").strip()[-500:]
        except FileNotFoundError:
            said = ""
        return TaskStatus("failed", said or "the copy was broken off", retryable=True)

    async def status(self, machine: MachineRef) -> MachineStatus:
        folder = self._folder(machine)
        if not await _in_thread(folder.exists):
            return MachineStatus(exists=False, running=False)
        locked = "clone" if await _in_thread(copying, folder.path) else ""
        pid = await _in_thread(folder.holder)
        if not pid:
            return MachineStatus(exists=True, running=False, locked=locked)
        try:
            state = str((await ask(folder.places.monitor, "query-status"))["status"])
        except MonitorGone as error:
            if not await _in_thread(folder.holder):
                return MachineStatus(exists=True, running=False, locked=locked)
            raise DriverBusy(f"QEMU of machine {machine} does not answer: {error}", nothing_done=True) from error
        except MonitorRefused as error:
            raise DriverFailed(f"QEMU of machine {machine}: {error}") from error
        if state == "io-error":
            locked = "io-error: this host's disk is full, or fails"
        elif state not in ("running", "inmigrate", "prelaunch"):
            locked = state
        there = await self._machine_or_none(folder)
        used = await _in_thread(self._use_of, machine, pid, there.cores if there else 1)
        return MachineStatus(
            exists=True,
            running=True,
            locked=locked,
            uptime_s=used[0],
            cpu=used[1],
            memory_used_bytes=used[2],
            memory_bytes=(there.memory_mib << 20) if there else 0,
        )

    def _use_of(self, machine: str, pid: int, cores: int) -> tuple[float, float, int]:
        """Seconds since it started, part of its cores since the last look, resident bytes."""
        fields = process_fields(pid)
        if not fields:
            return 0.0, 0.0, 0
        ticks = os.sysconf("SC_CLK_TCK")
        spent, now = (int(fields[11]) + int(fields[12])) / ticks, self._monotonic()
        before = self._samples.get(machine)
        self._samples[machine] = (spent, now)
        uptime = float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / ticks
        busy = 0.0
        if before and now > before[1] and spent >= before[0]:
            busy = min(1.0, (spent - before[0]) / (now - before[1]) / cores)
        return max(0.0, uptime), busy, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    async def headroom(self) -> Sequence[NodeHeadroom]:
        return [await _in_thread(self._headroom)]

    def _headroom(self) -> NodeHeadroom:
        memory = _memory()
        storages: tuple[tuple[str, int, int], ...] = ()
        place = next((folder for folder in (self._root, *self._root.parents) if folder.exists()), None)
        if place is not None:
            disk = shutil.disk_usage(place)
            storages = ((str(self._root), disk.total, disk.used),)
        return NodeHeadroom(
            node=self._node,
            online=True,
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=memory["MemTotal"],
            memory_used_bytes=memory["MemTotal"] - memory.get("MemAvailable", 0),
            storages=storages,
        )

    async def console(self, machine: MachineRef, kind: Literal["vnc", "terminal"]) -> ConsoleTarget:
        """The terminal (serial line) serves one connection at a time: a second one waits for the first to end."""
        folder = self._folder(machine)
        if not await _in_thread(folder.holder):
            raise DriverFailed(f"machine {machine} does not run", hint="start it")
        return ConsoleTarget(kind=kind, path=folder.places.screen if kind == "vnc" else folder.places.serial)

    async def close(self) -> None:
        """Machines go on."""

    # --- checks

    async def check_template(self, source: str, options: Mapping[str, str]) -> Sequence[DriverFinding]:
        findings = [
            DriverFinding("error", f"{name!r} is no option of this driver", f"there are: {', '.join(OPTIONS)}")
            for name in sorted(set(options) - set(OPTIONS))
        ]
        try:
            image = await self._look_at(source)
        except DriverFailed as error:
            findings.append(DriverFinding("error", str(error)))
        else:
            size = f"{-(-image.virtual_bytes // GIB)} GiB"
            findings.append(DriverFinding("ok", f"{source} is an image of {size} in format {image.format}"))
            if os.stat(source).st_mode & 0o222 and not _is_yes(options.get("full")):
                findings.append(
                    DriverFinding(
                        "warning",
                        f"{source} can be written to, and machines are layers over it: a change destroys them all",
                        f"chmod a-w {source}",
                    )
                )
            if Path(source).resolve().is_relative_to(self._root.resolve()):
                findings.append(DriverFinding("error", f"{source} lies among the machines", "keep it elsewhere"))
        for name in ("kernel", "initrd", "firmware"):
            path = options.get(name)
            if path and not os.access(path, os.R_OK):
                findings.append(DriverFinding("error", f"{name} {path} cannot be read"))
        if options.get("append") and not options.get("kernel"):
            findings.append(DriverFinding("warning", "`append` has no effect without `kernel`"))
        try:
            trial = Machine("0" * 26, 0, "x", "", source, "", options, uuid="0" * 36)
            qemu_command(
                trial,
                MachineFolder(self._root, trial.ref).places,
                program="",
                accelerator="",
                bridge=self._settings.bridge,
            )
        except ValueError as error:
            findings.append(DriverFinding("error", str(error)))
        return findings

    async def check_access(self) -> Sequence[DriverFinding]:
        findings = []
        for program, package in ((QEMU, "qemu-system-x86"), (QEMU_IMG, "qemu-utils")):
            if shutil.which(program) is None:
                findings.append(
                    DriverFinding("error", f"{program} is not installed", f"Debian: apt-get install {package}")
                )
            else:
                _, said = await run(program, "--version")
                findings.append(DriverFinding("ok", said.partition("\n")[0]))
        findings += await _in_thread(self._host_findings)
        return findings

    def _host_findings(self) -> list[DriverFinding]:
        findings = []
        accelerator = self._accelerators()[0]
        if accelerator == "kvm" and not os.access(_KVM, os.R_OK | os.W_OK):
            findings.append(
                DriverFinding("error", f"{_KVM} cannot be opened", "add the console's user to the group kvm")
            )
        elif accelerator == "kvm":
            findings.append(DriverFinding("ok", "machines run on KVM"))
        else:
            findings.append(
                DriverFinding(
                    "warning", "machines are emulated (TCG), ten times slower than with KVM", f"no {_KVM} is used here"
                )
            )
        longest = len(os.fsencode(str(self._root / ref_of("0" * 26, 10**9)))) + SOCKET_NAME_BYTES
        if longest > SOCKET_PATH_BYTES_MAX:
            findings.append(
                DriverFinding(
                    "error",
                    f"state_dir {self._root} is too long for sockets by {longest - SOCKET_PATH_BYTES_MAX} bytes",
                    "choose a shorter one",
                )
            )
        place = next(folder for folder in (self._root, *self._root.parents) if folder.exists())
        if not os.access(place, os.W_OK):
            findings.append(DriverFinding("error", f"{place} cannot be written to", "give it to the console's user"))
        elif self._root.exists() and self._root.stat().st_mode & 0o077:
            findings.append(
                DriverFinding("warning", f"others of this host may look into {self._root}", f"chmod 0700 {self._root}")
            )
        if not self._settings.bridge:
            findings.append(
                DriverFinding(
                    "warning",
                    "machines are behind QEMU's user network: they reach what listens on this host's loopback, and cannot be"
                    " reached from outside",
                    "for more than trials set `bridge`",
                )
            )
        return findings

    # --- inside

    def _accelerators(self) -> tuple[str, ...]:
        """In the order in which they are tried."""
        wanted = self._settings.accelerator
        if wanted != "auto":
            return (wanted,)
        return ("kvm", "tcg") if os.access(_KVM, os.R_OK | os.W_OK) else ("tcg",)

    def _folder(self, machine: MachineRef) -> MachineFolder:
        try:
            return MachineFolder(self._root, machine)
        except ValueError as error:
            raise DriverFailed(str(error)) from error

    @asynccontextmanager
    async def _alone(self, machine: MachineRef) -> AsyncIterator[MachineFolder]:
        """One change of a machine at a time in this process. Between processes a job's lease sees to it."""
        folder = self._folder(machine)
        async with self._locks.setdefault(machine, asyncio.Lock()):
            yield folder

    async def _machine_or_none(self, folder: MachineFolder) -> Machine | None:
        try:
            return await _in_thread(folder.read)
        except ValueError as error:
            raise DriverFailed(
                f"{folder.path}/machine.json is damaged: {error}", hint="reset the environment: its home is kept"
            ) from error

    async def _machine(self, folder: MachineFolder) -> Machine:
        machine = await self._machine_or_none(folder)
        if machine is None:
            raise DriverFailed(f"there is no machine {folder.path.name} on this host", hint="reset the environment")
        return machine

    async def _whole_machine(self, folder: MachineFolder) -> Machine:
        machine = await self._machine(folder)
        if await _in_thread(copying, folder.path):
            raise DriverBusy(f"machine {folder.path.name} is still being copied", nothing_done=True)
        if not await _in_thread(folder.whole):
            raise DriverFailed(
                f"machine {folder.path.name} has no disk: its copy was broken off", hint="reset the environment"
            )
        return machine

    async def _look_at(self, source: str) -> Image:
        try:
            return await look_at(source)
        except ImageUnreadable as error:
            raise DriverFailed(str(error), hint="give the path of an image that the console's user may read") from error

    async def _ask(self, folder: MachineFolder, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        give_up = self._monotonic() + START_S
        try:
            while True:
                try:
                    return await ask(folder.places.monitor, command, arguments)
                except MonitorNotListening:
                    # It takes the lock before it listens, and the console that started it may be gone.
                    if self._monotonic() > give_up or not await _in_thread(folder.holder):
                        raise
                await asyncio.sleep(0.05)
        except MonitorNotListening as error:
            raise DriverBusy(f"QEMU of machine {folder.path.name}: {error}", nothing_done=True) from error
        except MonitorGone as error:
            raise DriverBusy(f"QEMU of machine {folder.path.name} does not answer: {error}") from error
        except MonitorRefused as error:
            raise DriverFailed(f"QEMU of machine {folder.path.name} refused {command}: {error}") from error


def _copy_task(ref: MachineRef) -> TaskRef:
    return TaskRef(f"copy:{ref}")


def _is_yes(text: str | None) -> bool:
    return (text or "").lower() in ("yes", "true", "1", "on")


def _memory() -> dict[str, int]:
    """`/proc/meminfo` in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}


async def _begin_copy(image: Image, folder: Path) -> None:
    try:
        await begin_copy(image, folder)
    except OSError as error:
        raise DriverFailed(f"this host: {error}") from error


async def _in_thread(function: Callable[..., _Answer], *arguments: Any) -> _Answer:
    """Off the loop, because disks may be slow. What the host's file system refuses is said as the driver's failure."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except OSError as error:
        raise DriverFailed(f"this host: {error}") from error
