"""The import contracts of pyproject.toml hold, and each of them would notice a breach."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

BREACHES = {
    "s3core/planted.py": ("import blockdev.units", "downwards"),
    "integrity/planted.py": ("import cowsync", "downwards"),
    "cowsync/planted.py": ("import blockdev.units", "downwards"),
    "blockdev/units.py": ("import blockdev.journal.format", "formats on units"),
    "blockdev/segments/planted.py": ("import blockdev.extents.format", "formats on units"),
    "blockdev/engine/planted.py": ("import blockdev.scsi.sense", "knows no door"),
    "blockdev/scsi/planted.py": ("import socket", "pure"),
    "blockdev/iscsi/planted.py": ("import asyncio", "pure"),
    "blockdev/journal/planted.py": ("import lmdb", "LMDB"),
    "s3core/s3_planted.py": ("import botocore.session", "boto3"),
    "envctl/planted.py": ("import blockdev.engine.front", "never their"),
}


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([*command, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)


def test_contracts_hold() -> None:
    outcome = lint(ROOT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the tree with every breach planted at once."""
    root = tmp_path_factory.mktemp("breached")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (statement, _) in BREACHES.items():
        with (root / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{statement}\n")
    outcome = lint(root)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_noticed(broken: str, name: str) -> None:
    statement, contract = BREACHES[name]
    module = name.removesuffix(".py").replace("/", ".")
    target = statement.split()[1]
    said = [line for line in broken.splitlines() if f"{module} -> {target.split('.')[0]}" in line]
    assert said, f"nothing said of {module} importing {target}"
    assert any(contract in line for line in broken.splitlines() if "BROKEN" in line or contract in line)


def test_the_portal_may_open_sockets(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    portal = tmp_path / "blockdev/iscsi/portal.py"
    with portal.open("a", encoding="utf-8") as file:
        file.write("\nimport asyncio\nimport socket\n")
    outcome = lint(tmp_path)
    assert outcome.returncode == 0, outcome.stdout
