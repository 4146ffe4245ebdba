"""The units: as systemd itself reads and rates them, and the rules that all of them keep."""

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

UNITS = ROOT / "deploy/systemd"
SERVICES = sorted(UNITS.glob("*.service"))
ALL = sorted((*SERVICES, *UNITS.glob("*.socket"), *UNITS.glob("*.timer")))
EXPOSURE = {
    "bucketworks-disk@": 3.0,
    "bucketworks-gateway@": 3.0,
    "bucketworks-mount@": 4.9,
    "bucketworks-pve": 4.9,
    "bucketworks-status": 2.5,
    "cowsync@": 2.5,
    "s3-envctl": 2.0,
    "s3block@": 4.0,
    "s3block-initiator@": 4.5,
    "s3block-lio@": 4.9,
    "s3integrity@": 2.5,
    "s3integrity-witness@": 2.0,
}
"""What `systemd-analyze security` may say at most, of 10; "OK" ends at 5. A unit that is not named here: 3."""
ONESHOT = {"s3block-lio@", "s3block-initiator@", "s3block-check@", "s3integrity-verify@", "bucketworks-status"}
"""Not processes that stay: nothing to watch."""
NOT_WATCHED = {
    "bucketworks-gateway@": "it keeps nothing, and a gateway that hangs is seen by the core, which asks it",
    "bucketworks-disk@": "Proxmox VE's core watches it, and only the next login may start it again",
}


def needs_systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    return found


def settings(unit: Path) -> dict[str, list[str]]:
    """`Key` -> its values, of all sections: no key of ours is in two."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith(("#", ";")):
            found.setdefault(key, []).append(value)
    return found


def name(unit: Path) -> str:
    return unit.name.removesuffix(unit.suffix)


@pytest.mark.parametrize("unit", SERVICES, ids=name)
def test_the_exposure_is_in_the_green(unit: Path) -> None:
    limit = EXPOSURE.get(name(unit), 3.0)
    done = subprocess.run(
        [
            *(needs_systemd_analyze(), "security", "--offline=true", "--no-pager"),
            *(f"--threshold={round(limit * 10)}", str(unit)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"more than {limit}:\n{done.stdout}{done.stderr}"
    told = re.search(r"Overall exposure level for \S+ (\d+\.\d)", done.stdout)
    assert told is not None, done.stdout
    assert float(told[1]) <= limit < 5.0


@pytest.mark.parametrize("unit", ALL, ids=lambda unit: unit.name)
def test_systemd_reads_every_line(unit: Path, tmp_path: Path) -> None:
    """`verify` wants the commands to be there: stand-ins are, with the names of ours."""
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for command in commands:
        (tmp_path / command).symlink_to("/bin/true")
    copies = tmp_path / "units"
    copies.mkdir()
    for one in ALL:
        text = re.sub(
            r"^(Exec\w+=)(?:/usr/bin/)?([a-z0-9-]+)",
            lambda found: found[1] + (str(tmp_path / found[2]) if found[2] in commands else found[2]),
            one.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        (copies / one.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [needs_systemd_analyze(), "verify", "--man=no", str(copies / unit.name.replace("@", "@x"))],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{copies}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if str(copies) in line or unit.name in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=name)
def test_every_service_keeps_the_common_rules(unit: Path) -> None:
    found = settings(unit)
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["UMask"] == ["0077"]
    assert found["LimitCORE"] == ["0"], "a core file would hold keys"
    assert found["SystemCallFilter"][0].startswith("@system-service")
    assert "CapabilityBoundingSet" in found
    assert "TimeoutStopSec" in found or found["Type"] == ["oneshot"]
    # Others pass through the parent of all state directories; what is in it is private by itself.
    if found.get("StateDirectory") == ["bucketworks"]:
        assert found["StateDirectoryMode"] == ["0711"]
    if name(unit) not in (*ONESHOT, *NOT_WATCHED):
        assert found["Type"] == ["notify"]
        assert found["NotifyAccess"] == ["main"], "a child must not speak for its service"
        assert int(found["WatchdogSec"][0]) >= 60, "busy hosts are slow, and not ill"
    if found["Type"] != ["oneshot"] and found["Restart"] != ["no"]:
        assert "StartLimitIntervalSec" in found, "a store that is away for hours is no reason to give up"


@pytest.mark.parametrize("unit", SERVICES, ids=name)
def test_a_relaxation_has_its_reason(unit: Path) -> None:
    """Whoever runs as root says what for, in words next to it."""
    text = unit.read_text(encoding="utf-8")
    if "User=" not in text:
        sandbox = text[text.index("[Service]") :]
        assert re.search(r"^# .*\n(?:# .*\n)*CapabilityBoundingSet=", sandbox, re.MULTILINE), "why these capabilities?"


def test_users_of_units_are_made(tmp_path: Path) -> None:
    """By sysusers.d, in a root of its own."""
    users = {user for unit in SERVICES for user in settings(unit).get("User", [])}
    made = (UNITS / "sysusers.d/bucketworks.conf").read_text(encoding="utf-8")
    assert users == set(re.findall(r"^u (\S+)", made, re.MULTILINE))
    tool = shutil.which("systemd-sysusers")
    if tool is None:
        pytest.skip("needs systemd-sysusers: apt-get install systemd")
    (tmp_path / "etc").mkdir()
    subprocess.run([tool, f"--root={tmp_path}", str(UNITS / "sysusers.d/bucketworks.conf")], check=True)
    passwd = (tmp_path / "etc/passwd").read_text(encoding="utf-8")
    for user in users:
        assert re.search(rf"^{user}:.*:/usr/sbin/nologin$", passwd, re.MULTILINE), passwd


def test_directories_are_made(tmp_path: Path) -> None:
    tool = shutil.which("systemd-tmpfiles")
    if tool is None:
        pytest.skip("needs systemd-tmpfiles: apt-get install systemd")
    if os.geteuid() != 0:
        pytest.skip("needs root: it gives directories to root")
    subprocess.run([tool, "--create", f"--root={tmp_path}", str(UNITS / "tmpfiles.d/bucketworks.conf")], check=True)
    assert (tmp_path / "var/lib/bucketworks").stat().st_mode & 0o777 == 0o711
    assert (tmp_path / "etc/bucketworks").stat().st_mode & 0o777 == 0o755


def test_the_page_names_every_unit() -> None:
    page = (ROOT / "docs/units.md").read_text(encoding="utf-8")
    for unit in ALL:
        assert f"`{unit.name}`" in page, unit.name


def test_sections_are_known() -> None:
    for unit in ALL:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True, comment_prefixes=("#", ";"))
        parser.read_string(unit.read_text(encoding="utf-8"))
        assert set(parser.sections()) <= {"Unit", "Service", "Socket", "Timer", "Install"}
