"""Every page of the runbook has the one shape, quotes what the programs really print, and is found by its symptom.

One rule: a message is looked for in the source as it is written there, with whatever stands for its variables; what others
print (kernels, initiators, systemd) is declared below with who prints it.
"""

import ast
import re
import shlex
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

from tests.architecture import test_links
from tests.architecture.test_links import fault
from tests.architecture.tree import ROOT, kept_files
from tests.runbook.page import SHAPE, blocks, symptoms, unshaped

RUNBOOK = ROOT / "docs/runbook"
NO_SYMPTOM = ("README.md", "alerts.md")
POINTERS = {"Alerts"}
"""Sections that only lead on: anchors of alerts."""
PAGES = sorted(path for path in RUNBOOK.glob("*.md") if path.name not in NO_SYMPTOM)
PLACES = ("s3core", "blockdev", "cowsync", "integrity", "plugin", "envctl")
FOREIGN = {
    "No space left on device": "kernel",
    "Space allocation failed write protect": "kernel",
    "Thin provisioning soft threshold reached": "kernel",
    "Medium Error": "kernel",
    "Unrecovered read error": "kernel",
    "task set full": "kernel",
    "qemu-io: iSCSI Busy/TaskSetFull/TimeOut": "libiscsi",
    "connection1:0: detected conn error": "kernel",
    "session recovery timed out after 120 secs": "kernel",
    "Address already in use": "libc",
    "certificate has expired": "OpenSSL",
}
EXAMPLES = {"archive", "photos", "ceph", "AKEXAMPLE", "other-host", "behind", "s3:PutObject", "s"}
LETTERS_MIN = 8
"""Of a quoted message, below which it would be found in anything."""
PROGRAMS = {"s3block", "cowsync", "s3integrity", "s3-envctl", "pve-s3", "envctl-agent", "bucketworks"}
PROGRAMS |= {"systemctl", "journalctl", "curl", "pvesm", "dpkg", "make", "iscsiadm", "echo", "qm"}


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_has_the_shape(path: Path) -> None:
    found = symptoms(path)
    assert found, "no lead-in at all"
    assert {one.name: one.leads for one in found if tuple(one.leads) != SHAPE} == {}
    assert [heading for heading in unshaped(path) if heading not in POINTERS] == []
    empty = [f"{one.name}: {lead}" for one in found for lead, text in one.parts.items() if len(text.strip()) < 3]
    assert empty == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_page_is_in_the_index(path: Path) -> None:
    index = (RUNBOOK / "README.md").read_text(encoding="utf-8")
    assert f"]({path.name}" in index


@cache
def templates() -> tuple[list[str], ...]:
    """Every string of the source as its constant pieces; what lies between two is a variable."""
    found: list[list[str]] = []
    for path in kept_files():
        if path.suffix != ".py" or path.relative_to(ROOT).parts[0] not in PLACES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(pieces).split("\0"))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.split(r"%[sdr]|%\.\d[fg]", node.value))
    return tuple(found)


@cache
def perl() -> str:
    texts = [path.read_text(encoding="utf-8") for path in kept_files() if path.suffix in (".pm", ".pl")]
    return "\n".join(texts)


def letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def fragments(message: str) -> list[str]:
    """What of a message is no variable: the runs of words without digits, paths and the names of the examples."""
    runs: list[list[str]] = [[]]
    for word in message.split():
        bare = word.strip(".,:;()")
        if re.search(r"[\d/]", bare) or bare in EXAMPLES:
            runs.append([])
        else:
            runs[-1].append(word)
    return [run for run in (" ".join(words).strip(" :;,(") for words in runs) if letters(run) >= 3]


@cache
def pieces() -> str:
    """All constant pieces of all strings, and the Perl sources."""
    return "\0".join("\0".join(template) for template in templates()) + "\0" + perl()


def printed(message: str) -> bool:
    """Whether the source has what is no variable in the message: runs of four words and more, which are most of it. A message
    may be put together of several strings, and what stands between may be words, too."""
    found = wanted = 0
    for run in fragments(message):
        wanted += letters(run)
        words, at = run.split(), 0
        while at < len(words):
            end = next((end for end in range(len(words), at, -1) if " ".join(words[at:end]) in pieces()), at)
            if end - at >= min(4, len(words)):
                found += letters(" ".join(words[at:end]))
            at = max(end, at + 1)
    return wanted > 0 and found >= 0.4 * wanted


def quoted(text: str) -> list[str]:
    """Messages of a `What you see`: between backticks, and in blocks of text; cut at every …, without `error: `."""
    text = re.sub(r"<!-- foreign: [^>]* -->\s*```text\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [one for one in re.findall(r"`([^`\n]+)`", plain) if " " in one and one.split()[0] not in PROGRAMS]
    pieces = [piece for line in lines for piece in re.split(r"…|\.\.\.", re.sub(r"^error: ", "", line))]
    pieces = [re.sub(r"^\S*logger=\S+ store: ", "", piece.strip(" ;:")) for piece in pieces]
    return [piece for piece in pieces if letters(piece) >= LETTERS_MIN and " " in piece]


QUOTED = [
    pytest.param(message, id=f"{path.stem}-{number}")
    for path in PAGES
    for number, message in enumerate(
        message for one in symptoms(path) for message in quoted(one.parts.get("What you see.", ""))
    )
]


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_that_the_programs_print(message: str) -> None:
    for foreign in FOREIGN:
        message = message.replace(foreign, "").strip(" :")
    assert letters(message) < LETTERS_MIN or printed(message), f"nothing of ours prints {message!r}"


def test_a_message_that_nobody_prints_is_noticed() -> None:
    assert not printed("the volume has caught a cold and needs a rest")
    assert not printed("volume vm1 was eaten: record 372 was written by nobody")
    assert not printed("no room for cats in this house")
    assert not printed("no room for cats in this house")
    assert printed("volume vm1 was taken over: record 372 was written by epoch 5 on other-host")


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "docs/drills").glob("*.md"))], ids=name_of)
def test_commands_of_all_programs_are_understood(path: Path) -> None:
    """As `test_links` does for two programs, here for every one, and in loops and pipes of blocks, too."""
    wrong = {}
    for block in blocks(path.read_text(encoding="utf-8")):
        for words in (shlex.split(line, comments=True) for line in simple(block.text)):
            if words and words[0] in apps() and (said := misunderstood(words)):
                wrong[" ".join(words)] = said
    assert wrong == {}


@cache
def apps() -> dict[str, typer.Typer]:
    found = {}
    for point in distribution("bucketworks").entry_points:
        if point.group == "console_scripts" and "app" in (module := point.load().__globals__):
            found[point.name] = module["app"]
    return found


def misunderstood(words: list[str]) -> str:
    with patch.object(test_links, "doors", apps):
        said = fault(words)
    # A file that the block makes before, or that is on the host that the page speaks of.
    return "" if "No such file or directory" in " ".join(said.split()) else said


def simple(text: str) -> list[str]:
    """The commands of a block, without what pipes, substitutions and redirections put around them."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        inner = re.sub(r"^\w+=\$\((.*)$", r"\1", line.strip())
        found.append(re.split(r"\s(?:\||&&|2?>>?|<)(?:\s|&|$)|\s*&&$", inner)[0])
    return [line for line in found if line.count("'") % 2 == 0 and line.count('"') % 2 == 0]
