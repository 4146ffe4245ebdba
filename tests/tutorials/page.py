"""A page of documentation as a list of fenced blocks: which of them are run, what each must print, and why one is left out.

Pure: text in, values out. What an author may write is in docs/hacking.md; in short, each on a line of its own:

    <!-- buckets: disks, copies versioned -->   buckets that are there before the first block, on a real S3 server
    <!-- needs: qemu-img, iscsi-ls -->          programs of others that the blocks call
    <!-- nothing to run: REASON -->             for a page without any block that is run
    <!-- not run: REASON -->                    right before a block: it is left out
    <!-- expect: TEXT -->                       after a block that is run: its output has TEXT in it
    ```text                                     after a block that is run: its output has these lines, in this order
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

VARIES: Final = "…"
"""Stands for whatever is there, within a line; a line of its own, for any lines."""
SHELL: Final = "sh"
OUTPUT: Final = "text"
_FENCE: Final = re.compile(r"^```(\S*)[^`]*$")
_COMMENT: Final = re.compile(r"^<!--\s*(.*?)\s*-->$")
_WORDS: Final = ("buckets", "needs", "nothing to run", "not run", "expect")


class Unreadable(ValueError):
    """A page breaks the rules of this format; the message begins with the line number."""


@dataclass(frozen=True, slots=True)
class Bucket:
    name: str
    versioned: bool = False


@dataclass(slots=True)
class Block:
    """One fenced block. `line` is that of its first line of content, counted from 1."""

    language: str
    line: int
    text: str
    not_run: str = ""
    lines: list[str] = field(default_factory=list)
    """What the output must have, in this order, of `text` blocks."""
    parts: list[str] = field(default_factory=list)
    """What the output must have anywhere, of `expect` comments."""

    @property
    def is_run(self) -> bool:
        return self.language == SHELL and not self.not_run


@dataclass(slots=True)
class Page:
    blocks: list[Block] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    nothing_to_run: str = ""

    @property
    def run(self) -> list[Block]:
        return [block for block in self.blocks if block.is_run]

    @property
    def left_out(self) -> list[Block]:
        return [block for block in self.blocks if block.not_run]


def parse(text: str) -> Page:
    """Unreadable for a fence that is not closed, a comment that is misspelt, or one that belongs to no block."""
    page = Page()
    last_shell: Block | None = None
    reason = ""
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening:
            block = Block(opening[1], number + 1, _content(lines, number), reason)
            page.blocks.append(block)
            if reason and block.language != SHELL:
                raise Unreadable(
                    f"{number}: `not run` stands before a block of {block.language or 'no language'}, not of sh"
                )
            if block.language == SHELL:
                last_shell = block
            elif block.language == OUTPUT and last_shell is not None:
                last_shell.lines += [wanted.strip() for wanted in block.text.splitlines() if wanted.strip()]
            reason = ""
            continue
        if reason and line.strip():
            raise Unreadable(f"{number}: `not run` must stand right before its block")
        comment = _COMMENT.match(line)
        word, _, rest = comment[1].partition(":") if comment else ("", "", "")
        word, rest = word.strip(), rest.strip()
        if word not in _WORDS:
            continue
        if not rest:
            raise Unreadable(f"{number}: `{word}:` says nothing")
        if word == "not run":
            reason = rest
        elif word == "expect":
            if last_shell is None:
                raise Unreadable(f"{number}: `expect` stands before any block of sh")
            last_shell.parts.append(rest)
        elif word == "buckets":
            page.buckets += [_bucket(number, named) for named in rest.split(",")]
        elif word == "needs":
            page.needs += [named.strip() for named in rest.split(",")]
        else:
            page.nothing_to_run = rest
    if reason:
        raise Unreadable(f"{number}: `not run` stands before no block")
    return page


def missing(output: str, lines: Sequence[str], parts: Sequence[str]) -> list[str]:
    """What a block should have printed and did not; empty: all is there. Any run of spaces is one, as columns are as wide
    as what is in them."""
    printed_lines = [" ".join(line.split()) for line in output.splitlines()]
    absent = [part for part in parts if not any(re.search(_pattern(part), line) for line in printed_lines)]
    printed = iter(printed_lines)
    for wanted in lines:
        pattern = re.compile(_pattern(wanted))
        if not any(pattern.fullmatch(line) for line in printed):
            absent.append(wanted)
            break  # the printed lines are used up: what follows would be called absent wrongly
    return absent


def _pattern(text: str) -> str:
    return ".*".join(re.escape(piece) for piece in " ".join(text.split()).split(VARIES))


def _content(lines: Iterator[tuple[int, str]], opened: int) -> str:
    content: list[str] = []
    for _, line in lines:
        if line.startswith("```"):
            return "".join(f"{kept}\n" for kept in content)
        content.append(line)
    raise Unreadable(f"{opened}: the block is not closed")


def _bucket(number: int, named: str) -> Bucket:
    match named.split():
        case [name]:
            return Bucket(name)
        case [name, "versioned"]:
            return Bucket(name, versioned=True)
    raise Unreadable(f"{number}: a bucket is NAME or NAME versioned, not {named.strip()!r}")
