"""The suite's package in a clean Debian: every command starts, a disk is made, served and written, the console answers; what
an upgrade, a step back, a removal and a purge do to what runs and to what lies there.

One rule: nothing of ours is there but the package. What systemd would do in a host that runs is tested with systemd itself
(tests/guest); here its place is taken by a script that notes what it is asked, for what an upgrade restarts and what not.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.built import OLD, SUITE, built, version_of
from tests.packages.debian import Debian, until
from tests.servers.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMANDS = (
    *("bucketworks", "s3block", "cowsync", "s3integrity", "s3-envctl"),
    *("pve-s3", "pve-s3-backup", "pve-s3-restore", "pve-s3-maintenance"),
)
WHOLE = """
import importlib, pathlib, sys
sys.path.insert(0, "/usr/lib/bucketworks")
from start import HOME, module_folders
sys.path[:0] = module_folders(HOME, sys.version_info[:2])
root = pathlib.Path(sys.path[1])
names = set()
for package in ("s3core", "integrity", "blockdev", "cowsync", "envctl"):
    for file in (root / package).rglob("*.py"):
        names.add(".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
names = {name for name in names if not name.startswith(LEFT_OUT) and "migrations" not in name}
names = {name for name in names if not name.endswith("__main__")}
for name in sorted(names):
    module = importlib.import_module(name)
    assert str(module.__file__).startswith(str(root)), module.__file__
import boto3, psycopg, rfc3161_client, rtslib_fb
boto3.client("s3", region_name="x", aws_access_key_id="a", aws_secret_access_key="b")
print(len(names), "modules", root)
"""
LEFT_OUT = ("cowsync.cluster", "cowsync.inventory", "s3core.bucket_conformance")
"""What is left to extras that the package does not carry, and says so when it is called; and what is for tests of stores."""


@pytest.fixture(scope="class")
def installed(debian: Debian) -> Iterator[Debian]:
    """Installed for the tests of a class, and purged after them with its data; what is left is what it was before."""
    before = debian.files()
    debian.install(built()[SUITE])
    yield debian
    debian.run("dpkg", "--purge", SUITE)
    for folder in ("var/lib/bucketworks", "etc/bucketworks", "srv/store"):
        shutil.rmtree(debian.root / folder, ignore_errors=True)
    # A user stays with its data, which this took away just now.
    debian.status("userdel", "envctl")
    assert debian.files() == before
    assert debian.run("dpkg", "--audit") == ""


class TestInstalled:
    def test_every_command_starts(self, installed: Debian) -> None:
        version = version_of(built()[SUITE])
        assert set(COMMANDS) == {
            line.removeprefix("/usr/bin/")
            for line in installed.run("dpkg", "-L", SUITE).splitlines()
            if line.startswith("/usr/bin/")
        }
        for command in COMMANDS:
            assert installed.run(command, "--version") == f"{command} {version}\n"
            assert "--help" in installed.run(command, "--help")
        assert installed.run("dpkg", "--verify", SUITE) == ""

    def test_every_module_finds_what_it_imports(self, installed: Debian) -> None:
        whole = installed.run("python3", "-IBc", f"LEFT_OUT = {LEFT_OUT!r}\n{WHOLE}").splitlines()[-1]
        found = re.match(r"(\d+) modules /usr/lib/bucketworks/builds/", whole)
        assert found is not None, whole
        assert int(found[1]) > 300

    def test_modules_are_compiled_once_and_starts_write_nothing(self, installed: Debian) -> None:
        build = installed.root / "usr/lib/bucketworks/builds"
        compiled = {one: one.stat().st_mtime_ns for one in build.rglob("*.pyc")}
        assert compiled
        installed.run("s3block", "--help")
        installed.run("s3-envctl", "--help")
        assert {one: one.stat().st_mtime_ns for one in build.rglob("*.pyc")} == compiled

    @pytest.mark.initiator
    def test_a_disk_is_made_served_written_and_kept(self, installed: Debian, tmp_path: Path) -> None:
        if shutil.which("qemu-img") is None:
            pytest.skip("needs qemu-img: apt-get install qemu-utils qemu-block-extra")
        installed.run("mkdir", "-p", "/srv/store")
        installed.run("s3block", "create", "file:///srv/store/vm1", "--size", "32M")
        content = tmp_path / "content.raw"
        content.write_bytes(os.urandom(4 << 20) + bytes(28 << 20))
        with _served(installed) as url:
            _qemu_img("convert", "-n", "-f", "raw", "-O", "raw", str(content), url)
            assert _qemu_img("compare", "-f", "raw", "-F", "raw", str(content), url) == "Images are identical.\n"
            # A process of ours that no unit has: its modules are not taken away from under it.
            assert "processes run from this package" in installed.run("dpkg", "--remove", SUITE, status=1)
            assert installed.run("dpkg-query", "-W", "-f", "${Status}", SUITE).endswith(" ok installed")
        # By another host, as it were: from the bucket alone.
        shutil.rmtree(installed.root / "var/lib/bucketworks/vm1")
        installed.run("s3block", "check", "file:///srv/store/vm1")
        with _served(installed) as url:
            assert _qemu_img("compare", "-f", "raw", "-F", "raw", str(content), url) == "Images are identical.\n"

    def test_the_console_answers(self, installed: Debian) -> None:
        port = free_port()
        etc = installed.root / "etc/bucketworks"
        (etc / "config.toml").write_text(
            f'[envctl]\nlisten = "127.0.0.1:{port}"\nhomes = "file:///var/lib/bucketworks/envctl/homes"\n'
        )
        assert (
            installed.run("stat", "-c", "%a %U", "/etc/bucketworks", "/var/lib/bucketworks") == "755 root\n711 root\n"
        )
        installed.run("install", "-d", "-m", "0700", "-o", "envctl", "-g", "envctl", "/var/lib/bucketworks/envctl")
        # As its own user, whom the package has made: it reads modules, and its folder, and no more.
        as_user = ("setpriv", "--reuid", "envctl", "--regid", "envctl", "--clear-groups")
        made = json.loads(installed.run(*as_user, "s3-envctl", "init", "--json"))
        assert made
        console = installed.start("sh", "-c", f"echo $$ > /run/served; exec {' '.join(as_user)} s3-envctl serve")
        try:

            def healthy() -> bool:
                assert console.poll() is None, console.communicate()[0]
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                    return bool(answer.status == 200)
                return False

            until(healthy, "the console")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                assert b"<html" in page.read()
            _stop(installed)
            assert console.wait(120) == 0, console.communicate()[0]
        finally:
            console.kill()
            console.wait(30)
        # Data remains, so its user does too, or the next user that is made could read it.
        said = installed.run("dpkg", "--purge", SUITE)
        assert "/var/lib/bucketworks is kept" in said
        assert "envctl" in said
        assert installed.status("getent", "passwd", "envctl") == 0
        assert not (etc / "config.toml").exists()


@pytest.mark.initiator
def test_a_disk_goes_on_through_an_upgrade_and_a_step_back(debian: Debian, tmp_path: Path) -> None:
    """Version N serves while N+1 is installed, and N+1 while N is; each starts what the other left."""
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img: apt-get install qemu-utils qemu-block-extra")
    builds = debian.root / "usr/lib/bucketworks/builds"
    new = version_of(built()[SUITE])
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    first.write_bytes(os.urandom(2 << 20) + bytes(14 << 20))
    second.write_bytes(os.urandom(2 << 20) + bytes(14 << 20))
    debian.install(built(OLD)[SUITE])
    debian.run("mkdir", "-p", "/srv/store")
    debian.run("s3block", "create", "file:///srv/store/vm1", "--size", "16M")
    with _served(debian) as url:
        _qemu_img("convert", "-n", "-f", "raw", "-O", "raw", str(first), url)
        debian.install(built()[SUITE])
        assert debian.run("s3block", "--version") == f"s3block {new}\n"
        assert sorted(one.name.split("-")[0] for one in builds.iterdir()) == sorted([OLD, new])
        assert _qemu_img("compare", "-f", "raw", "-F", "raw", str(first), url) == "Images are identical.\n"
    with _served(debian) as url:  # the newer one goes on where the older one ended
        assert _qemu_img("compare", "-f", "raw", "-F", "raw", str(first), url) == "Images are identical.\n"
        said = debian.install(built(OLD)[SUITE])
        assert "downgrading" in said
        assert debian.run("s3block", "--version") == f"s3block {OLD}\n"
        _qemu_img("convert", "-n", "-f", "raw", "-O", "raw", str(second), url)
    with _served(debian) as url:
        assert _qemu_img("compare", "-f", "raw", "-F", "raw", str(second), url) == "Images are identical.\n"
    debian.run("dpkg", "--purge", SUITE)
    assert not builds.exists()
    shutil.rmtree(debian.root / "var/lib/bucketworks")
    shutil.rmtree(debian.root / "srv/store")


def test_remove_leaves_configuration_and_data_and_purge_leaves_data(debian: Debian) -> None:
    before = debian.files()
    debian.install(built()[SUITE])
    etc, state = debian.root / "etc/bucketworks", debian.root / "var/lib/bucketworks"
    (etc / "config.toml").write_text("[endpoint.a]\n")
    (etc / "vm1.key").write_bytes(os.urandom(32))
    (state / "vm1").mkdir()
    (state / "vm1/journal").write_bytes(b"what no bucket has")
    (state / "empty").mkdir()
    wants = debian.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "s3block@vm1.service").symlink_to("/usr/lib/systemd/system/s3block@.service")
    debian.run("dpkg", "--remove", SUITE)
    assert not (debian.root / "usr/lib/bucketworks").exists()
    for kept in (etc / "config.toml", etc / "vm1.key", state / "vm1/journal"):
        assert kept.exists()
    assert (wants / "s3block@vm1.service").is_symlink()  # so that installing it again brings it back

    said = debian.run("dpkg", "--purge", SUITE)
    assert "bucketworks: /etc/bucketworks is kept, it may hold what no bucket has: vm1.key" in said
    assert "bucketworks: /var/lib/bucketworks is kept, it may hold what no bucket has: vm1" in said
    left = {name for name in debian.files() if name not in before}
    assert left == {
        *("etc/bucketworks", "etc/bucketworks/vm1.key"),
        *("var/lib/bucketworks", "var/lib/bucketworks/vm1", "var/lib/bucketworks/vm1/journal"),
    }
    shutil.rmtree(etc)
    shutil.rmtree(state)
    assert debian.files() == before


SYSTEMCTL = """#!/bin/sh
echo "$0 $*" | sed 's|.*/||' >> /root/asked
case "$*" in
*list-units*)
	for pattern in "$@"; do
		for unit in $(cat /root/active); do
			case "$unit" in $pattern) echo "$unit loaded active running x" ;; esac
		done
	done
	;;
*is-active*) grep -qxF "$(echo "$*" | sed 's/.* //')" /root/active ;;
esac
"""


@contextlib.contextmanager
def _with_systemd(debian: Debian, active: str) -> Iterator[Path]:
    """The file of what it was asked. `active`: the units that run."""
    asked = debian.root / "root/asked"
    programs = [debian.root / "usr/local/sbin" / name for name in ("systemctl", "deb-systemd-invoke")]
    for program in programs:
        program.write_text(SYSTEMCTL)
        program.chmod(0o755)
    (debian.root / "root/active").write_text(active)
    debian.run("mkdir", "-p", "/run/systemd/system")
    try:
        yield asked
    finally:
        debian.run("rm", "-rf", "/run/systemd")
        for file in (*programs, asked, debian.root / "root/active"):
            file.unlink(missing_ok=True)


def test_an_upgrade_restarts_what_nobody_waits_for(debian: Debian) -> None:
    before = debian.files()
    debian.install(built(OLD)[SUITE])
    homes = 'homes = "file:///var/lib/bucketworks/envctl/homes"'
    config = debian.root / "etc/bucketworks/config.toml"
    config.write_text(f"[envctl]\n{homes}\n")
    config.chmod(0o600)  # root's: its unit hands it to the console
    debian.run("s3-envctl", "init")
    # As systemd does with the state directory of a unit at its first start.
    debian.run("chown", "-R", "envctl:envctl", "/var/lib/bucketworks/envctl")
    volumes = ("s3block-initiator@vm1.service", "s3block@vm1.service", "s3block-lio@vm1.service")
    others = ("s3integrity-witness@w.service", "cowsync@photos.service", "s3integrity@trail.service")
    active = "".join(f"{unit}\n" for unit in (*volumes, *others))
    with _with_systemd(debian, active + "s3-envctl.service\n") as asked:
        said = debian.install(built()[SUITE])
        lines = asked.read_text().splitlines()
        assert "systemctl --no-block try-restart cowsync@photos.service" in lines
        assert "systemctl --no-block try-restart s3integrity@trail.service" in lines
        assert "systemctl --no-block try-restart s3integrity-witness@w.service" in lines
        assert "deb-systemd-invoke restart s3-envctl.service" in lines
        assert not [line for line in lines if "s3block" in line and "list-units" not in line]
        assert "s3block@vm1.service goes on with version 0.0.1" in said
        assert "systemctl restart s3block@vm1" in said
        copies = debian.root / "var/lib/bucketworks/envctl/before-upgrade"
        (copy,) = copies.iterdir()
        assert copy.name.endswith("-from-0.0.1.sqlite3")
        assert copy.read_bytes().startswith(b"SQLite format 3")
        assert debian.run("stat", "-c", "%U %a", f"/{copy.relative_to(debian.root)}") == "envctl 600\n"
        assert debian.run("ls", "-A", "/run/bucketworks") == "", "no copy of the configuration is left"

        # No copy, no restart: its restart would bring the database where the older version cannot follow.
        shutil.rmtree(copies)
        copies.write_text("in the way")
        asked.unlink()
        said = debian.install(built(OLD)[SUITE])
        assert "deb-systemd-invoke restart s3-envctl.service" not in asked.read_text()
        assert "its database could not be copied" in said
    with _with_systemd(debian, active) as asked:
        said = debian.run("dpkg", "--remove", SUITE, status=1)
        (told,) = re.findall(r"nobody uses them: systemctl disable --now (.+)", said)
        assert set(told.split()) == set(volumes)
        assert " stop " not in asked.read_text()
    with _with_systemd(debian, "cowsync@photos.service\n") as asked:
        debian.run("dpkg", "--remove", SUITE)
        (stopped,) = [line for line in asked.read_text().splitlines() if line.startswith("systemctl stop")]
        assert "cowsync@*.service" in stopped
        assert "s3-envctl.service" in stopped
        assert "s3block-check@*.service" in stopped
        assert "s3block@" not in stopped
    debian.run("dpkg", "--purge", SUITE)
    shutil.rmtree(debian.root / "var/lib/bucketworks")
    debian.run("userdel", "envctl")
    assert debian.files() == before


@contextlib.contextmanager
def _served(debian: Debian) -> Iterator[str]:
    """The volume's address while it is served; then the server ends in order."""
    port = free_port()
    # The process that we have is the one that has entered the tree; the server in it is told by its number there.
    words = (
        f"echo $$ > /run/served; exec s3block serve file:///srv/store/vm1 --listen 127.0.0.1:{port} --journal-size 64M"
    )
    server = debian.start("sh", "-c", words)
    url = f"iscsi://127.0.0.1:{port}/iqn.2025-01.internal.bucketworks:vm1/0"
    try:

        def there() -> bool:
            assert server.poll() is None, server.communicate()[0]
            done = subprocess.run(["qemu-img", "info", "-f", "raw", url], capture_output=True, check=False)
            return done.returncode == 0

        until(there, "the disk")
        yield url
        _stop(debian)
        assert server.wait(120) == 0, server.communicate()[0]
    finally:
        server.kill()
        server.wait(30)


def _stop(debian: Debian) -> None:
    debian.run("sh", "-c", "kill -TERM $(cat /run/served)")


def _qemu_img(*words: str) -> str:
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
