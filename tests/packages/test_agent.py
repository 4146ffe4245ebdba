"""The agent's package in a clean Debian: it enrols, brings a home back and saves it, with a console of the protocol."""

import json
import re
import shlex

import pytest

from tests.envctl.agent.console import FakeConsole
from tests.packages.built import AGENT, OLD, built
from tests.packages.debian import Debian

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENABLED = {
    "multi-user.target.wants/envctl-restore.service",
    "multi-user.target.wants/envctl-final.service",
    "multi-user.target.wants/envctl-agent.service",
    "multi-user.target.wants/envctl-backup.timer",
    "systemd-user-sessions.service.requires/envctl-restore.service",
}


def test_install_use_upgrade_remove_purge(debian: Debian) -> None:
    before = debian.files()
    debian.install(built(OLD)[AGENT])
    system = debian.root / "etc/systemd/system"
    assert {str(one.relative_to(system)) for one in system.rglob("envctl-*") if one.is_symlink()} == ENABLED
    assert debian.run("envctl-agent", "version").strip()
    # No console has made this machine: the unit that would wait for a home, for ever, is passed over (systemd.service(5)).
    unit = (debian.root / "usr/lib/systemd/system/envctl-restore.service").read_text()
    (condition,) = re.findall(r"^ExecCondition=(.+)$", unit, re.MULTILINE)
    assert 1 <= debian.status(*shlex.split(condition)) <= 254
    assert "the agent has not run" in debian.run("envctl-agent", "status", status=75)

    home = debian.root / "home/ada"
    home.mkdir(parents=True)
    (home / "thesis.tex").write_text("one chapter")
    with FakeConsole() as console:
        (debian.root / "etc/envctl").mkdir()
        (debian.root / "etc/envctl/seed.json").write_text(json.dumps({"console": console.address, "token": "token"}))
        debian.run(*shlex.split(condition))
        debian.run("envctl-agent", "restore")
        debian.install(built()[AGENT])
        debian.run("envctl-agent", "backup", "--now")
        assert console.commits == 1
        assert json.loads(debian.run("envctl-agent", "status", "--json"))
        # Back to the older one, which reads what the newer one has kept.
        debian.install(built(OLD)[AGENT])
        (home / "thesis.tex").write_text("two chapters")
        debian.run("envctl-agent", "backup", "--now")
        assert console.commits == 2

    debian.run("dpkg", "--remove", AGENT)
    assert (debian.root / "var/lib/envctl-agent/identity.json").exists()
    assert not (debian.root / "usr/lib/envctl").exists()
    debian.run("dpkg", "--purge", AGENT)
    assert (home / "thesis.tex").read_text() == "two chapters"
    (home / "thesis.tex").unlink()
    home.rmdir()
    assert debian.files() == before
