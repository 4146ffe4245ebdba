#!/usr/bin/env python3
"""Manual pages and shell completions of all commands, laid out as below /usr/share.

    man/man1/*.1, man/man5/bucketworks.toml.5, man/man7/bucketworks.7   (.gz with --gzip)
    bash-completion/completions/COMMAND, zsh/vendor-completions/_COMMAND, fish/vendor_completions.d/COMMAND.fish

One rule: the same tree makes the same bytes. The date is SOURCE_DATE_EPOCH (that of the last commit), and nothing of this
host, its configuration or its terminal goes in.

    deploy/manuals.py --output DIRECTORY [--gzip]
"""

import argparse
import gzip
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "deploy")]

from command_tree import Command, programs  # noqa: E402 - found by the line above
from completions import bash_completion, fish_completion, zsh_completion  # noqa: E402 - as above
from manual_pages import Issue, pages  # noqa: E402 - as above

FALLBACK_EPOCH = 1_767_225_600
"""2026-01-01, where neither the environment nor git knows when."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="the folder that stands for /usr/share; made if missing"
    )
    parser.add_argument("--gzip", action="store_true", help="compress the pages, as Debian wants them")
    options = parser.parse_args(arguments)
    written = write(options.output, compress=options.gzip)
    sys.stdout.write(f"{len(written)} files in {options.output}\n")
    return 0


def write(output: Path, *, compress: bool = False) -> list[Path]:
    """Write every file below `output`, over what is there. Returns them, sorted."""
    tree = programs()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    files = {**manuals(tree, Issue(str(version), epoch()), compress=compress), **completions(tree)}
    for name, data in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return sorted(output / name for name in files)


def manuals(tree: Sequence[Command], issue: Issue, *, compress: bool) -> dict[str, bytes]:
    """Every page by its place below /usr/share."""
    made = {}
    for name, text in pages(tree, issue).items():
        place, data = f"man/man{name.rpartition('.')[2]}/{name}", text.encode()
        made[f"{place}.gz" if compress else place] = gzip.compress(data, 9, mtime=0) if compress else data
    return made


def completions(tree: Sequence[Command]) -> dict[str, bytes]:
    """Three files for each program by their places below /usr/share."""
    made = {}
    for top in tree:
        made[f"bash-completion/completions/{top.path}"] = bash_completion(top).encode()
        made[f"zsh/vendor-completions/_{top.path}"] = zsh_completion(top).encode()
        made[f"fish/vendor_completions.d/{top.path}.fish"] = fish_completion(top).encode()
    return made


def epoch() -> int:
    """The date of every page, in Unix seconds."""
    if named := os.environ.get("SOURCE_DATE_EPOCH", ""):
        return int(named)
    words = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    try:
        return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return FALLBACK_EPOCH


if __name__ == "__main__":
    sys.exit(main())
