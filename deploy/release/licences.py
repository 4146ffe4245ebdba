#!/usr/bin/env python3
"""The licences of all that a host may have from us, drawn as docs/licences.md.

    deploy/release/licences.py

One rule: a licence that is not in `ALLOWED`, by its SPDX name, ends this with an error: somebody reads it first, and
writes here why a program under AGPL-3.0-or-later may be given away together with it.
"""

import re
import sys
import tomllib
from importlib import metadata

from locked import ROOT, Locked, ReleaseFailed, shipped

OURS = "AGPL-3.0-or-later"
ALLOWED = {
    "Apache-2.0": "permissive; compatible with version 3 of the GPL family",
    "BSD-2-Clause": "permissive",
    "BSD-3-Clause": "permissive",
    "0BSD": "permissive",
    "ISC": "permissive",
    "LGPL-2.1-or-later": "may be taken as LGPL 3, which is GPL 3 with permissions added",
    "LGPL-3.0-only": "GPL 3 with permissions added, and AGPL 3 section 13 allows the combination",
    "MIT": "permissive",
    "MIT-0": "permissive",
    "MPL-2.0": "its section 3.3 names the AGPL as a secondary licence; its own files stay under it",
    "OLDAP-2.8": "permissive",
    "PSF-2.0": "permissive",
}
"""SPDX identifier -> why the AGPL allows it."""

CLASSIFIERS = {
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Where metadata has no expression but a classifier that can mean one licence only."""

READ = {
    "boto3": "Apache-2.0",
    "botocore": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "partd": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "segno": "BSD-3-Clause",
    "sortedcontainers": "Apache-2.0",
    "zict": "BSD-3-Clause",
}
"""Read by a person in the licence's text: metadata says "BSD", "Dual License" or nothing, or it is for another system."""

BROWSER = {
    "htmx.org": "0BSD",
    "@novnc/novnc": "MPL-2.0",
    "@xterm/xterm": "MIT",
    "@xterm/addon-fit": "MIT",
}
"""Of envctl/web/assets.toml; their texts are fetched and served with them."""

_WORD = re.compile(r"[A-Za-z0-9.+-]+")


def licence_of(one: Locked) -> str:
    """An SPDX expression. ReleaseFailed where nobody knows it."""
    if one.name in READ:
        return READ[one.name]
    try:
        told = metadata.metadata(one.name)
    except metadata.PackageNotFoundError as error:
        raise ReleaseFailed(
            f"{one.name} is not installed here: run `make venv`, or write its licence into READ of {__file__}"
        ) from error
    expression = str((told.get_all("License-Expression") or [""])[0])
    plain = str((told.get_all("License") or [""])[0]).strip()
    if not expression and plain in ALLOWED:
        expression = plain
    if not expression:
        found = {
            CLASSIFIERS.get(text, "")
            for line in told.get_all("Classifier") or []
            if line.startswith("License ::") and (text := line.rpartition("::")[2].strip()) != "DFSG approved"
        }
        if len(found) == 1:
            expression = found.pop()
    if not expression:
        raise ReleaseFailed(
            f"the metadata of {one.name} {one.version} names no licence that can be told: read it, then READ"
        )
    return expression


def check(name: str, expression: str) -> None:
    """ReleaseFailed for an expression with a part that `ALLOWED` has not: of alternatives one must be, of a sum all."""
    for alternative in re.split(r"\bOR\b", re.sub(r"\([^()]*\bOR\b[^()]*\)", _choose, expression)):
        words = [word for word in _WORD.findall(alternative) if word not in ("AND", "WITH")]
        if all(word in ALLOWED for word in words):
            return
    raise ReleaseFailed(f"{name}: {expression} is not known to be compatible with {OURS}; see ALLOWED in {__file__}")


def _choose(group: re.Match[str]) -> str:
    words: list[str] = [word for word in _WORD.findall(group[0]) if word != "OR"]
    return next((word for word in words if word in ALLOWED), words[0])


def browser_packages() -> list[dict[str, str]]:
    """`[[package]]` of envctl/web/assets.toml."""
    text = (ROOT / "envctl/web/assets.toml").read_text(encoding="utf-8")
    found: list[dict[str, str]] = tomllib.loads(text)["package"]
    return found


def browser_licence(name: str) -> str:
    """ReleaseFailed for a package that nobody has read."""
    if name not in BROWSER:
        raise ReleaseFailed(f"{name} of envctl/web/assets.toml is not in BROWSER of {__file__}: read its licence")
    check(name, BROWSER[name])
    return BROWSER[name]


def table() -> list[tuple[str, str, str]]:
    """Name, version and licence of each. ReleaseFailed."""
    rows = []
    for one in shipped().values():
        expression = licence_of(one)
        check(one.name, expression)
        rows.append((one.name, one.version, expression))
    return sorted(rows)


def page() -> str:
    """docs/licences.md."""
    rows = table()
    browser = [(one["name"], one["version"], browser_licence(one["name"])) for one in browser_packages()]
    words = {word for *_, licence in (*rows, *browser) for word in _WORD.findall(licence)} - {"AND", "OR", "WITH"}
    lines = [
        "# Licences",
        "",
        "Drawn by `make docs` from the metadata of what requirements.txt and the extras lock; edit deploy/release/licences.py.",
        "",
        f"Bucketworks is under {OURS}. What it needs is under these licences, each of which allows to be given away with it;",
        "one that is not listed stops the tests. The Debian package has the licence files of what it carries, in the",
        "`*.dist-info` directories below /usr/lib/bucketworks.",
        "",
        "| licence | why it fits |",
        "| --- | --- |",
        *(f"| {word} | {ALLOWED.get(word, 'one of alternatives, which is not taken')} |" for word in sorted(words)),
        "",
        "## Python",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
        *(f"| {name} | {version} | {licence} |" for name, version, licence in rows),
        "",
        "## Browser code, served by the console",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
        *(f"| {name} | {version} | {licence} |" for name, version, licence in browser),
        "",
        "How versions are locked and renewed: [supply-chain.md](supply-chain.md).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    try:
        sys.stdout.write(page())
    except ReleaseFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
