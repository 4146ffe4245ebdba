"""A page, run from its first block to its last, and what is wrong with it.

Also by hand, to see what a page prints while it is written:

    python -m tests.tutorials docs/tutorials/disk.md
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.architecture.tree import ROOT
from tests.servers.radosgw import Radosgw
from tests.tutorials.page import Block, missing, parse
from tests.tutorials.premises import Premises, local, on_radosgw
from tests.tutorials.session import run

LIMIT_S: Final = 540.0
"""Of a page. A newcomer has ten minutes; a loaded machine needs them too."""


@dataclass(frozen=True, slots=True)
class Played:
    problem: str
    """Empty: the page does what it says."""
    story: str
    """The blocks that were begun, what each printed, and what stood for what."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def play(path: Path, directory: Path, server: Callable[[], Radosgw]) -> Played:
    """Run `path` in `directory`, which is made. `server` is asked for where the page has buckets."""
    text = path.read_text(encoding="utf-8")
    page = parse(text)
    premises = on_radosgw(page, text, server()) if page.buckets else local(text)
    blocks = [Block(block.language, block.line, premises.here(block.text)) for block in page.run]
    outcome = run(path.name, blocks, directory, environment=premises.environment, limit_s=LIMIT_S)
    outputs = [premises.said(output) for output in outcome.outputs]
    played = list(zip(page.run, outputs, strict=False))
    story = "".join(_told(path, played, premises))
    if outcome.status is None:
        return Played(f"{_place(path, played[-1][0])} was not done in time", story)
    if outcome.status != 0:
        return Played(f"{_place(path, played[-1][0])} ended with {outcome.status}", story)
    wrong = [
        f"{_place(path, block)} did not print {lost!r}"
        for block, output in played
        for lost in missing(output, block.lines, block.parts)
    ]
    wrong += [f"{name_of(path)} leaves running: {command}" for command in outcome.left]
    return Played("\n".join(wrong), story)


def _told(path: Path, played: list[tuple[Block, str]], premises: Premises) -> Iterator[str]:
    for block, output in played:
        yield f"--- {_place(path, block)}\n{block.text}>>>\n{output}"
    yield "--- here\n"
    for said, real in premises.table.items():
        yield f"{said} is {real}\n"


def _place(path: Path, block: Block) -> str:
    return f"{name_of(path)}:{block.line}"


@contextmanager
def own_server(directory: Path) -> Iterator[Callable[[], Radosgw]]:
    """A server that is started when it is first asked for."""
    started: list[Radosgw] = []

    def server() -> Radosgw:
        if not started:
            directory.mkdir()
            started.append(Radosgw(directory))
        return started[0]

    try:
        yield server
    finally:
        for one in started:
            one.stop()
