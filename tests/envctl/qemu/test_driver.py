"""The driver with real QEMU processes, which run firmware alone: nothing is booted, so that a test takes a second.

A restarted console is a second driver: the first one has nothing that the second needs.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envctl.drivers.port import CloneSpec, MachineFound, MachineRef, MachineSpec, TaskRef
from envctl.drivers.qemu import driver as driver_module
from envctl.drivers.qemu.driver import QemuDriver
from envctl.drivers.qemu.folder import MachineFolder
from envctl.drivers.qemu.image import stamp_of
from envctl.errors import DriverBusy, DriverFailed
from s3core.settings import EnvctlDriverSettings

_MISSING = [name for name in ("qemu-system-x86_64", "qemu-img") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_MISSING), reason=f"{', '.join(_MISSING)}: apt-get install qemu-system-x86 qemu-utils"
)
ENVIRONMENT = "01hzzzzzzzzzzzzzzzzzzzzzzz"
TAG = f"env-{ENVIRONMENT}"
REF = MachineRef(f"{TAG}.1")
GIB = 1 << 30


class Host:
    """A folder of machines and an image, and drivers for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "machines"
        self.image = folder / "template.img"
        with self.image.open("wb") as file:
            file.truncate(64 << 20)

    def driver(self, **settings: Any) -> QemuDriver:
        values = {"kind": "qemu", "state_dir": str(self.root), "accelerator": "tcg"} | settings
        return QemuDriver("local", EnvctlDriverSettings.model_validate(values), node="here")

    def clone_spec(self, **options: str) -> CloneSpec:
        text = f"of alice\nenvctl:{ENVIRONMENT}:1"
        return CloneSpec(ENVIRONMENT, 1, "dev", TAG, str(self.image), {"network": "none"} | options, None, text)

    def processes(self) -> list[int]:
        """Of QEMU, with a disk in this folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if words[0].endswith(b"qemu-system-x86_64") and any(os.fsencode(self.root) in word for word in words):
                    found.append(int(entry.name))
        return found


SPEC = MachineSpec(1, 64, 1, "0f8fad5b-d9cb-469f-a165-70867728950e", "https://c.example/seed/T/", TAG, "of alice")


@pytest.fixture
def host() -> Iterator[Host]:
    # Not pytest's folder: names of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="qemu-"))
    there = Host(folder)
    yield there
    for pid in there.processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


def run(conversation: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(conversation(), 120))


async def made(driver: QemuDriver, host: Host, **options: str) -> MachineFound:
    await driver.clone(host.clone_spec(**options))
    await driver.configure(REF, SPEC)
    [found] = await driver.find(TAG)
    return found


async def ended(driver: QemuDriver, task: TaskRef) -> str:
    while (status := await driver.task(task)).state == "running":
        await asyncio.sleep(0.05)
    return status.state


def test_a_machine_outlives_its_console(host: Host) -> None:
    async def before() -> None:
        driver = host.driver()
        assert await driver.inventory() == []
        found = await made(driver, host)
        assert (found.machine, found.tag, found.name, found.running, found.locked) == (REF, TAG, "dev", False, "")
        assert (found.cores, found.memory_mib, found.disk_gib, found.uuid) == (1, 64, 1, SPEC.uuid)
        await driver.start(REF)
        await driver.start(REF)
        await driver.close()

    async def after() -> None:
        driver = host.driver()
        [found] = await driver.find(TAG)
        assert found.running
        status = await driver.status(REF)
        assert (status.exists, status.running, status.locked, status.memory_bytes) == (True, True, "", 64 << 20)
        assert status.uptime_s > 0
        assert status.memory_used_bytes > 0
        screen = await driver.console(REF, "vnc")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(screen.path)
            assert connection.recv(12) == b"RFB 003.008\n"
        terminal = await driver.console(REF, "terminal")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(terminal.path)
        await driver.stop(REF)
        assert not (await driver.status(REF)).running
        with pytest.raises(DriverFailed, match="does not run"):
            await driver.console(REF, "vnc")
        await driver.start(REF)
        await driver.destroy(REF)
        await driver.destroy(REF)
        assert await driver.inventory() == []
        assert not (await driver.status(REF)).exists

    run(before)
    [process] = host.processes()
    assert os.getsid(process) != os.getsid(0)
    run(after)
    assert host.processes() == []
    assert list(host.root.iterdir()) == []


def test_two_workers_start_one_machine(host: Host) -> None:
    async def conversation() -> None:
        await made(host.driver(), host)
        await asyncio.gather(*(host.driver().start(REF) for _ in range(3)))
        while len(host.processes()) > 1:
            await asyncio.sleep(0.02)  # those that did not get the lock are on their way out
        assert (await host.driver().status(REF)).running

    run(conversation)


def test_a_machine_that_does_not_listen_yet_is_waited_for(host: Host) -> None:
    """QEMU takes the lock before it listens; the console that started it may have been killed in between."""

    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        await driver.start(REF)
        monitor = host.root / REF / "qmp"
        away = monitor.with_name("qmp.away")
        monitor.rename(away)
        configured = asyncio.create_task(driver.configure(REF, SPEC))
        with pytest.raises(DriverBusy) as busy:
            await driver.status(REF)
        assert busy.value.nothing_done
        await asyncio.sleep(0.3)
        assert not configured.done()
        away.rename(monitor)
        await configured
        await driver.destroy(REF)

    run(conversation)


def test_a_number_that_somebody_else_has_now_is_no_machine(host: Host) -> None:
    """After a crash of the host the pid file is still there, and its number may be anybody's."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:

        async def conversation() -> None:
            driver = host.driver()
            await made(driver, host)
            (host.root / REF / "pid").write_text(f"{bystander.pid}\n")
            [found] = await driver.inventory()
            assert not found.running
            await driver.stop(REF)
            await driver.start(REF)
            assert (await driver.status(REF)).running
            await driver.destroy(REF)

        run(conversation)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from envctl.drivers.qemu import driver, folder, image
from tests.envctl.qemu.test_driver import Host, REF, SPEC
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
async def die_async(*_, **__):
    die()
host = Host.__new__(Host)
host.folder = Path(sys.argv[1]); host.root = host.folder / "machines"; host.image = host.folder / "template.img"
local = host.driver()
async def main():
"""


def killed(host: Host, story: str) -> None:
    """A process that does that, up to its end by SIGKILL."""
    script = _KILLED + textwrap.indent(textwrap.dedent(story), "    ") + "\nasyncio.run(main())\n"
    done = subprocess.run([sys.executable, "-c", script, str(host.folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("story", "locked", "running"),
    [
        ("folder.os.fsync = die; await local.clone(host.clone_spec())", None, False),
        ("driver.create_layer = die_async; await local.clone(host.clone_spec())", None, False),
        ("folder.MachineFolder.appear = die; await local.clone(host.clone_spec())", None, False),
        ("driver.MachineFolder.sync_disk = die; await local.clone(host.clone_spec())", None, False),
        ("await local.clone(host.clone_spec()); driver.grow = die_async; await local.configure(REF, SPEC)", "", False),
        (
            "await local.clone(host.clone_spec()); await local.configure(REF, SPEC);"
            " driver.ask = die_async; await local.start(REF)",
            "",
            True,
        ),
        (
            "await local.clone(host.clone_spec()); await local.configure(REF, SPEC); await local.start(REF);"
            " os.rmdir = die; await local.destroy(REF)",
            "",
            False,
        ),
    ],
)
def test_a_console_killed_anywhere_finds_the_machine_again(
    host: Host, story: str, locked: str | None, running: bool
) -> None:
    """`locked` None: there is no machine, and its remains are removed when they are old."""
    killed(host, story)

    async def conversation() -> None:
        driver = host.driver()
        begun = [path for path in host.root.iterdir() if path.name.startswith(".new-")]
        assert [found.locked for found in await driver.find(TAG)] == ([] if locked is None else [locked])
        for path in begun:
            os.utime(path, (0, 0))
        if "rmdir" in story:
            await driver.destroy(REF)
        if running:
            # It may have been on its way up.
            while not (await driver.find(TAG))[0].running:
                await asyncio.sleep(0.02)
        await driver.clone(host.clone_spec())
        await driver.configure(REF, SPEC)
        await driver.start(REF)
        assert (await driver.status(REF)).running
        assert len(host.processes()) == 1
        await driver.destroy(REF)
        assert await driver.inventory() == []
        assert list(host.root.iterdir()) == []

    run(conversation)
    assert host.processes() == []


def test_a_copy_goes_on_without_its_console(host: Host) -> None:
    # A pipe in place of a program: the copy waits until it is let go.
    gate = host.folder / "gate"
    os.mkfifo(gate)
    programs = host.folder / "bin"
    programs.mkdir()
    real = shutil.which("qemu-img")
    (programs / "qemu-img").write_text(f'#!/bin/sh\n[ "$1" != convert ] || cat {gate}\nexec {real} "$@"\n')
    (programs / "qemu-img").chmod(0o755)
    killed(
        host,
        f"""
        os.environ["PATH"] = {str(programs)!r} + ":" + os.environ["PATH"]
        await local.clone(host.clone_spec(full="yes"))
        die()
        """,
    )

    async def conversation() -> None:
        driver = host.driver()
        [found] = await driver.find(TAG)
        assert found.locked == "clone"
        task = await driver.clone(host.clone_spec(full="yes"))
        assert (await driver.task(task)).state == "running"
        with pytest.raises(DriverBusy, match="copied"):
            await driver.destroy(REF)
        gate.write_text("go")
        assert await ended(driver, task) == "ok"
        assert await driver.clone(host.clone_spec(full="yes")) == task
        # A copy needs its template no more.
        host.image.unlink()
        await driver.configure(REF, SPEC)
        await driver.start(REF)
        assert (await driver.status(REF)).running

    run(conversation)


def test_a_copy_that_fails_says_why_and_may_be_repeated(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation() -> None:
        driver = host.driver()
        programs = host.folder / "bin"
        programs.mkdir()
        (programs / "sync").write_text("#!/bin/sh\necho no space left\nexit 1\n")
        (programs / "sync").chmod(0o755)
        path = os.environ["PATH"]
        monkeypatch.setenv("PATH", f"{programs}:{path}")
        task = await driver.clone(host.clone_spec(full="yes"))
        assert await ended(driver, task) == "failed"
        status = await driver.task(task)
        assert "no space left" in status.message
        assert status.retryable
        with pytest.raises(DriverFailed, match="broken off"):
            await driver.start(REF)
        monkeypatch.setenv("PATH", path)
        await driver.destroy(REF)
        assert await ended(driver, await driver.clone(host.clone_spec(full="yes"))) == "ok"

    run(conversation)


def test_a_layer_over_a_changed_image_is_not_started(host: Host) -> None:
    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        before = stamp_of(str(host.image))
        with host.image.open("r+b") as file:
            file.write(b"another system")
        assert stamp_of(str(host.image)) != before
        with pytest.raises(DriverFailed, match="not the one"):
            await driver.start(REF)
        assert host.processes() == []

    run(conversation)


def test_disks_grow_and_never_shrink(host: Host) -> None:
    async def size(driver: QemuDriver) -> int:
        return (await driver.find(TAG))[0].disk_gib

    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        await driver.start(REF)
        await driver.resize(REF, 2, 96, 3)
        disk = await driver._disk_bytes(MachineFolder(host.root, REF))
        assert disk == 3 * GIB, "under a running machine"
        await driver.resize(REF, 2, 96, 2)
        assert await size(driver) == 3
        await driver.stop(REF)
        await driver.resize(REF, 1, 64, 4)
        assert await size(driver) == 4
        await driver.start(REF)
        assert await driver._disk_bytes(MachineFolder(host.root, REF)) == 4 * GIB

    run(conversation)


def test_a_machine_that_ignores_the_button_is_not_forced(host: Host) -> None:
    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        assert await driver.shutdown(REF, 5.0) == ""
        await driver.start(REF)
        task = await driver.shutdown(REF, 60.0)
        assert (await driver.task(task)).state == "running"
        task = await driver.shutdown(REF, 0.0)
        assert (await driver.task(TaskRef(task.rpartition(":")[0] + ":0"))).state == "failed"
        assert (await driver.status(REF)).running
        await driver.stop(REF)
        assert (await driver.task(task)).state == "ok"
        for odd in ("", "x", "copy:../etc", "UPID:pve1:1"):
            assert (await driver.task(TaskRef(odd))).state == "unknown"

    run(conversation)


def test_a_qemu_that_hangs_is_busy_and_can_be_stopped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "END_S", 0.5)
    monkeypatch.setattr("envctl.drivers.qemu.qmp.ask.__kwdefaults__", {"timeout_s": 0.5})

    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        await driver.start(REF)
        [process] = host.processes()
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(DriverBusy, match="does not answer"):
            await driver.status(REF)
        with pytest.raises(DriverBusy, match="does not answer"):
            await driver.shutdown(REF, 1.0)
        await driver.stop(REF)
        assert not (await driver.status(REF)).running

    run(conversation)
    assert host.processes() == []


def test_what_is_damaged_is_shown_and_can_be_destroyed(host: Host) -> None:
    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host)
        (host.root / "lost+found").mkdir()
        (host.root / REF / "machine.json").write_text("{")
        [found] = await driver.inventory()
        assert found.tag == TAG
        assert found.locked.startswith("damaged")
        for refused in (driver.start(REF), driver.resize(REF, 1, 64, 1)):
            with pytest.raises(DriverFailed, match="damaged"):
                await refused
        await driver.destroy(REF)
        assert await driver.inventory() == []

    run(conversation)


def test_what_is_not_there_and_what_is_not_ours(host: Host) -> None:
    async def conversation() -> None:
        driver = host.driver()
        for refused in (driver.start(REF), driver.configure(REF, SPEC)):
            with pytest.raises(DriverFailed, match="no machine"):
                await refused
        for odd in ("../template.img", "/etc", "pve1/100"):
            with pytest.raises(DriverFailed, match="not a machine"):
                await driver.destroy(MachineRef(odd))
        with pytest.raises(DriverFailed, match="options that are none: drive"):
            await driver.clone(host.clone_spec(drive="file=/etc/shadow"))
        await made(driver, host)
        with pytest.raises(DriverFailed, match="belongs to"):
            await driver.configure(REF, MachineSpec(1, 64, 1, "", "", "env-" + "0" * 26, ""))

    run(conversation)


def test_what_qemu_says_is_told(host: Host) -> None:
    async def conversation() -> None:
        driver = host.driver()
        await made(driver, host, cpu="abacus")
        with pytest.raises(DriverFailed, match="abacus"):
            await driver.start(REF)
        assert host.processes() == []

    run(conversation)


def test_a_kvm_that_does_not_work_is_passed_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QemuDriver, "_accelerators", lambda driver: ("xen", "tcg"))

    async def conversation() -> None:
        driver = host.driver(accelerator="auto")
        await made(driver, host)
        await driver.start(REF)
        assert (await driver.status(REF)).running

    run(conversation)


def test_checks_say_what_to_do(host: Host) -> None:
    async def messages(driver: QemuDriver, source: Path, options: dict[str, str]) -> dict[str, str]:
        return {finding.message: finding.severity for finding in await driver.check_template(str(source), options)}

    async def conversation() -> None:
        driver = host.driver()
        host.image.chmod(0o400)
        assert set((await messages(driver, host.image, {})).values()) == {"ok"}
        host.image.chmod(0o600)
        assert "warning" in (await messages(driver, host.image, {})).values()
        for source, options, words in (
            (host.folder / "none", {}, "not a file"),
            (Path("relative"), {}, "not an absolute path"),
            (host.image, {"kernel": "/none"}, "cannot be read"),
            (host.image, {"drive": "x"}, "no option"),
            (host.image, {"network": "bridge"}, "needs the driver's setting"),
        ):
            found = await messages(driver, source, options)
            assert any(words in message for message, severity in found.items() if severity == "error"), found
        host.root.mkdir()
        host.root.chmod(0o755)
        said = [(finding.severity, finding.message) for finding in await driver.check_access()]
        assert any(severity == "warning" and "loopback" in message for severity, message in said)
        assert any(severity == "warning" and "may look into" in message for severity, message in said)
        assert not [message for severity, message in said if severity == "error"]
        long = host.driver(state_dir=str(host.root / ("x" * 60)), bridge="br0")
        assert any("too long" in finding.message for finding in await long.check_access())
        [node] = await driver.headroom()
        assert (node.node, node.online) == ("here", True)
        assert node.cores > 0
        assert 0 < node.memory_used_bytes < node.memory_bytes
        assert node.storages[0][1] > node.storages[0][2]

    run(conversation)
