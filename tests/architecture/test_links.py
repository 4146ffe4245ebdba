"""What the documents tell people to type and to open is there: commands with their options, make targets, headings.

One rule: an example in a code block is tried against the command's own parser, so that it cannot grow old. That links
lead to files at all is `test_documents`' business.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from tests.architecture.tree import ROOT, kept_files

DOCUMENTS = [path for path in kept_files() if path.suffix == ".md"]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
ANCHORED = re.compile(r"\[[^\]]*\]\(([^)#:\s]*)#([^)\s]+)\)")
PATH = re.compile(r"(?:s3core|blockdev|tests|docs|deploy|bench|\.ci)/[\w./-]*[\w-]\.(?:py|md|toml|json)")
PROGRAMS = ("s3block", "bucketworks")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """Command lines of ours: in code blocks, and whole ones between backticks. Comments are left out."""
    lines = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += CODE.findall(FENCE.sub("", text))
    for line in lines:
        words = line.split()
        if words and words[0] in (*PROGRAMS, "make") and not re.search(r"[|…]|\.\.\.", line):
            yield shlex.split(line, comments=True)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub, Gitea and Forgejo make it."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)}


def doors() -> dict[str, typer.Typer]:
    """The console scripts, each as the app that its module's `main` runs."""
    found = {}
    for point in distribution("bucketworks").entry_points:
        if point.name in PROGRAMS:
            found[point.name] = point.load().__globals__["app"]
    return found


def fault(words: list[str]) -> str:
    """Empty when the command line would be understood; nothing is run."""
    if words[0] == "make":
        makefile = text_of(ROOT / "Makefile")
        targets = [word for word in words[1:] if "=" not in word]
        missing = [target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)]
        return f"no such target: {', '.join(missing)}" if missing else ""
    command = get_command(doors()[words[0]])
    name, rest = words[0], words[1:]
    while hasattr(command, "commands"):
        if not rest:
            return ""  # the bare name of a group
        name, rest = rest[0], rest[1:]
        if name.startswith("-"):
            return ""  # an option of the group, such as --version
        if name not in command.commands:
            return f"no such command: {name}"
        command = command.commands[name]
    if not rest:
        return ""  # the bare name of a command
    try:
        command.make_context(name, rest)
    except Exception as error:  # noqa: BLE001 - whatever a parser refuses with is the finding
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_are_understood(path: Path) -> None:
    found = {" ".join(words): fault(words) for words in commands(text_of(path))}
    assert {line: said for line, said in found.items() if said} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_anchors_are_headings(path: Path) -> None:
    lost = [
        f"{target}#{anchor}"
        for target, anchor in ANCHORED.findall(text_of(path))
        if anchor not in anchors(text_of(path.parent / target if target else path))
    ]
    assert lost == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    named = {found for code in CODE.findall(FENCE.sub("", text_of(path))) for found in PATH.findall(code)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    left = list(reached)
    while left:
        page = left.pop()
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(page)):
            place = (page.parent / target).resolve()
            found = place / "README.md" if place.is_dir() else place
            if found.suffix == ".md" and found.exists() and found not in reached:
                reached.add(found)
                left.append(found)
    assert [name_of(page) for page in DOCUMENTS if page not in reached] == []


def test_the_readme_shows_how_to_begin() -> None:
    shown = [" ".join(words) for words in commands(text_of(ROOT / "README.md"))]
    for beginning in ("make demo", "make test", "bucketworks endpoint create", "s3block create", "s3block serve"):
        assert any(line.startswith(beginning) for line in shown), beginning


@pytest.mark.parametrize(
    "line",
    ["s3block creat x", "s3block create --no-such-option x", "bucketworks endpoint make x", "make no-such-target"],
)
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    assert fault(line.split())


def test_a_command_that_is_there_is_not_run() -> None:
    assert fault(["s3block", "delete", "file:///nowhere/at-all/vm1", "--yes"]) == ""
