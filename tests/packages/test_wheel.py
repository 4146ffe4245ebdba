"""The wheel, as somebody without Debian's package has it: installed by pipx, every command, and the console with its styles.

One rule: nothing is imported from this tree, and no network but the package index that pip is configured for.
"""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.architecture.tree import PACKAGES, ROOT
from tests.servers.processes import end, start, tail

pytestmark = pytest.mark.slow

INSTALL_S = 600.0
START_S = 120.0
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = sorted(PROJECT["scripts"])
STYLESHEET = re.compile(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"|<link[^>]*href="([^"]+)"[^>]*rel="stylesheet"')


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/release/make_wheel.py"), "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = output.glob("*.whl")
    return made


@dataclass(frozen=True, slots=True)
class Installed:
    commands: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """By pipx, with the versions of requirements.txt; pipx itself comes from the index."""
    place = tmp_path_factory.mktemp("pipx")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIPX_", "BUCKETWORKS_"))
    } | {
        "HOME": str(place / "home"),
        "PIPX_HOME": str(place / "pipx"),
        "PIPX_BIN_DIR": str(place / "bin"),
        "PIPX_MAN_DIR": str(place / "man"),
        "PIPX_DEFAULT_PYTHON": sys.executable,
        "BUCKETWORKS_CONFIG": str(place / "config.toml"),
        "BUCKETWORKS_SPENDING_DIR": str(place / "spending"),
    }
    (place / "home").mkdir()
    own = place / "own"
    asked([sys.executable, "-m", "venv", str(own)], environment)
    got = ask([str(own / "bin/pip"), "install", "-q", "--disable-pip-version-check", "pipx"], environment)
    if got.returncode:
        pytest.skip(f"pipx cannot be had from the package index: {got.stderr[-500:]}")
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(pinned((ROOT / "requirements.txt").read_text(encoding="utf-8"))) + "\n")
    asked([str(own / "bin/pipx"), "install", str(wheel), f"--pip-args=--constraint {constraints}"], environment)
    return Installed(place / "bin", environment)


def pinned(requirements: str) -> list[str]:
    """The versions without their hashes: pip wants a hash of all or of none, and the wheel was made a moment ago."""
    return [line.rstrip("\\ ") for line in requirements.splitlines() if line and not line.startswith((" ", "#"))]


def ask(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env=environment,
        cwd=environment["HOME"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )


def asked(command: list[str], environment: dict[str, str]) -> str:
    done = ask(command, environment)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_has_what_runs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {*PACKAGES, f"bucketworks-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".so"))]
    there = {file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert there - set(names) == set()
    # Nothing that a page needs is lost for want of a pattern in pyproject.toml.
    web = [*(ROOT / "envctl/web/templates").rglob("*"), *(ROOT / "envctl/web/static").rglob("*")]
    needed = {file.relative_to(ROOT).as_posix() for file in web if file.is_file() and file.name[0] != "."}
    assert len(needed) > 20
    assert needed - set(names) == set()


@pytest.mark.timeout(INSTALL_S * 3)
def test_every_command_is_there_and_runs(installed: Installed) -> None:
    assert sorted(file.name for file in installed.commands.iterdir()) == COMMANDS
    for command in COMMANDS:
        program = str(installed.commands / command)
        assert PROJECT["version"] in asked([program, "--version"], installed.environment), command
        assert f"Usage: {command}" in asked([program, "--help"], installed.environment), command


def test_a_volume_in_a_directory_and_a_look_at_everything(installed: Installed) -> None:
    store = f"file://{installed.environment['HOME']}/bucket"
    asked([str(installed.commands / "s3block"), "create", f"{store}/vm1", "--size", "1G"], installed.environment)
    assert "vm1" in asked([str(installed.commands / "s3block"), "list", store], installed.environment)
    looked = asked([str(installed.commands / "bucketworks"), "status"], installed.environment)
    assert looked.strip()


def test_the_console_serves_its_sign_in_page_with_styles(installed: Installed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [
        str(installed.commands / "s3-envctl"),
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--dir",
        str(tmp_path / "demo"),
    ]
    process = start(command, log, installed.environment)
    try:
        give_up = time.monotonic() + START_S
        while not (told := re.search(r"^console +(http\S+)$", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, tail(log)
            assert time.monotonic() < give_up, tail(log)
            time.sleep(0.1)
        url = told[1]
        with urlopen(f"{url}/login", timeout=START_S) as answer:
            page = answer.read().decode()
        assert 'name="password"' in page
        sheets = ["".join(found) for found in STYLESHEET.findall(page)]
        assert sheets
        for sheet in sheets:
            with urlopen(url + sheet, timeout=START_S) as answer:
                assert answer.headers.get_content_type() == "text/css"
                assert len(answer.read()) > 1000
    finally:
        end(process, signal.SIGTERM)
