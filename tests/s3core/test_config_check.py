"""What `config check` finds, one fault at a time, and what it does not find in a file that is well."""

from pathlib import Path

import pytest

from s3core.config_check import examine, examine_online, exit_code_of_findings
from s3core.exit_codes import ExitCode
from s3core.findings import Finding
from s3core.settings import parse_config

DISK = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
ENDPOINT = '[endpoint.site]\npreset = "generic"\nurl = "https://s3.example.com"\ncredentials = "none"\n'


def found(text: str, directory: Path, mounts: str = DISK) -> list[tuple[str, str, str]]:
    return [
        (one.verdict, one.check, one.said)
        for one in examine(parse_config(text.replace("DIR", str(directory)), path=directory / "c.toml"), mounts=mounts)
    ]


WELL = f"""
{ENDPOINT}
[s3block]
state_dir = "DIR/state"
metrics_listen = "127.0.0.1:9260"
[volume.a]
url = "s3://site/disks/a"
[volume.b]
url = "s3://site/disks/b"
[mirror.m]
source = "s3://site/photos"
target = "s3://site/mirror"
state_dir = "DIR/m"
listen = "127.0.0.1:9261"
[ledger.l]
url = "s3://site/ledger"
covers = ["s3://site/disks"]
state_dir = "DIR/l"
listen = "127.0.0.1:9262"
"""


def test_nothing_is_found_where_all_is_well(tmp_path: Path) -> None:
    assert found(WELL, tmp_path) == []
    assert found("", tmp_path) == []
    beside = '[volume.c]\nurl = "s3://site/disks/a"\n[volume.d]\nurl = "s3://site/disks/a/"\n'
    assert found(WELL + beside, tmp_path) == [], "a bucket holds any number of volumes, each in a folder of its name"


@pytest.mark.parametrize(
    ("more", "verdict", "check", "said"),
    [
        ('[volume.c]\nurl = "s3://sit/c"\n', "fault", "volume.c.url", "there is no [endpoint.sit]"),
        ('[status]\npublish = "s3://other/x"\n', "fault", "status.publish", "there is no [endpoint.other]"),
        (
            '[mirror.n]\nsource = "s3://site/x"\ntarget = "s3://site/disks/a"\nstate_dir = "DIR/n"\n',
            "fault",
            "volume.a.url",
            "lies in the place of mirror.n.target",
        ),
        (
            '[volume.c]\nurl = "s3://site/disks"\nmetrics_listen = "127.0.0.1:9260"\n',
            "fault",
            "s3block.metrics_listen",
            "port 9260 is also that of volume.c.metrics_listen",
        ),
        ('[volume.c]\nurl = "s3://site/mirror/c"\n', "fault", "volume.c.url", "lies in the place of mirror.m.target"),
        (
            '[mirror.n]\nsource = "s3://site/x"\ntarget = "s3://site/mirror"\nstate_dir = "DIR/n"\n',
            "fault",
            "mirror.n.target",
            "is the place of mirror.m.target",
        ),
        (
            '[mirror.n]\nsource = "s3://site/x"\ntarget = "s3://site/x/y"\nstate_dir = "DIR/n"\n',
            "fault",
            "mirror.n.target",
            "and the source lie in each other",
        ),
        (
            '[pve]\nmetrics_listen = "0.0.0.0:9261"\nstate_dir = "DIR/p"\n',
            "fault",
            "pve.metrics_listen",
            "is also that of mirror.m",
        ),
        (
            '[pve]\nmetrics_listen = "[::]:9263"\nstate_dir = "DIR/p"\n',
            "warning",
            "pve.metrics_listen",
            "neither TLS nor a",
        ),
        ('[pve]\nstate_dir = "DIR/m"\n', "fault", "pve.state_dir", "is also that of mirror.m.state_dir"),
        ('[pve]\nstate_dir = "DIR/m/pve"\n', "fault", "pve.state_dir", "lies in DIR/m of mirror.m.state_dir"),
        (
            '[endpoint.spare]\nurl = "https://x.example"\ncredentials = "none"\n',
            "note",
            "endpoint.spare",
            "no table names",
        ),
        (
            '[endpoint.spare]\nurl = "http://x.example"\ncredentials = "none"\n',
            "warning",
            "endpoint.spare.url",
            "in clear",
        ),
        (
            '[endpoint.spare]\npreset = "aws"\ncredentials = "none"\nprices = {currency = "EUR"}\n',
            "warning",
            "endpoint.spare.prices",
            "currency is EUR",
        ),
        (
            '[endpoint.spare]\nurl = "https://x.example"\ncredentials = "file:DIR/key"\n',
            "fault",
            "endpoint.spare.credentials",
            "DIR/key is not there",
        ),
        (
            '[volume.c]\nurl = "s3://site/disks/c"\nchap_user = "u"\nchap_secret_file = "DIR/open"\n',
            "fault",
            "volume.c.chap_secret_file",
            "DIR/open holds a secret and has mode 0644",
        ),
        (
            '[volume.c]\nurl = "s3://site/disks/c"\nlisten = "10.0.0.1:3260"\n',
            "warning",
            "volume.c",
            "whoever reaches 10.0.0.1:3260 may write to it",
        ),
        ('[volume.c]\nurl = "s3://site/c"\n', "note", "volume.c", "none covers it"),
        (
            '[envctl.driver.p]\nurl = "https://p:8006"\nverify_tls = false\n[envctl]\nstate_dir = "DIR/e"\n',
            "warning",
            "envctl.driver.p",
            "verify_tls is off",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, more: str, verdict: str, check: str, said: str) -> None:
    (tmp_path / "open").write_text("secret of twelve\n")
    (tmp_path / "open").chmod(0o644)
    seen = found(WELL + more, tmp_path)
    said = said.replace("DIR", str(tmp_path))
    assert any((verdict, check) == one[:2] and said in one[2] for one in seen), seen
    faults = [one for one in seen if one[0] == "fault"]
    assert len(faults) == (verdict == "fault"), "one cause, one fault"


def test_a_secret_of_mode_0600_is_well(tmp_path: Path) -> None:
    (tmp_path / "key").touch(mode=0o600)
    assert (
        found(WELL + '[endpoint.k]\nurl = "https://x.example"\ncredentials = "file:DIR/key"\n', tmp_path)[0][0]
        == "note"
    )


def test_what_state_lies_on(tmp_path: Path) -> None:
    text = '[pve]\nstate_dir = "DIR/p"\n'
    memory = f"{DISK}30 22 0:40 / {tmp_path} rw - tmpfs tmpfs rw\n"
    ((verdict, check, said),) = found(text, tmp_path, memory)
    assert (verdict, check) == ("fault", "pve.state_dir")
    assert "is on tmpfs" in said
    distant = f"{DISK}30 22 0:40 / {tmp_path} rw - nfs4 server:/x rw\n"
    assert [one[0] for one in found(text, tmp_path, distant)] == ["warning"]
    elsewhere = f"{DISK}30 22 0:40 / {tmp_path}2 rw - tmpfs tmpfs rw\n"
    assert found(text, tmp_path, elsewhere) == []
    (tmp_path / "p").write_text("no directory")
    assert "is no directory" in found(text, tmp_path)[0][2]


def test_endpoints_are_asked_once_for_each_bucket(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def ask(name: str, bucket: str) -> list[Finding]:
        asked.append((name, bucket))
        return [Finding(name, "fault", "does not answer", code=ExitCode.UNAVAILABLE)] if bucket == "photos" else []

    more = '[endpoint.spare]\nurl = "https://x.example"\ncredentials = "none"\n'
    config = parse_config((WELL + more).replace("DIR", str(tmp_path)))
    findings = examine_online(config, ask)
    assert asked == [("site", bucket) for bucket in ("disks", "ledger", "mirror", "photos")] + [("spare", "")]
    assert exit_code_of_findings(findings) == ExitCode.UNAVAILABLE
    assert exit_code_of_findings([]) == ExitCode.OK
    assert exit_code_of_findings([Finding("x", "warning", "y")]) == ExitCode.FINDING
