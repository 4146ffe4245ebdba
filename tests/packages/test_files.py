"""The packages as files: the same bytes from the same tree, nothing that does not belong there, and what Debian's own checker
says."""

import gzip
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.packages.built import AGENT, NODE, SUITE, built, make_packages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = (SUITE, NODE, AGENT)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unpacked, with DEBIAN/."""
    folder = tmp_path_factory.mktemp("trees")
    for name, package in built().items():
        subprocess.run(["dpkg-deb", "-R", str(package), str(folder / name)], check=True)
    return {name: folder / name for name in built()}


def _files(tree: Path) -> set[str]:
    return {
        str(one.relative_to(tree))
        for one in tree.rglob("*")
        if (one.is_file() or one.is_symlink()) and "DEBIAN" not in one.relative_to(tree).parts
    }


def test_the_same_tree_makes_the_same_bytes(tmp_path: Path) -> None:
    again = make_packages(tmp_path)
    assert sorted(again) == sorted(NAMES)
    for name, package in built().items():
        assert hashlib.sha256(again[name].read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest(), name


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_roots_and_nothing_is_built_here(name: str) -> None:
    listing = subprocess.run(["dpkg-deb", "-c", str(built()[name])], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=5) for line in listing.splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    assert {row[0] for row in rows} <= {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}
    names = [row[5] for row in rows]
    assert not [one for one in names if "__pycache__" in one or one.startswith(("./usr/local", "./etc", "./var"))]
    plain = [one for one in names if " -> " not in one]  # links come after all others
    assert plain == sorted(plain, key=lambda one: one.rstrip("/").split("/"))


@pytest.mark.parametrize("name", NAMES)
def test_its_sums_are_right(name: str, trees: dict[str, Path]) -> None:
    tree = trees[name]
    done = subprocess.run(
        ["md5sum", "--quiet", "-c", "DEBIAN/md5sums"], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    for script in ("control", "postinst", "prerm", "postrm"):
        text = (tree / "DEBIAN" / script).read_text()
        assert not re.search(r"@[A-Z_]+@", text), script
        if text.startswith("#!"):
            subprocess.run(["sh", "-n", str(tree / "DEBIAN" / script)], check=True)
    listed = len((tree / "DEBIAN/md5sums").read_text().splitlines())
    assert listed == len([one for one in _files(tree) if not (tree / one).is_symlink()])


def test_no_file_is_in_two_packages(trees: dict[str, Path]) -> None:
    assert not _files(trees[SUITE]) & (_files(trees[NODE]) | _files(trees[AGENT]))
    assert not _files(trees[NODE]) & _files(trees[AGENT])


def test_every_unit_and_command_of_the_tree_is_in_a_package(trees: dict[str, Path]) -> None:
    there = {one.name for one in (ROOT / "deploy/systemd").iterdir() if one.is_file()}
    packed = {
        Path(one).name for name in (SUITE, NODE) for one in _files(trees[name]) if one.startswith("usr/lib/systemd/")
    }
    assert packed == there
    assert {"bucketworks-pve.service", "bucketworks-disk@.service"} <= {Path(one).name for one in _files(trees[NODE])}
    commands = {one for one in _files(trees[SUITE]) if one.startswith("usr/bin/")}
    assert len(commands) == 9
    assert _files(trees[AGENT]) >= {"usr/bin/envctl-agent", "usr/lib/envctl/envctl-agent.pyz"}


@pytest.mark.parametrize("name", [SUITE, NODE])
def test_a_unit_starts_what_its_package_brings(name: str, trees: dict[str, Path]) -> None:
    commands = {one.removeprefix("usr/bin/") for one in _files(trees[SUITE]) if one.startswith("usr/bin/")}
    started = set()
    for unit in sorted((trees[name] / "usr/lib/systemd/system").iterdir()):
        for program in re.findall(r"^Exec\w+=[-+!@:]*(\S+)", unit.read_text(), re.MULTILINE):
            if program not in ("kill", "/bin/kill"):
                assert Path(program).name in commands, f"{unit.name}: {program}"
                started.add(Path(program).name)
    assert started


def test_the_agents_units_start_the_packages_file_and_only_where_a_console_made_the_machine(
    trees: dict[str, Path],
) -> None:
    units = trees[AGENT] / "usr/lib/systemd/system"
    for unit in sorted(units.glob("envctl-*")):
        text = unit.read_text()
        assert "/usr/local" not in text
        assert "ExecCondition=/bin/sh" in text or "ConditionPathExists=/var/lib/envctl-agent/identity.json" in text
    assert "/usr/lib/envctl/envctl-agent.pyz restore" in (units / "envctl-restore.service").read_text()


def test_contributions_of_our_packages_to_each_other_are_found(trees: dict[str, Path]) -> None:
    """Commands and `project.entry-points` alike: `importlib.metadata` reads them from here."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (points,) = (trees[SUITE] / "usr/lib/bucketworks/shipped/python3").glob("bucketworks-*.dist-info/entry_points.txt")
    text = points.read_text()
    for group, places in {"console_scripts": project["scripts"], **project.get("entry-points", {})}.items():
        assert f"[{group}]" in text
        for name, place in places.items():
            assert f"\n{name} = {place}\n" in text


def test_manuals_and_completions_are_there(trees: dict[str, Path]) -> None:
    files = _files(trees[SUITE])
    for command in ("bucketworks", "s3block", "cowsync", "s3integrity", "s3-envctl", "pve-s3"):
        page = f"usr/share/man/man1/{command}.1.gz"
        assert page in files
        assert b".TH" in gzip.decompress((trees[SUITE] / page).read_bytes())
        assert any(one.startswith("usr/share/bash-completion/completions/") and command in one for one in files)


@pytest.mark.parametrize("name", NAMES)
def test_debians_own_checker_finds_no_error(name: str) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian (Debian: lintian)")
    done = subprocess.run(
        ["lintian", "--allow-root", "--no-cfg", "--fail-on", "error", "--tag-display-limit", "0", str(built()[name])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
