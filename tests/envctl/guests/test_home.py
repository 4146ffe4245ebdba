"""The story of one home, in real machines under emulation. The tests follow each other; each begins where the last one ended.

created, files with every attribute written, saved
power cut in mid-backup: what was saved is what there is; the machine starts and goes on
shut down by its button alone: what was written in the last minute is saved
a copy of its disk is put aside; the machine is destroyed and rebuilt: the home is the same, with all attributes
the copy is started beside it: it may not save, and says so
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from envctl.database.models import Environment
from envctl.drivers.qemu.driver import QemuDriver
from envctl.drivers.qemu.folder import MachineFolder
from envctl.states import EnvironmentState, JobKind
from s3core.settings import EnvctlDriverSettings
from tests.envctl.guests.console import Console, wait_until
from tests.envctl.guests.inside import Inside
from tests.envctl.guests.manifest import LIST, WRITE
from tests.guest.envctl_image import LOGIN_USER

HOME = f"/home/{LOGIN_USER}"


@dataclass
class Story:
    site: Console
    environment: Environment
    reached: set[str] = field(default_factory=set)
    manifest: dict[str, Any] = field(default_factory=dict)

    def after(self, *steps: str) -> None:
        missing = set(steps) - self.reached
        if missing:
            pytest.skip(f"the story did not get as far as: {', '.join(sorted(missing))}")

    def inside(self) -> Inside:
        return self.site.inside(self.environment)


@pytest.fixture(scope="module")
def story(site: Console) -> Story:
    environment = site.make("dev")
    assert environment.state == EnvironmentState.READY, site.log(environment)
    return Story(site, environment)


def listed(inside: Inside) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inside.python(LIST, HOME))
    return found


def readable(manifest: dict[str, Any]) -> dict[str, Any]:
    """With names that a person can read, for a message that says what differs."""
    return {bytes.fromhex(name).decode(errors="backslashreplace"): row for name, row in manifest.items()}


def moment(inside: Inside, unit: str) -> int:
    """When it became active, in microseconds since the boot."""
    said = inside.run("systemctl", "show", "--value", "--property=ActiveEnterTimestampMonotonic", unit)
    return int(said)


def test_the_home_is_there_before_anybody_may_sign_in(story: Story) -> None:
    with story.inside() as inside:
        restored = moment(inside, "envctl-restore.service")
        allowed = moment(inside, "systemd-user-sessions.service")
        assert 0 < restored < allowed
        assert inside.finish("test", "-e", "/run/nologin").status == 1
        assert "loaded units listed" in inside.run("systemctl", "--failed", "--no-pager")
        assert "0 loaded" in inside.run("systemctl", "--failed", "--no-pager")


def test_files_are_saved_when_somebody_asks(story: Story) -> None:
    with story.inside() as inside:
        inside.python(WRITE, HOME)
        story.manifest = listed(inside)
        assert len(story.manifest) > 25
        snapshot = story.site.back_up(story.environment)
        assert snapshot.stats.files > 20
        assert (snapshot.kind, snapshot.generation) == ("asked", 1)
        said = inside.run("setpriv", "--reuid=user", "--regid=user", "--clear-groups", "envctl-agent", "status")
        assert story.environment.id in said
        assert f"snapshot {snapshot.number}" in said
    assert story.site.get(story.environment).last_backup_number == snapshot.number
    story.reached.add("saved")


def test_an_unchanged_home_is_one_heartbeat(story: Story) -> None:
    story.after("saved")
    before = story.site.newest(story.environment)
    packs = story.site.objects(story.environment)
    assert story.site.back_up(story.environment).number == before.number
    assert story.site.objects(story.environment) == packs


def test_a_power_cut_in_mid_backup_harms_nothing(story: Story) -> None:
    story.after("saved")
    site, environment = story.site, story.environment
    before = site.newest(environment)
    packs = site.objects(environment)
    with story.inside() as inside:
        # Many packs of what cannot be compressed, so that the cut comes between the first and the commit.
        inside.run("sh", "-c", f"head -c 80M /dev/urandom > {HOME}/large && sync")
        site.ask_backup(environment)
        wait_until(lambda: site.objects(environment) > packs, 600, "an upload of the backup that is cut off")
    site.call(site.driver.stop(site.machine(environment)))
    assert site.newest(environment).number == before.number, (
        "the backup was done too soon for this test to mean anything"
    )
    with site.context.database.write() as session:
        # As the reconciler finds it.
        row = session.get_one(Environment, environment.id)
        row.state, row.running = EnvironmentState.STOPPED, False
    site.do(environment, JobKind.START)
    with story.inside() as inside:
        found = listed(inside)
        assert readable({name: found.get(name) for name in story.manifest if name}) == readable(
            {name: row for name, row in story.manifest.items() if name}
        )
        inside.run("rm", f"{HOME}/large")
        inside.run("sh", "-c", f"echo after the cut > {HOME}/after && chown user: {HOME}/after")
    assert site.back_up(environment).number > before.number
    rows = site.context.homes.snapshots(environment.id)
    assert [row.number for row in rows] == sorted({row.number for row in rows})
    story.reached.add("cut")


def test_the_last_minute_is_saved_when_the_machine_is_shut_down(story: Story) -> None:
    story.after("cut")
    site, environment = story.site, story.environment
    before = site.newest(environment)
    with story.inside() as inside:
        inside.run(
            "sh", "-c", f"echo last words > {HOME}/last && chown user: {HOME}/last && touch -d @1234567890 {HOME}"
        )
        story.manifest = listed(inside)
    machine = site.machine(environment)
    task = site.call(site.driver.shutdown(machine, 600.0))
    wait_until(lambda: site.call(site.driver.task(task)).state != "running", 600, "the shutdown")
    assert site.call(site.driver.task(task)).state == "ok"
    newest = site.newest(environment)
    assert newest.number > before.number
    assert newest.kind == "final"
    last = site.context.homes.open_file(environment.id, newest.number, f"{HOME[1:]}/last".encode())
    assert b"".join(last.pieces) == b"last words\n"
    with site.context.database.write() as session:
        row = session.get_one(Environment, environment.id)
        row.state, row.running, row.stopped_at = EnvironmentState.STOPPED, False, site.context.now()
    # The machine's disk, for a stale clone.
    sockets = shutil.ignore_patterns("qmp", "vnc", "serial")
    shutil.copytree(MachineFolder(site.folder / "machines", machine).path, site.folder / "stale", ignore=sockets)
    story.reached.add("shut down")


def test_a_rebuilt_machine_has_the_same_home(story: Story) -> None:
    story.after("shut down")
    site, environment = story.site, story.environment
    old = site.machine(environment)
    after = site.do(environment, JobKind.RESET)
    assert after.state == EnvironmentState.READY
    assert after.generation == 2
    assert site.machine(environment) != old
    assert [found.machine for found in site.call(site.driver.inventory())] == [site.machine(environment)]
    with story.inside() as inside:
        assert readable(listed(inside)) == readable(story.manifest)
        restored, allowed = moment(inside, "envctl-restore.service"), moment(inside, "systemd-user-sessions.service")
        assert 0 < restored < allowed
    story.reached.add("rebuilt")


def test_a_stale_clone_is_fenced_out_and_says_so(story: Story) -> None:
    """Somebody starts a copy of the machine as it was before it was rebuilt, on another host."""
    story.after("rebuilt")
    site, environment = story.site, story.environment
    other = site.folder / "other"
    other.mkdir()
    (site.folder / "stale").rename(other / f"env-{environment.id}.1")
    settings = EnvctlDriverSettings(kind="qemu", state_dir=str(other), accelerator="tcg")
    stale = QemuDriver("other", settings)
    before = site.newest(environment)
    [found] = site.call(stale.inventory())
    try:
        folder = MachineFolder(other, found.machine)
        record = folder.read()
        assert record is not None
        assert record.generation == 1
        folder.write(replace(record, name="stale"))
        site.call(stale.start(found.machine))
        with Inside(site.call(stale.console(found.machine, "terminal")).path) as inside:
            inside.wait_until_up()
            inside.run("sh", "-c", f"echo from the past > {HOME}/stale")
            inside.wait_for("sh", "-c", "envctl-agent status | grep -q 'another one has this home'")
            assert "another machine has this home" in inside.run("envctl-agent", "backup", "--now")
            inside.wait_for("sh", "-c", "! systemctl is-active envctl-agent.service")
    finally:
        site.call(stale.destroy(found.machine))
    after = site.newest(environment)
    assert after.number == before.number
    assert after.generation == before.generation
    # The machine that has the home now is not disturbed.
    with story.inside() as inside:
        inside.run("sh", "-c", f"echo on we go > {HOME}/on")
    assert site.back_up(environment).generation == 2
