#!/usr/bin/env python3
"""`make wheel`: dist/bucketworks-VERSION-py3-none-any.whl, for pip and pipx.

    deploy/release/make_wheel.py [--output DIRECTORY]

One rule: the same tree makes the same bytes. It is built from a copy that has the files of the repository, and the browser code
where it was fetched, and nothing else; times are SOURCE_DATE_EPOCH (that of the last commit), modes are 0644 and 0755.
"""

import argparse
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from locked import ROOT, ReleaseFailed, epoch

VENDOR = Path("envctl/web/static/vendor")
BUILD = "import sys\nfrom setuptools import build_meta\nprint(build_meta.build_wheel(sys.argv[1]))\n"
NEVER = frozenset({"__pycache__", "build", "dist", ".git", ".venv"})


def make(output: Path) -> Path:
    """The wheel, in place of one of the same name. ReleaseFailed with what the build printed."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        tree, made = Path(name) / "tree", Path(name) / "made"
        made.mkdir()
        copy(tree)
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(made)],
            cwd=tree,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(max(epoch(), 315_532_800)), "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o022,
            check=False,
        )
        if done.returncode:
            raise ReleaseFailed(
                f"the build ended with {done.returncode}:\n{done.stdout.decode(errors='replace')[-3000:]}"
            )
        (wheel,) = made.glob("*.whl")
        target = output / wheel.name
        shutil.copyfile(wheel, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
    return target


def copy(tree: Path) -> None:
    """What a wheel is made from, into a new directory."""
    for file in sorted(set(sources())):
        target = tree / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)
        target.chmod(0o755 if (ROOT / file).stat().st_mode & stat.S_IXUSR else 0o644)


def sources() -> Iterator[Path]:
    """Of the repository: what git has; of an unpacked archive of it: what is there. With both: fetched browser code."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode == 0:
        yield from (
            Path(name.decode()) for name in listed.stdout.split(b"\0") if name and (ROOT / name.decode()).is_file()
        )
    else:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        packages = [one.rstrip("*") for one in settings["tool"]["setuptools"]["packages"]["find"]["include"]]
        yield from map(Path, ("pyproject.toml", "README.md", "LICENSE"))
        for package in packages:
            yield from files_below(Path(package))
    yield from files_below(VENDOR)


def files_below(folder: Path) -> Iterator[Path]:
    for one in sorted((ROOT / folder).rglob("*")):
        relative = one.relative_to(ROOT)
        # What was fetched has folders of its own that are called so: htmx's is `dist`.
        if one.is_file() and (folder == VENDOR or not NEVER.intersection(relative.parts)):
            yield relative


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the wheel goes (dist)")
    output: Path = parser.parse_args(arguments).output
    if not (ROOT / VENDOR).is_dir():
        sys.stderr.write(
            "note: no browser code (`make assets`): the console of this wheel has no screens and terminals\n"
        )
    try:
        sys.stdout.write(f"{make(output)}\n")
    except ReleaseFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
