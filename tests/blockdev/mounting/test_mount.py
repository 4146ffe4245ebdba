"""`s3block mount` and `umount` on a model of a host: every step, every refusal, a death after any change."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockdev import mount_commands
from blockdev.mounting import initiator, units
from blockdev.mounting.host import UNITS, Mounted
from s3core.exit_codes import ExitCode
from tests.blockdev.command import Command, Said, command
from tests.blockdev.mounting.model import IDENTITY, STATE, Killed, Model

SERVICES = ("s3block@vm1.service", "s3block-initiator@vm1.service", "srv-data.mount")
DEVICE = "/dev/disk/by-path/ip-127.0.0.1:860-iscsi-iqn.2025-01.internal.bucketworks:vm1-lun-0"


class World:
    """A host, its configuration file, a volume `vm1` in a folder."""

    def __init__(self, run: Command, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.config = folder / "config.toml"
        self.model = Model()
        self._run = run
        self.store = f"file://{folder}/store"
        self.url = f"{self.store}/vm1"
        self.config.write_text(f'[s3block]\nstate_dir = "{STATE.parent}"\n')
        patch.setattr(mount_commands, "DEFAULT_PATH", self.config)
        patch.setattr(mount_commands, "real_host", lambda: self.model)
        assert self("create", self.url, "--size", "64M").code == 0

    def __call__(self, *words: str) -> Said:
        """The model has the file's text as its own, so that a step sees what another one wrote."""
        self.model.files[self.config] = self.config.read_text()
        try:
            return self._run(*words, "--config", self.config)
        finally:
            self.config.write_text(self.model.files[self.config])

    def mount(self, *more: str) -> Said:
        return self("mount", self.url, "/srv/data", *more)

    @property
    def table(self) -> dict[str, object]:
        table: dict[str, object] = tomllib.loads(self.config.read_text())["volume"]["vm1"]
        return table


@pytest.fixture
def world(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(command(capsys), tmp_path, monkeypatch)


def refused(said: Said, *words: str) -> None:
    assert said.code == ExitCode.REFUSED, said
    for word in words:
        assert word in said.err


# --- there and back --------------------------------------------------------------------------------------------------


def test_from_nothing_to_a_mount_and_a_second_time_nothing(world: World) -> None:
    said = world.mount("--mkfs", "ext4")
    assert said.code == 0, said.err
    assert said.out == "volume vm1 is mounted at /srv/data, now and after every boot\n"
    model = world.model
    assert model.mounts == [Mounted("/srv/data", DEVICE, "ext4")]
    assert all(model.service(unit).enabled and model.service(unit).active == "active" for unit in SERVICES)
    assert not model.service("s3block-lio@vm1.service").enabled
    folder = world.config.parent
    assert world.table == {
        "url": world.store,
        "listen": ["127.0.0.1:860"],
        "chap_user": "vm1",
        "chap_secret_file": f"{folder}/vm1.chap",
        "chap_mutual_user": "vm1-target",
        "chap_mutual_secret_file": f"{folder}/vm1.chap-mutual",
    }
    secrets = [model.files[folder / name].strip() for name in ("vm1.chap", "vm1.chap-mutual")]
    assert len(set(secrets)) == 2
    assert {model.modes[folder / name] for name in ("vm1.chap", "vm1.chap-mutual")} == {0o600}
    done = len(model.changes)
    again = world.mount("--mkfs", "ext4")
    assert (again.code, len(model.changes)) == (0, done), again.err
    assert "was mounted already" in again.err
    assert world("mount", "vm1", "/srv/data", "--json").answer == {
        "volume": "vm1",
        "url": world.url,
        "directory": "/srv/data",
        "device": DEVICE,
        "changed": [],
    }


def test_umount_takes_back_all_but_the_volume_and_its_settings(world: World) -> None:
    world.mount("--mkfs", "ext4")
    said = world("umount", "vm1")
    assert said.code == 0, said.err
    assert f"what stays: the volume at {world.url}, its settings in {world.config}, its cache in {STATE}" in said.err
    model = world.model
    assert not any(service.enabled or service.active == "active" for service in model.services.values())
    assert (model.mounts, model.device, UNITS / "srv-data.mount" in model.files) == ([], None, False)
    assert world.table == {"url": world.store}
    assert not [path for path in model.files if ".chap" in path.name]
    assert "was not mounted" in world("umount", "vm1").err
    assert world.mount().code == 0
    assert world("umount", "/srv/data/").code == 0


def test_umount_goes_the_way_of_the_data(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.changes.clear()
    world("umount", "vm1")
    assert world.model.changes == [
        "stop srv-data.mount",
        "disable srv-data.mount",
        f"remove {UNITS}/srv-data.mount",
        "stop s3block-initiator@vm1.service",
        "disable s3block-initiator@vm1.service",
        "stop s3block@vm1.service",
        "disable s3block@vm1.service",
        "deconfigure vm1",
        f"remove {world.config.parent}/vm1.chap",
        f"remove {world.config.parent}/vm1.chap-mutual",
    ]


def test_a_death_after_any_change_is_repaired_by_the_same_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = 0
    for kind in ("ext4", "xfs"):
        for words in (("mount", "URL", "/srv/data", "--mkfs", kind), ("umount", "vm1")):
            for after in range(1, 40):
                folder = tmp_path / f"{kind}-{words[0]}-{after}"
                folder.mkdir()
                world = World(command(capsys), folder, monkeypatch)
                line = [word.replace("URL", world.url) for word in words]
                if words[0] == "umount":
                    world.mount("--mkfs", kind)
                world.model.changes.clear()
                world.model.die_after = after
                try:
                    assert world(*line).code == 0
                    break
                except Killed:
                    deaths += 1
                world.model.die_after = -1
                said = world(*line)
                assert said.code == 0, (words, after, world.model.changes, said.err)
                there = words[0] == "mount"
                assert bool(world.model.mounts) is there
                assert [world.model.service(unit).enabled for unit in SERVICES] == [there] * 3
                assert STATE / "mkfs-begun" not in world.model.files
            else:
                pytest.fail("it never came to its end")
    assert deaths > 40


def test_lio_is_attached_before_the_login_and_detached_after_it(world: World) -> None:
    assert world.mount("--mkfs", "xfs", "--door", "lio").code == 0
    assert world.table["door"] == "lio"
    starts = [change for change in world.model.changes if change.startswith(("start", "restart"))]
    assert starts == [
        "start s3block@vm1.service",
        "start s3block-lio@vm1.service",
        "restart s3block-initiator@vm1.service",
        "start srv-data.mount",
    ]
    world.model.changes.clear()
    world("umount", "vm1")
    stops = [change.split()[1].partition("@")[0] for change in world.model.changes if change.startswith("stop")]
    assert stops == ["srv-data.mount", "s3block-initiator", "s3block-lio", "s3block"]


def test_a_dry_run_tells_and_does_nothing(world: World) -> None:
    said = world.mount("--mkfs", "ext4", "--dry-run")
    assert said.code == 0
    assert (world.model.changes, "volume" in tomllib.loads(world.config.read_text())) == ([], False)
    lines = said.out.splitlines()
    assert all(line.startswith("to do  ") for line in lines), said.out
    assert any(f"make ext4 on {DEVICE}" in line for line in lines)
    world.mount("--mkfs", "ext4")
    assert {row["done"] for row in json.loads(world.mount("--dry-run", "--json").out)} == {True}
    assert "stop s3block@vm1.service, which carries the rest to the bucket" in world("umount", "vm1", "--dry-run").out


def test_without_arguments_it_shows_what_is_mounted(world: World) -> None:
    assert "no volume is mounted here" in world("mount").err
    world.mount("--mkfs", "ext4", "-o", "ro,nodev")
    (row,) = world("mount", "--json").answer
    assert row == {
        "volume": "vm1",
        "directory": "/srv/data",
        "mounted": True,
        "filesystem": "ext4",
        "device": DEVICE,
        "options": "ro,nodev",
    }


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_say_who_may_reach_it_are_left_alone(world: World) -> None:
    text = f'# mine\n[volume.vm1]\nurl = "{world.store}"\nlisten = "0.0.0.0:3260" # all\nchap_user = ""\n'
    world.config.write_text(world.config.read_text() + text)
    before = world.config.read_text()
    said = world("mount", "vm1", "/srv/data", "--mkfs", "ext4", "--dry-run")
    assert said.code == 0, said.err
    assert "ip-127.0.0.1:3260-iscsi" in said.out
    assert world.config.read_text() == before
    world.model.disk = {"TYPE": "xfs", "USAGE": "filesystem"}
    world("mount", "vm1", "/srv/data")
    world("umount", "vm1")
    assert world.config.read_text() == before


def test_settings_are_added_to_a_table_whose_comments_stay(world: World) -> None:
    world.config.write_text(world.config.read_text() + f'[volume.vm1]\nurl = "{world.store}"\n# why\nflush = "s3"\n')
    assert world("mount", "vm1", "/srv/data", "--mkfs", "ext4").code == 0
    assert (world.table["flush"], world.table["listen"]) == ("s3", ["127.0.0.1:860"])
    assert "# why" in world.config.read_text()
    world("umount", "vm1")
    assert world.config.read_text().endswith(f'[volume.vm1]\nurl = "{world.store}"\n# why\nflush = "s3"\n')


def test_each_volume_has_an_address_of_its_own(world: World) -> None:
    world.config.write_text(world.config.read_text() + '[volume.a]\nurl = "file:///a"\nlisten = "127.0.0.1:860"\n')
    world.model.ports_taken = {"127.0.0.2:860"}
    assert "127.0.0.3:860" in world.mount("--mkfs", "ext4", "--dry-run").out


# --- refusals: nothing was changed -----------------------------------------------------------------------------------


def _fstab(model: Model) -> None:
    model.files[Path("/etc/fstab")] = "# x\n/dev/sda1 /srv/data ext4 defaults 0 0\n"


REFUSALS: dict[str, tuple[Callable[[Model], object], tuple[str, ...]]] = {
    "no root": (lambda m: setattr(m, "is_root", False), ("sudo",)),
    "no iscsiadm": (lambda m: setattr(m, "tools", ("systemctl", "blkid", "mkfs.ext4")), ("apt install open-iscsi",)),
    "no mkfs": (lambda m: setattr(m, "tools", ("systemctl", "blkid", "iscsiadm")), ("apt install e2fsprogs",)),
    "no systemd": (lambda m: setattr(m, "tools", ("iscsiadm",)), ("not booted with systemd",)),
    "not empty": (lambda m: m.directories.update({Path("/srv/data"): ["x"]}), ("not empty", "hide x")),
    "a file": (lambda m: m.files.update({Path("/srv/data"): ""}), ("no directory",)),
    "mounted": (lambda m: m.mounts.append(Mounted("/srv/data", "/dev/sdz", "xfs")), ("a mount of /dev/sdz",)),
    "fstab": (_fstab, ("in /etc/fstab",)),
    "somebody's unit": (lambda m: m.files.update({UNITS / "srv-data.mount": "[Mount]\n"}), ("somebody else's",)),
    "served by hand": (lambda m: setattr(m, "by_hand", True), ("process 77", "end it first")),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_changes_nothing_and_says_what_to_do(world: World, why: str) -> None:
    spoil, words = REFUSALS[why]
    spoil(world.model)
    refused(world.mount("--mkfs", "ext4"), *words)
    assert world.model.changes == []


def test_a_volume_that_is_not_there_is_told_before_anything_is_set_up(world: World) -> None:
    said = world("mount", f"{world.store}/other", "/srv/data", "--mkfs", "ext4")
    assert said.code == ExitCode.NOT_FOUND
    assert world.model.changes == []


def test_a_configuration_that_services_do_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_commands, "DEFAULT_PATH", Path("/etc/bucketworks/config.toml"))
    said = world.mount()
    assert said.code == ExitCode.CONFIGURATION
    assert "services read /etc/bucketworks/config.toml" in said.err


def test_one_volume_one_directory_one_name(world: World) -> None:
    world.mount("--mkfs", "ext4")
    refused(world("mount", "vm1", "/srv/other"), "is mounted at /srv/data", "s3block umount vm1")
    assert world("create", f"{world.store}/b", "--size", "64M").code == 0
    refused(world("mount", f"{world.store}/b", "/srv/data"), "where volume vm1 is mounted")
    refused(world("mount", "file:///elsewhere/vm1", "/srv/x"), "the name is what units and targets are called by")
    refused(world("mount", "vm1", "/srv/data", "--door", "lio"), 'says door = "portal"')
    assert world("umount", "vm2").code == ExitCode.CONFIGURATION
    refused(world("umount", "/srv/nothing"), "no volume is mounted at /srv/nothing")


@pytest.mark.parametrize(
    ("disk", "mkfs", "words"),
    [
        ({"TYPE": "xfs", "USAGE": "filesystem"}, "ext4", ("holds xfs already",)),
        ({"TYPE": "LVM2_member", "USAGE": "raid"}, "ext4", ("holds LVM2_member, which is no file system",)),
        ({"TYPE": "crypto_LUKS", "USAGE": "crypto"}, "", ("crypto_LUKS",)),
        ({"PTTYPE": "gpt"}, "ext4", ("partition table (gpt)",)),
        ({"ambivalent": ""}, "xfs", ("wipefs",)),
        ({}, "", ("holds no file system", "--mkfs ext4")),
    ],
)
def test_nothing_is_ever_made_over_anything(
    world: World, disk: dict[str, str], mkfs: str, words: tuple[str, ...]
) -> None:
    world.model.disk = disk
    refused(world.mount(*(["--mkfs", mkfs] if mkfs else [])), *words)
    assert not any(command[0].startswith("mkfs") for command in world.model.commands)
    assert (world.model.mounts, world.model.disk) == ([], disk)


def test_unknown_data_is_not_a_blank_disk(world: World) -> None:
    world.model.holds_bytes = 8 << 20
    refused(world.mount("--mkfs", "ext4"), "8388608 bytes of something", "nothing was written")
    assert not any(command[0].startswith(("mkfs", "blkdiscard")) for command in world.model.commands)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"unreadable": True, "disk": {"TYPE": "ext4", "USAGE": "filesystem"}}, ("cannot be read",)),
        ({"dumb": True}, ("does not answer",)),
        ({"behind_bytes": 4096}, ("the bucket lacks what was written last",)),
        ({"worker_late": 1}, ("is not known", "daemon does not say")),
        ({"worker_told": False}, ("is not known", "daemon does not say")),
    ],
)
def test_a_disk_nobody_can_tell_of_is_not_a_blank_one(
    world: World, what: dict[str, Any], words: tuple[str, ...]
) -> None:
    for name, value in what.items():
        setattr(world.model, name, value)
    refused(world.mount("--mkfs", "ext4"), *words, "nothing was written")
    assert not any(command[0].startswith(("mkfs", "blkdiscard")) for command in world.model.commands)


def test_a_note_of_another_volume_is_no_leave_to_discard(world: World) -> None:
    """A volume was deleted while its file system was made, and another one has its name."""
    world.model.files[STATE / "mkfs-begun"] = "ext4 5e7f0c1a-0000-4000-8000-00000000ffff\n"
    world.model.holds_bytes = 8 << 20
    refused(world.mount("--mkfs", "ext4"), "8388608 bytes of something", "nothing was written")
    assert not any(command[0].startswith(("mkfs", "blkdiscard")) for command in world.model.commands)


def test_a_note_of_a_mkfs_is_no_leave_to_make_over_a_whole_file_system(world: World) -> None:
    world.model.files[STATE / "mkfs-begun"] = f"ext4 {IDENTITY}\n"
    world.model.disk, world.model.holds_bytes = {"TYPE": "ext4", "USAGE": "filesystem"}, 1 << 30
    assert world.mount("--mkfs", "ext4").code == 0
    assert STATE / "mkfs-begun" not in world.model.files


def test_a_file_system_that_is_there_is_mounted_as_it_is(world: World) -> None:
    world.model.disk, world.model.holds_bytes = {"TYPE": "btrfs", "USAGE": "filesystem"}, 1 << 30
    assert world.mount().code == 0


def test_a_daemon_that_cannot_start_is_quoted(world: World) -> None:
    world.model.service("s3block@vm1.service").broken = "volume vm1 is in use by host2"
    said = world.mount("--mkfs", "ext4")
    assert said.code == ExitCode.REFUSED
    assert "volume vm1 is in use by host2" in said.err
    world.model.service("s3block@vm1.service").broken = ""
    assert world.mount("--mkfs", "ext4").code == 0


# --- back, when something is in the way ------------------------------------------------------------------------------


def test_umount_of_a_directory_in_use_stops_nothing(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.changes.clear()
    world.model.busy = True
    refused(world("umount", "vm1"), "target is busy", "fuser -vm /srv/data", "nothing else was stopped")
    assert world.model.changes == []


def test_umount_while_others_are_logged_in_stops_nothing(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.changes.clear()
    world.model.files[Path("/etc/iscsi/initiatorname.iscsi")] = "## x\nInitiatorName=iqn.1993-08.org.debian:me\n"
    world.model.sessions = ["iqn.1993-08.org.debian:me"]
    assert world("umount", "vm1", "--dry-run").code == 0
    world.model.sessions.append("iqn.2024-01.org.example:other")
    refused(world("umount", "vm1"), "in use by iqn.2024-01.org.example:other")
    assert world.model.changes == []


def test_umount_without_a_store_says_what_is_only_here_and_goes_on_later(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.store_away = True
    said = world("umount", "vm1")
    assert said.code == ExitCode.UNAVAILABLE
    assert f"the bucket may lack what the journal in {STATE} holds" in said.err
    assert world.model.service("s3block@vm1.service").enabled, "the next boot carries it"
    assert world("umount", "vm1").code == ExitCode.UNAVAILABLE
    world.model.store_away = False
    assert world("umount", "vm1").code == 0
    assert not world.model.service("s3block@vm1.service").enabled


def test_umount_leaves_the_journal_where_it_is_told_to(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.store_away = True
    assert world("umount", "vm1", "--leave-journal").code == 0
    assert not world.model.service("s3block@vm1.service").enabled


# --- the session -----------------------------------------------------------------------------------------------------


def test_login_keeps_secrets_off_the_command_line(world: World) -> None:
    world.mount("--mkfs", "ext4")
    folder = world.config.parent
    for name in ("vm1.chap", "vm1.chap-mutual"):
        (folder / name).write_text(world.model.files[folder / name])
        (folder / name).chmod(0o600)
    world.model.device = None
    said = world("initiator", "login", "vm1")
    assert (said.code, said.out) == (0, f"{DEVICE}\n"), said.err
    (record,) = (path for path in world.model.files if "nodes" in path.parts)
    assert world.model.modes[record] == 0o600
    kept = dict(line.split(" = ") for line in world.model.files[record].splitlines() if " = " in line)
    secrets = [world.model.files[folder / name].strip() for name in ("vm1.chap", "vm1.chap-mutual")]
    assert [kept["node.session.auth.password"], kept["node.session.auth.password_in"]] == secrets
    assert (kept["node.startup"], kept["node.session.timeo.replacement_timeout"]) == ("manual", "-1")
    assert not any(secret in word for words in world.model.commands for word in words for secret in secrets)
    assert world.model.timeouts == {Path(DEVICE): initiator.COMMAND_TIMEOUT_S}


def test_logout_is_refused_under_a_mount_and_idle_twice(world: World) -> None:
    world.mount("--mkfs", "ext4")
    refused(world("initiator", "logout", "vm1"), "is in use on this host")
    world.model.mounts = []
    assert world("initiator", "logout", "vm1").out == "this host is logged out of volume vm1\n"
    assert "was not logged in" in world("initiator", "logout", "vm1").err


def test_logout_waits_for_services_that_still_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the host goes down: one that uses the mount and is not ordered after it."""
    world.mount("--mkfs", "ext4")
    world.model.busy = True
    refused(world("initiator", "logout", "vm1", "--wait", "20s"), "is in use on this host")
    assert world.model.clock >= 20

    def sleep(seconds: float) -> None:
        world.model.clock += seconds
        world.model.busy = world.model.clock < 60

    monkeypatch.setattr(world.model, "sleep", sleep)
    world.model.commands.clear()
    assert world("initiator", "logout", "vm1", "--wait", "90s").out == "this host is logged out of volume vm1\n"
    assert 60 <= world.model.clock < 80
    programs = [" ".join(command) for command in world.model.commands]
    ended = next(at for at, program in enumerate(programs) if "--logout" in program)
    assert programs[:2] == ["sync -f /srv/data", "systemctl stop --no-block srv-data.mount"]
    assert ended > programs.index("sync -f /srv/data")
    assert not world.model.mounts


def test_login_waits_for_the_daemon_as_long_as_it_is_told(world: World) -> None:
    world.mount("--mkfs", "ext4")
    world.model.store_away = True
    said = world("initiator", "login", "vm1", "--wait", "90s")
    assert said.code == ExitCode.REFUSED
    assert "volume vm1 is attaching" in said.err
    assert world.model.clock >= 90


def test_a_unit_is_read_back_as_it_was_written() -> None:
    for directory in ("/srv/data", "/srv/my data/100%", "/srv/a-b/.c"):
        made = units.MountUnit("vm1", Path(DEVICE), directory, "noatime,discard")
        assert units.parse(made.text()) == made
    assert units.parse("[Mount]\nWhere=/x\n") is None
