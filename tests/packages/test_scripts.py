"""What runs before any module of ours: the launcher of the commands, and the maintainer scripts."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

DEBIAN = ROOT / "deploy/debian"
SCRIPTS = sorted(one for one in DEBIAN.glob("*/p*") if one.name in ("preinst", "postinst", "prerm", "postrm"))


@pytest.fixture
def module_folders() -> Callable[[Path, tuple[int, int]], list[str]]:
    found: Callable[[Path, tuple[int, int]], list[str]] = runpy.run_path(str(DEBIAN / "start.py"))["module_folders"]
    return found


def _shipped(home: Path) -> Path:
    for name in ("python3", "python3.11", "python3.13"):
        (home / "shipped" / name).mkdir(parents=True)
    (home / "shipped/BUILD").write_text("1-abc\n")
    return home


def test_modules_are_those_of_the_build_that_postinst_made(
    tmp_path: Path, module_folders: Callable[[Path, tuple[int, int]], list[str]]
) -> None:
    home = _shipped(tmp_path)
    assert module_folders(home, (3, 13)) == [f"{home}/shipped/python3.13", f"{home}/shipped/python3"]
    (home / "builds").mkdir()
    (home / "shipped").rename(home / "builds/1-abc")
    (home / "shipped").mkdir()
    (home / "shipped/BUILD").write_text("1-abc\n")
    assert module_folders(home, (3, 11)) == [f"{home}/builds/1-abc/python3.11", f"{home}/builds/1-abc/python3"]


def test_a_python_without_modules_is_named(
    tmp_path: Path, module_folders: Callable[[Path, tuple[int, int]], list[str]]
) -> None:
    with pytest.raises(LookupError, match=r"no modules for Python 3\.12; it has them for 3\.11, 3\.13"):
        module_folders(_shipped(tmp_path), (3, 12))


@pytest.mark.parametrize("script", [*SCRIPTS, DEBIAN / "builds.sh"], ids=lambda one: f"{one.parent.name}-{one.name}")
def test_maintainer_scripts_are_shell(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    for word in ("@INSTALLABLE_UNITS@", "@STOPPED_UNITS@", "@TEMPLATES@"):
        text = text.replace(word, "a.service b.service")
    assert script.name == "builds.sh" or "\nset -e\n" in text
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = _shipped(tmp_path / "home")
    (home / "shipped/python3/one.py").write_text("ONE = 1\n")
    return home


def _builds(home: Path, *words: str) -> str:
    script = f'set -e\nhome="{home}"\n. {DEBIAN}/builds.sh\n' + "\n".join(words)
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_build_that_was_cut_off_is_made_anew(home: Path) -> None:
    """dpkg was killed between the copy and its rename, or in the middle of the copy."""
    (home / "builds/.new/python3").mkdir(parents=True)
    (home / "builds/.new/python3/half.py").write_text("HALF")
    _builds(home, "make_build")
    assert [one.name for one in (home / "builds").iterdir()] == ["1-abc"]
    assert [one.name for one in (home / "builds/1-abc/python3").iterdir()] == ["one.py"]
    assert (home / "builds/1-abc/python3/one.py").samefile(home / "shipped/python3/one.py")


def test_an_upgrade_leaves_the_build_of_a_process_and_sweeps_the_others(home: Path) -> None:
    _builds(home, "make_build")
    for version in ("2-def", "3-fed"):
        (home / "shipped/python3/one.py").unlink()  # as dpkg does: another file takes the name
        (home / "shipped/python3/one.py").write_text(f"ONE = '{version}'\n")
        (home / "shipped/BUILD").write_text(f"{version}\n")
        _builds(home, "make_build")
    mapped = home / "builds/1-abc/python3/one.py"
    holder = subprocess.Popen(
        [
            "python3",
            "-c",
            f"import mmap; f = open({str(mapped)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ);"
            " print('up', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        assert _builds(home, f"processes_of {home}/builds").split() == [str(holder.pid)]
        _builds(home, "sweep_builds")
        assert sorted(one.name for one in (home / "builds").iterdir()) == ["1-abc", "3-fed"]
        assert mapped.read_text() == "ONE = 1\n"
    finally:
        holder.communicate("\n", timeout=60)
    _builds(home, "sweep_builds")
    assert [one.name for one in (home / "builds").iterdir()] == ["3-fed"]
