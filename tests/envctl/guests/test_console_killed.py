"""The console as a process of its own, killed without warning while a machine comes up and while it runs."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from envctl import serving
from envctl.drivers.port import MachineRef
from envctl.drivers.qemu.driver import QemuDriver
from envctl.drivers.qemu.folder import MachineFolder
from s3core.settings import Config, parse_config
from tests.envctl.assembly.running import Running, console_process, write_config
from tests.envctl.guests.console import HOST, make_template, template_options
from tests.envctl.guests.inside import Inside
from tests.guest.envctl_image import LOGIN_USER, TemplateImage
from tests.servers.processes import free_port


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's: names of sockets are short.
    made = Path(tempfile.mkdtemp(prefix="envctl-"))
    yield made

    async def end() -> None:
        driver = driver_of(made)
        for found in await driver.inventory():
            await driver.destroy(found.machine)

    asyncio.run(end())
    shutil.rmtree(made)


def config_of(folder: Path) -> Config:
    port = free_port()
    text = (
        f'guest_url = "http://{HOST}:{port}"\nbackup_interval_s = 3600\n'
        f'[envctl.driver.local]\nkind = "qemu"\nstate_dir = "{folder}/machines"\naccelerator = "tcg"\n'
    )
    path = write_config(folder / "console", text, listen=f"127.0.0.1:{port}")
    return parse_config(path.read_text(encoding="utf-8"), path=path)


def driver_of(folder: Path) -> QemuDriver:
    settings = parse_config(
        f'[envctl.driver.local]\nkind = "qemu"\nstate_dir = "{folder}/machines"\n', path=folder / "none"
    ).envctl.driver["local"]
    return QemuDriver("local", settings)


def kill(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)


def test_a_console_that_is_killed_loses_no_machine_and_no_home(template_image: TemplateImage, folder: Path) -> None:
    config = config_of(folder)
    image = make_template(template_image, folder)
    with ExitStack() as stack:
        process, url = stack.enter_context(console_process(config.path))
        context = stack.enter_context(serving.open_context(config))
        running = Running(url, context, config)
        running.add_user("root", "admin")
        client = stack.enter_context(running.client(running.token("root")))

        def ask(method: str, path: str, **body: Any) -> Any:
            answer = client.request(method, f"/api/v1{path}", json=body if method in ("POST", "PUT") else None)
            assert answer.is_success, answer.text
            return answer.json()

        def wait_for(condition: Callable[[dict[str, Any]], bool], seconds: float = 900.0) -> dict[str, Any]:
            give_up = time.monotonic() + seconds
            while True:
                shown: dict[str, Any] = ask("GET", f"/environments/{environment}")
                if condition(shown):
                    return shown
                assert shown["state"] != "failed", shown
                assert time.monotonic() < give_up, shown
                time.sleep(0.1)

        def start_again() -> "subprocess.Popen[str]":
            again, _ = stack.enter_context(console_process(config.path))
            return again

        ask(
            "POST",
            "/templates",
            name="debian",
            driver="local",
            source=str(image),
            options=template_options(template_image),
            cores=1,
            memory_mib=512,
            disk_gib=4,
            login_user=LOGIN_USER,
            seed="agent",
        )
        environment = ask("POST", "/environments", name="dev", template="debian")["environment"]["id"]
        shown = wait_for(lambda now: bool(now["running"]))
        kill(process)
        machine = MachineFolder(folder / "machines", MachineRef(f"env-{shown['id']}.1"))
        qemu = machine.holder()
        assert qemu
        # It boots on, and finds nobody; the next console takes the job when the lease has run out.
        process = start_again()
        wait_for(lambda now: bool(now["state"] == "ready"))
        assert machine.holder() == qemu
        assert len(list((folder / "machines").iterdir())) == 1

        with Inside(machine.places.serial) as inside:
            inside.wait_until_up()
            inside.run("sh", "-c", f"echo kept > /home/{LOGIN_USER}/kept")
        kill(process)
        assert machine.holder() == qemu, "machines are not the console's children"
        process = start_again()
        ask("POST", "/environments/dev/stop")
        wait_for(lambda now: bool(now["state"] == "stopped"))
        assert machine.holder() == 0
        newest = context.homes.head(shown["id"])
        assert newest is not None
        assert newest.newest is not None
        kept = context.homes.open_file(shown["id"], newest.newest.number, f"home/{LOGIN_USER}/kept".encode())
        assert b"".join(kept.pieces) == b"kept\n"

        kill(process)
        process = start_again()
        ask("DELETE", "/environments/dev")
        wait_for(lambda now: bool(now["state"] == "deleted"))
        assert list((folder / "machines").iterdir()) == []
