#!/usr/bin/env python3
"""`make site`: docs/ as a site in build/site, complete in itself: no page of it asks another host for anything.

The pages stay what they are, for readers of the tree. On their way to Sphinx they get three things: README.md of a folder
becomes its index, a link to a file of the tree becomes one to a page that shows that file (or plain code, where it is not
text), pictures come along, and `PARTS` says where each page stands in the navigation.

One rule: a page in no part, a link or an anchor that leads nowhere, and every warning of Sphinx end the build.

    deploy/site/make_site.py [--output DIRECTORY]
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
REQUIREMENTS: Final = ROOT / "requirements-docs.txt"
PARTS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Begin", ("README.md", "docs/install.md", "docs/tutorials/*")),
    ("A disk", ("docs/mount.md", "docs/lio.md")),
    ("A mirror", ("docs/cowsync/README.md",)),
    ("A ledger", ("docs/integrity/README.md",)),
    ("Proxmox VE", ("docs/plugin.md",)),
    ("Users' machines", ("docs/envctl.md",)),
    (
        "Operate",
        (
            "docs/runbook/README.md",
            "docs/status.md",
            "docs/monitoring.md",
            "docs/configuration.md",
            "docs/providers.md",
            "docs/units.md",
            "docs/upgrade.md",
            "docs/drills/*",
        ),
    ),
    (
        "Look up",
        (
            "docs/settings.md",
            "docs/exit-codes.md",
            "docs/metrics.md",
            "docs/formats/README.md",
            "docs/protocol/README.md",
        ),
    ),
    (
        "Understand",
        (
            "docs/durability.md",
            "docs/architecture.md",
            "docs/benchmarks.md",
            "docs/peers/README.md",
            "docs/features.md",
            "docs/design/README.md",
        ),
    ),
    ("Take part", ("docs/hacking.md", "docs/licences.md", "docs/supply-chain.md", "CHANGELOG.md")),
)
"""Each part's pages, in order. `FOLDER/*` is all that lies there; pages in a folder with a README.md, or with a page of the
folder's name beside it, follow that one by themselves. A page that is not there (yet) is passed over."""
LANDING: Final = "docs/README.md"
LEXERS: Final = {
    ".py": "python",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".jsonl": "text",
    ".service": "ini",
    ".timer": "ini",
    ".socket": "ini",
    ".sh": "bash",
    ".pm": "perl",
    ".note": "text",
    "": "text",
}
"""How a file of the tree that a page links to is shown; others become plain code."""
PICTURES: Final = frozenset({".svg", ".png"})
"""Files that a page shows and does not link to."""
_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1`*\s*?$", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


class SiteFailed(RuntimeError):
    """The site could not be built; the message names page and cause."""


@dataclass(frozen=True, slots=True)
class Page:
    """A Markdown page of the tree and its name on the site."""

    origin: PurePosixPath
    """Below the root of the tree: `docs/runbook/README.md`."""
    name: PurePosixPath
    """Below the root of the site: `runbook/index.md`."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site", help="where the site goes (build/site)")
    options = parser.parse_args(arguments)
    try:
        build(options.output)
    except SiteFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{options.output / 'index.html'}\n")
    return 0


def build(output: Path) -> None:
    """The whole site in `output`, in place of what was there. SiteFailed leaves that as it was."""
    sphinx = environment()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="site-", dir=output.parent) as name:
        staged, made = Path(name) / "pages", Path(name) / "made"
        stage(ROOT, staged)
        words = [
            str(sphinx),
            "-m",
            "sphinx",
            "--fail-on-warning",
            "--keep-going",
            "--nitpicky",
            "--quiet",
            "-j",
            "auto",
        ]
        words += ["-b", "html", "-c", str(HERE), "-d", str(Path(name) / "trees"), str(staged), str(made)]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise SiteFailed(f"Sphinx is not content:\n{done.stdout.replace(str(staged) + '/', '')}")
        shutil.rmtree(made / ".doctrees", ignore_errors=True)
        (made / ".buildinfo").unlink(missing_ok=True)
        shutil.rmtree(made / "_sources", ignore_errors=True)
        if output.exists():
            shutil.rmtree(output)
        made.rename(output)


def environment() -> Path:
    """The Python of a virtual environment with requirements-docs.txt, made once below build/. SiteFailed with pip's words."""
    wanted = REQUIREMENTS.read_bytes() + sys.version.encode()
    place = ROOT / "build" / f"site-environment-{hashlib.sha256(wanted).hexdigest()[:16]}"
    python = place / "bin" / "python"
    if (place / ".ready").exists():
        return python
    for words in (
        (sys.executable, "-m", "venv", "--clear", str(place)),
        (str(python), "-m", "pip", "install", "-qq", "--no-input", "--require-hashes", "-r", str(REQUIREMENTS)),
    ):
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise SiteFailed(f"{' '.join(words)}\n{done.stdout}")
    (place / ".ready").touch()
    return python


def pages(root: Path) -> dict[PurePosixPath, Page]:
    """Every page of the site by its place in the tree."""
    found = [PurePosixPath("README.md"), PurePosixPath("CHANGELOG.md")]
    found += sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in (root / "docs").rglob("*.md"))
    return {origin: Page(origin, _name(origin)) for origin in found}


def _name(origin: PurePosixPath) -> PurePosixPath:
    if origin == PurePosixPath("README.md"):
        return PurePosixPath("overview.md")
    inside = origin.relative_to("docs") if origin.parts[0] == "docs" else PurePosixPath(origin.name.lower())
    return inside.with_name("index.md") if inside.name == "README.md" else inside


def stage(root: Path, target: Path) -> None:
    """Write every page to `target` as Sphinx shall read it."""
    known = pages(root)
    shown: dict[PurePosixPath, PurePosixPath] = {}
    children = navigation(known)
    for page in known.values():
        text = (root / page.origin).read_text(encoding="utf-8")
        text = rewritten(text, page, known, root, shown)
        inner = children.get(page.origin, ())
        if inner:
            text += _toctree("", [_relative(known[one].name, page.name) for one in inner])
        if str(page.origin) == LANDING:
            for caption, patterns in PARTS:
                listed = [known[one].name for pattern in patterns for one in _matching(pattern, known)]
                text += _toctree(caption, list(map(str, listed))) if listed else ""
        _write(target / page.name, text)
    for origin, name in shown.items():
        if origin.suffix in PICTURES:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / origin, target / name)
            continue
        lexer = LEXERS[origin.suffix]
        content = (root / origin).read_text(encoding="utf-8").rstrip("\n")
        longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
        fence = "`" * max(3, longest + 1)
        _write(
            target / name,
            f"---\norphan: true\nnosearch: true\n---\n\n# {origin}\n\n{fence}{lexer}\n{content}\n{fence}\n",
        )


def navigation(known: dict[PurePosixPath, Page]) -> dict[PurePosixPath, list[PurePosixPath]]:
    """The pages that follow a page by themselves: those of its folder. SiteFailed for one that stands nowhere."""
    placed = {one for _, patterns in PARTS for pattern in patterns for one in _matching(pattern, known)}
    children: dict[PurePosixPath, list[PurePosixPath]] = {}
    for origin in known:
        if origin in placed or str(origin) == LANDING:
            continue
        folder = origin.parent.parent if origin.name == "README.md" else origin.parent
        heads = (folder / "README.md", folder.with_suffix(".md"))
        head = next((one for one in heads if one in known and str(one) != LANDING), None)
        if head is None:
            raise SiteFailed(f"{origin} stands nowhere in the navigation: name it in PARTS of {Path(__file__).name}")
        children.setdefault(head, []).append(origin)
    return children


def _matching(pattern: str, known: dict[PurePosixPath, Page]) -> Iterator[PurePosixPath]:
    if pattern.endswith("/*"):
        folder = PurePosixPath(pattern).parent
        found = [one for one in known if one.parent == folder]
        # A folder's own page stands for the others, which follow it.
        head = folder / "README.md"
        yield from [head] if head in known else found
    elif PurePosixPath(pattern) in known:
        yield PurePosixPath(pattern)


def rewritten(
    text: str,
    page: Page,
    known: dict[PurePosixPath, Page],
    root: Path,
    shown: dict[PurePosixPath, PurePosixPath],
) -> str:
    """`text` with links as the site has them. Files of the tree that are to be shown are added to `shown`. SiteFailed for a
    link to what is not there."""

    def link(found: re.Match[str]) -> str:
        picture, label, target = found[1], found[2], found[3]
        place, _, anchor = target.partition("#")
        if not place or re.match(r"[a-z]+:", place):
            return found[0]
        origin = PurePosixPath(os.path.normpath(page.origin.parent / place))
        if (root / origin).is_dir() and origin / "README.md" in known:
            origin = origin / "README.md"
        if picture and origin.suffix in PICTURES and (root / origin).is_file():
            return f"![{label}]({_relative(shown.setdefault(origin, PurePosixPath('tree') / origin), page.name)})"
        if origin in known:
            name = known[origin].name
        elif not (root / origin).exists():
            raise SiteFailed(f"{page.origin}: link to {target}, which is not there")
        elif (root / origin).is_file() and origin.suffix in LEXERS:
            name = shown.setdefault(origin, PurePosixPath("tree") / f"{origin}.md")
            anchor = ""
        else:
            return label if label.startswith("`") else f"`{label}`"
        if label.strip("`") == place and origin in known:
            # `[settings.md](settings.md)` names a file of the tree; on the site it names the page.
            label = title(root / origin)
        return f"[{label}]({_relative(name, page.name)}{'#' + anchor if anchor else ''})"

    return _outside_of_code(text, lambda prose: _LINK.sub(link, prose))


def title(page: Path) -> str:
    """What a page calls itself."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SiteFailed(f"{page}: has no heading of the first level")
    return found[1]


def _outside_of_code(text: str, change: Callable[[str], str]) -> str:
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\x00{len(kept) - 1}\x00"

    hidden = _CODE.sub(keep, _FENCE.sub(keep, text))
    changed = change(hidden)
    while "\x00" in changed:
        changed = re.sub("\x00(\\d+)\x00", lambda found: kept[int(found[1])], changed)
    return changed


def _relative(name: PurePosixPath, page: PurePosixPath) -> str:
    return PurePosixPath(os.path.relpath(name, page.parent)).as_posix()


def _toctree(caption: str, names: Sequence[str]) -> str:
    lines = ["", "", "```{toctree}", ":hidden:"]
    lines += [f":caption: {caption}"] if caption else []
    return "\n".join([*lines, "", *(name.removesuffix(".md") for name in names), "```", ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
