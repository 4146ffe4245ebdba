"""docs/features.md: what it names is there, and every promise has a test that is one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

PAGE = (ROOT / "docs/features.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in PAGE.partition("## Not built")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| promise"))
]
CODE = re.compile(r"`([^`]+)`")


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"))
        # One that inherits its tests: a suite that every store passes.
        or (isinstance(node, ast.ClassDef) and node.name.startswith("Test") and node.bases)
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_promise_is_somewhere_and_tested(row: list[str]) -> None:
    assert len(row) == 4
    _, where, page, tested = row
    assert CODE.findall(where)
    assert [name for name in CODE.findall(where) if not (ROOT / name).exists()] == []
    assert re.search(r"\]\([^)]+\.md(#[^)]*)?\)", page)
    assert CODE.findall(tested)
    for name in CODE.findall(tested):
        file, _, function = name.partition("::")
        assert re.fullmatch(r"tests/.+/test_\w+\.py", file)
        assert functions(ROOT / file), f"{file} holds no test"
        assert not function or function in functions(ROOT / file), name


def test_the_map_is_of_the_whole_suite() -> None:
    named = {name.split("/")[0] for row in ROWS for name in CODE.findall(row[1])}
    assert named >= set(PACKAGES)
    parts = {name.split("/")[1] for row in ROWS for name in CODE.findall(row[3])}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.rglob("test_*.py"))}
    # What guards the shape of the code, formats and parsers is behind many promises and in no row of its own.
    assert folders - parts <= {"formats", "fuzz"}, folders - parts


def test_what_is_not_built_has_a_reason() -> None:
    rows = [line for line in PAGE.partition("## Not built")[2].splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 8
    assert all(len(row.strip("| ").split(" | ")) == 2 for row in rows)
