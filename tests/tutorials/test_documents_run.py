"""README, tutorials and runbook do what they say: each block is run, or says why not and is listed here as skipped."""

import re
import shutil
from pathlib import Path

import pytest

from tests.architecture.tree import kept_files
from tests.servers.radosgw import Radosgw, missing_binaries
from tests.tutorials.page import OUTPUT, SHELL, Block, Page, parse
from tests.tutorials.play import LIMIT_S, name_of, play

STRICT = ("README.md", "docs/tutorials/")
"""Where every block has a language, and a block of commands is `sh`."""
RUN = STRICT  # the runbook needs a world for each symptom: tests/runbook plays it
LANGUAGES = {SHELL, OUTPUT, "toml", "json", "ini", "yaml", "xml"}
INITIATORS = {"qemu-img", "qemu-io", "iscsi-ls", "iscsi-inq"}
OURS = re.compile(r"^\s*(\$ |# )?(s3block|bucketworks|cowsync|s3integrity|s3-envctl|pve-s3|make) ", re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pages(places: tuple[str, ...]) -> list[Path]:
    return [path for path in kept_files() if path.suffix == ".md" and name_of(path).startswith(places)]


def radosgw_of(request: pytest.FixtureRequest) -> Radosgw:
    server: Radosgw = request.getfixturevalue("radosgw")
    return server


def marks(page: Page) -> list[pytest.MarkDecorator]:
    chosen = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 120)]
    if page.buckets:
        chosen.append(pytest.mark.rgw)
    if INITIATORS & set(page.needs):
        chosen.append(pytest.mark.initiator)
    return chosen


PAGES = {path: parse(text_of(path)) for path in pages(RUN)}
TO_RUN = [pytest.param(path, id=name_of(path), marks=marks(page)) for path, page in PAGES.items() if page.run]
LEFT_OUT = [
    pytest.param(path, block, id=f"{name_of(path)}:{block.line}")
    for path, page in PAGES.items()
    for block in page.left_out
]


@pytest.mark.parametrize("path", TO_RUN)
def test_a_page_does_what_it_says(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = PAGES[path]
    absent = [program for program in page.needs if shutil.which(program) is None]
    if page.buckets:
        absent += missing_binaries()
    if absent:
        pytest.skip(f"needs {', '.join(absent)}; the packages are in the Makefile's TEST_PACKAGES")
    played = play(path, tmp_path / "run", lambda: radosgw_of(request))
    assert not played.problem, f"{played.problem}\n{played.story}"


@pytest.mark.parametrize(("path", "block"), LEFT_OUT)
def test_what_is_not_run_says_why(path: Path, block: Block) -> None:
    pytest.skip(f"{name_of(path)}:{block.line} is not run: {block.not_run}")


@pytest.mark.parametrize("path", pages(STRICT), ids=name_of)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    page = PAGES[path]
    unknown = [
        f"{block.line}: {block.language or 'no language'}" for block in page.blocks if block.language not in LANGUAGES
    ]
    assert unknown == [], f"commands are `sh`, what they print is `text`; known are {sorted(LANGUAGES)}"
    # A command that hides in another block would be neither run nor left out with a reason.
    hidden = [block.line for block in page.blocks if block.language != SHELL and OURS.search(block.text)]
    assert hidden == []


@pytest.mark.parametrize("path", pages(STRICT), ids=name_of)
def test_a_page_without_anything_to_run_says_why(path: Path) -> None:
    page = PAGES[path]
    assert page.run or page.nothing_to_run or name_of(path) == "docs/tutorials/README.md"
