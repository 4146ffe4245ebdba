"""README, tutorials and runbook do what they say: each block is run, or says why not and is listed here as skipped."""

import re
import shutil
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT, kept_files
from tests.servers.radosgw import missing_binaries
from tests.tutorials.page import OUTPUT, SHELL, Block, Page, missing, parse
from tests.tutorials.premises import local, on_radosgw
from tests.tutorials.session import run

LIMIT_S = 540.0
"""Of a page. A newcomer has ten minutes; a loaded machine needs them too."""
SINGLE = ("README.md", "docs/integrity/quickstart.md")
STRICT = ("README.md", "docs/tutorials/")
"""Where every block has a language, and a block of commands is `sh`."""
RUN = (*STRICT, "docs/integrity/quickstart.md", "docs/runbook/")
LANGUAGES = {SHELL, OUTPUT, "toml", "json", "ini", "yaml", "xml"}
INITIATORS = {"qemu-img", "qemu-io", "iscsi-ls", "iscsi-inq"}
OURS = re.compile(r"^\s*(\$ |# )?(s3block|bucketworks|cowsync|s3integrity|s3-envctl|pve-s3|make) ", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pages(places: tuple[str, ...]) -> list[Path]:
    return [path for path in kept_files() if path.suffix == ".md" and name_of(path).startswith(places)]


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
    page, text = PAGES[path], text_of(path)
    absent = [program for program in page.needs if shutil.which(program) is None]
    if page.buckets:
        absent += missing_binaries()
    if absent:
        pytest.skip(f"needs {', '.join(absent)}; the packages are in the Makefile's TEST_PACKAGES")
    premises = on_radosgw(page, text, request.getfixturevalue("radosgw")) if page.buckets else local(text)
    blocks = [Block(block.language, block.line, premises.here(block.text)) for block in page.run]
    outcome = run(path.name, blocks, tmp_path / "run", environment=premises.environment, limit_s=LIMIT_S)
    outputs = [premises.said(output) for output in outcome.outputs]
    story = "\n".join(
        f"--- {name_of(path)}:{block.line}\n{block.text}>>>\n{output}"
        for block, output in zip(page.run, outputs, strict=False)
    )
    where = f"{name_of(path)}:{page.run[max(len(outputs) - 1, 0)].line}"
    table = "\n".join(f"  {said} is {real}" for said, real in premises.table.items())
    end = "was not done in time" if outcome.status is None else f"ended with {outcome.status}"
    assert outcome.complete, f"the block at {where} {end}\n{story}\nhere:\n{table}"
    wrong = {
        f"{name_of(path)}:{block.line}": lost
        for block, output in zip(page.run, outputs, strict=True)
        if (lost := missing(output, block.lines, block.parts))
    }
    assert not wrong, f"not printed: {wrong}\n{story}\nhere:\n{table}"
    assert not outcome.left, f"{name_of(path)} leaves running: {outcome.left}\n{story}"


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
