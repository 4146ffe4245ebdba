"""A page of the runbook as symptoms: each with its seven lead-ins, and under each the blocks that somebody types.

Pure: text in, values out. Blocks are fenced as everywhere in the documents (docs/hacking.md), and of two more words:

    <!-- ends with: 7 -->     after a block: the exit status of its last command, where it is not 0
    <!-- mark: NAME -->       right before a block: the name by which a test asks for it
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.architecture.tree import ROOT

SHAPE: Final = (
    "What you see.",
    "What it means.",
    "Is data at risk?",
    "Check.",
    "Act.",
    "Confirm.",
    "Then.",
)
"""Of every symptom, in this order."""
_LEAD: Final = re.compile(rf"^\*\*({'|'.join(re.escape(words) for words in SHAPE)})\*\*", re.MULTILINE)
_FENCE: Final = re.compile(r"^```(\S*)")
_COMMENT: Final = re.compile(r"^<!--\s*([\w ]+?)\s*:\s*(.*?)\s*-->$")


@dataclass(slots=True)
class Block:
    """Commands that are typed together. `line` is that of the fence, counted from 1 within the document."""

    line: int
    text: str
    mark: str = ""
    not_run: str = ""
    code: int = 0
    printed: list[str] = field(default_factory=list)
    """What its output has, in any order; … stands for anything within a line."""


@dataclass(slots=True)
class Symptom:
    """`heading` is empty for a page that is one symptom; `parts` has the text of each lead-in, by its words."""

    page: Path
    heading: str
    leads: list[str]
    parts: dict[str, str]
    blocks: dict[str, list[Block]]

    @property
    def name(self) -> str:
        return f"{self.page.name}{': ' if self.heading else ''}{self.heading}"


def symptoms(page: Path) -> list[Symptom]:
    """A page with lead-ins before its first `##` heading is one symptom. Else each `##` section with a lead-in is one."""
    text = page.read_text(encoding="utf-8")
    sections = list(_sections(text))
    if _LEAD.search(sections[0][2]):
        return [_symptom(page, "", 0, text)]
    return [_symptom(page, heading, line, body) for heading, line, body in sections if _LEAD.search(body)]


def unshaped(page: Path) -> list[str]:
    """Headings of `##` sections without any lead-in, of a page whose sections are its symptoms."""
    sections = list(_sections(page.read_text(encoding="utf-8")))
    if _LEAD.search(sections[0][2]):
        return []
    return [heading for heading, _, body in sections[1:] if not _LEAD.search(body)]


def blocks(text: str, line: int = 0) -> list[Block]:
    """The `sh` blocks of a text that begins at that line of its document."""
    found: list[Block] = []
    reason, mark = "", ""
    lines = enumerate(text.splitlines(), start=line + 1)
    for number, one in lines:
        fence, comment = _FENCE.match(one), _COMMENT.match(one)
        if fence:
            content = _content(lines)
            if fence[1] == "sh":
                found.append(Block(number, content, mark, reason))
                reason, mark = "", ""
            elif fence[1] == "text" and found:
                found[-1].printed += [wanted for wanted in content.splitlines() if wanted.strip(" …")]
        elif comment and comment[1] == "not run":
            reason = comment[2]
        elif comment and comment[1] == "mark":
            mark = comment[2]
        elif comment and comment[1] == "expect":
            found[-1].printed.append(comment[2])
        elif comment and comment[1] == "ends with":
            found[-1].code = int(comment[2])
    return found


def marked(document: str, mark: str) -> Block:
    """The block of that name in a document of the repository."""
    found = [block for block in blocks((ROOT / document).read_text(encoding="utf-8")) if block.mark == mark]
    assert len(found) == 1, f"{document} has {len(found)} blocks called {mark!r}"
    return found[0]


def missing(output: str, wanted: list[str]) -> list[str]:
    """What should have been printed and was not. Any run of blanks is one."""
    printed = [" ".join(line.split()) for line in output.splitlines()]
    patterns = {one: ".*".join(re.escape(part) for part in " ".join(one.split()).split("…")) for one in wanted}
    return [one for one, pattern in patterns.items() if not any(re.search(pattern, line) for line in printed)]


def _sections(text: str) -> Iterator[tuple[str, int, str]]:
    """Heading, line of it, and text of each part between `##` headings; the first has no heading."""
    kept: list[str] = []
    heading, begin, fenced = "", 0, False
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            yield heading, begin, "\n".join(kept)
            heading, begin, kept = line[3:], number, []
        else:
            kept.append(line)
    yield heading, begin, "\n".join(kept)


def _symptom(page: Path, heading: str, begin: int, body: str) -> Symptom:
    found = list(_LEAD.finditer(body))
    parts, of = {}, {}
    for lead, after in zip(found, [*found[1:], None], strict=True):
        piece = body[lead.end() : after.start() if after else len(body)]
        parts[lead[1]] = piece
        of[lead[1]] = blocks(piece, begin + body[: lead.end()].count("\n"))
    return Symptom(page, heading, [lead[1] for lead in found], parts, of)


def _content(lines: Iterator[tuple[int, str]]) -> str:
    kept: list[str] = []
    for _, line in lines:
        if line.startswith("```"):
            break
        kept.append(line)
    return "".join(f"{line}\n" for line in kept)
