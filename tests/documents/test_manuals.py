"""Manual pages: one for every command, in roff that readers of manuals take without a word, the same bytes each time."""

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_tree import Command, programs, unused_kinds
from manual_pages import ENVIRONMENT, PVE_ENVIRONMENT, page_name, prose, roff

from s3core.exit_codes import ExitCode, shown_name
from s3core.settings_table import settings_table
from tests.architecture.tree import ROOT, sources
from tests.documents.manuals import write_manuals

TREE = programs()
COMMANDS = [one for top in TREE for one in top.walk()]
mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc (Debian: mandoc)")
groff = pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff (Debian: groff-base)")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rendered(*pages: Path) -> str:
    """As a terminal shows it, without bold and underlining, each run of blanks one space."""
    words = ["mandoc", "-T", "utf8", "-O", "width=400", *map(str, pages)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return " ".join(re.sub(".\b", "", done.stdout).split())


def test_every_command_has_a_page(share: Path) -> None:
    written = {path.name for path in (share / "man/man1").iterdir()}
    assert written == {f"{page_name(one.path)}.1" for one in COMMANDS}
    assert len(COMMANDS) > 200
    assert (share / "man/man5/bucketworks.toml.5").stat().st_size > 10_000
    assert (share / "man/man7/bucketworks.7").stat().st_size > 3_000


def test_the_same_tree_makes_the_same_bytes(share: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[endpoint.secret-name]\nurl = "http://127.0.0.1:1"\n', encoding="utf-8")
    other = {
        "PYTHONHASHSEED": "7",
        "COLUMNS": "44",
        "HOME": str(tmp_path),
        "BUCKETWORKS_CONFIG": str(tmp_path / "config.toml"),
        "LC_ALL": "C",
        "TZ": "Pacific/Kiritimati",
    }
    assert files(write_manuals(tmp_path / "again", other)) == files(share)


def test_pages_can_be_compressed(share: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "deploy/manuals.py"), "--gzip", "--output", str(tmp_path)]
    subprocess.run(
        words, check=True, capture_output=True, env={"SOURCE_DATE_EPOCH": "1767225600", "PATH": "/usr/bin:/bin"}
    )
    packed = (tmp_path / "man/man1/s3block-serve.1.gz").read_bytes()
    assert gzip.decompress(packed) == (share / "man/man1/s3block-serve.1").read_bytes()
    assert packed[3:8] == bytes(5), "no name and no time in it"


@mandoc
def test_mandoc_finds_nothing_to_warn_of(share: Path) -> None:
    pages = sorted(map(str, (share / "man").glob("man*/*")))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""


@groff
def test_groff_finds_nothing_to_warn_of(share: Path) -> None:
    pages = sorted(map(str, (share / "man").glob("man*/*")))
    words = ["groff", "-man", "-Tutf8", "-ww", "-z", *pages]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@mandoc
@pytest.mark.parametrize("top", TREE, ids=lambda top: top.path)
def test_a_page_shows_every_option_and_argument(top: Command, share: Path) -> None:
    for one in top.walk():
        shown = rendered(share / f"man/man1/{page_name(one.path)}.1")
        for parameter in (*one.arguments, *one.options):
            for flag in parameter.flags or (parameter.value,):
                assert f"{flag} {parameter.value}".strip() in shown or (not parameter.flags and flag in shown), one.path
            assert " ".join(parameter.help.replace("`", "").split())[1:].rstrip(".") in shown, one.path
        assert " ".join(one.help.replace("`", "").split()) in shown
        for code in ExitCode:
            assert f"{code.value} {shown_name(code)}" in shown


@mandoc
def test_the_configuration_page_shows_every_setting(share: Path) -> None:
    shown = rendered(share / "man/man5/bucketworks.toml.5")
    for row in settings_table():
        assert f"{row.name} ({row.type.replace('`', '')}" in shown
        assert row.reason.replace("`", "")[1:].rstrip(".") in shown


def test_pages_that_are_named_exist(share: Path) -> None:
    written = {path.name for path in (share / "man").glob("man*/*")}
    for page in (share / "man").glob("man*/*"):
        named = re.findall(r"^\.BR (\S+) \((\d)\)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert named
        assert [name for name, section in named if f"{name.replace(chr(92), '')}.{section}" not in written] == [], page


NASTY = (
    ".SH NAME",
    "'br",
    r"\fBbold\fP \*(xx \n(.g \(em",
    "a - b -- c --no-such 'quoted' \"twice\" `code` x^y ~z",
    "tabs\tand more",
    "ünïcödé → 日本",
    "...",
    r"C:\new\table",
    ".",
)


@mandoc
@pytest.mark.parametrize("text", NASTY)
def test_text_of_others_stays_text(text: str, tmp_path: Path) -> None:
    page = tmp_path / "x.1"
    lines = ['.TH X 1 "2026-01-01" "x" "x"', ".SH NAME", r"x \- y", ".SH DESCRIPTION"]
    plain = text.replace("`", "")
    page.write_text(
        "\n".join([*lines, *prose(text), ".PP", f"a {roff(text)}", ".PP", *prose(f"{'word ' * 14}{text}")]) + "\n"
    )
    shown = rendered(page)
    assert shown.count(" ".join(plain.split())) >= 2
    assert " ".join(text.split()) in shown, "as it is, where backticks mark nothing"


def test_every_variable_that_is_read_is_told() -> None:
    told = " ".join((*ENVIRONMENT, *PVE_ENVIRONMENT))
    read = {
        name
        for path in sources()
        for name in re.findall(r'"((?:BUCKETWORKS|PVE_S3)_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert {"BUCKETWORKS_CONFIG", "BUCKETWORKS_DEBUG"} <= read
    assert [name for name in sorted(read) if name not in told] == []


def test_no_row_about_values_is_out_of_date() -> None:
    assert unused_kinds(TREE) == []
