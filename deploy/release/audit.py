#!/usr/bin/env python3
"""`make audit`: known vulnerabilities of what the requirements files lock, as pip-audit finds them.

    deploy/release/audit.py [--service osv|pypi] [--osv-url URL] [FILE ...]

Exit codes: 0 nothing is known; 1 something is, or a file is not locked as it should be; 2 pip-audit does not work; 75 no
database of vulnerabilities could be asked, which says nothing about what is locked (sysexits.h: EX_TEMPFAIL). Nothing is
installed or resolved: only pinned versions are asked for.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from locked import ROOT, ReleaseFailed, read_lock

FILES = sorted(file.name for file in ROOT.glob("requirements*.txt"))
BROKEN = 2
NOT_ASKED = 75
_AWAY = re.compile(r"connect|timed? ?out|resol|unreachable|proxy|ssl|certificate|http error|status code", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--service", choices=("osv", "pypi"), default="osv", help="whose database (osv)")
    parser.add_argument("--osv-url", default="", help="another server that speaks the protocol of osv.dev")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", default=FILES, help="requirements with hashes (all of ours)"
    )
    options = parser.parse_args(arguments)
    try:
        for file in options.files:
            read_lock(file)
    except ReleaseFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    code = 0
    for file in options.files:
        found = ask(file, options.service, options.osv_url)
        if found in (BROKEN, NOT_ASKED):
            return found
        code = max(code, found)
    return code


def ask(file: str, service: str, osv_url: str) -> int:
    """0, 1, BROKEN or NOT_ASKED; says what was found."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(ROOT / file),
            "--require-hashes",
            "--disable-pip",
        ]
        command += ["--no-deps", "--vulnerability-service", service, "--timeout", "15", "--progress-spinner", "off"]
        command += ["--format", "json", "--output", str(report), "--cache-dir", f"{folder}/cache"]
        command += ["--osv-url", osv_url] if osv_url else []
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if not report.exists():
            last = ((done.stderr or done.stdout).strip().splitlines() or ["it said nothing"])[-1]
            if _AWAY.search(last):
                sys.stdout.write(f"{file}: NOT ASKED: no database of vulnerabilities answers ({service}): {last}\n")
                return NOT_ASKED
            sys.stderr.write(f"error: pip-audit ended with {done.returncode}: {last}\n")
            return BROKEN
        told = json.loads(report.read_text(encoding="utf-8"))
    dependencies = told["dependencies"]
    known = [(one, found) for one in dependencies for found in one.get("vulns", [])]
    for one, found in known:
        cured = ", ".join(found["fix_versions"]) or "no version yet"
        sys.stdout.write(f"{file}: {one['name']} {one['version']}: {found['id']}; mended in {cured}\n")
    for one in dependencies:
        if "skip_reason" in one:
            sys.stdout.write(f"{file}: {one['name']}: not audited: {one['skip_reason']}\n")
    sys.stdout.write(f"{file}: {len(dependencies)} versions asked for, {len(known)} known vulnerabilities\n")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
