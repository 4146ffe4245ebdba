"""The Perl modules, without Proxmox VE: each method against its contract, and what no Perl file of ours may have in it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

MODULES = ROOT / "plugin" / "perl"
HERE = ROOT / "tests" / "plugin" / "perl"
STUBS = HERE / "lib"
FILES = sorted(MODULES.rglob("*.pm"))

pytestmark = pytest.mark.skipif(
    shutil.which("prove") is None
    or subprocess.run(["perl", "-MJSON", "-MTest::More", "-e1"], capture_output=True, check=False).returncode != 0,
    reason="needs perl with JSON: apt-get install --no-install-recommends perl libjson-perl libjson-xs-perl",
)


def run(command: list[str], directory: Path, temporary: Path) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUCKETWORKS_", "PERL"))}
    return subprocess.run(
        command,
        cwd=directory,
        env=kept | {"TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((HERE / "t").glob("*.t")), ids=lambda script: script.stem)
def test_methods(script: Path, tmp_path: Path) -> None:
    done = run(["prove", "-T", "-I", str(STUBS), "-I", str(MODULES), str(script)], HERE, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.stem)
def test_each_module_compiles_in_taint_mode_without_a_word(module: Path, tmp_path: Path) -> None:
    done = run(["perl", "-T", "-wc", f"-I{STUBS}", f"-I{MODULES}", str(module)], HERE, tmp_path)
    assert done.stderr.splitlines() == [f"{module} syntax OK"]


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.stem)
def test_what_a_module_that_runs_inside_pvedaemon_may_not_have(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    code = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())
    assert "SPDX-License-Identifier: AGPL-3.0-or-later" in text
    assert "use strict;\nuse warnings;\n" in text
    assert text.endswith("\n1;\n")
    forbidden = {
        r"\balarm\s*\(": "alarm() undoes Proxmox VE's own",
        r"`|\bqx\b|\b(?:system|exec)\s*[({\[\"'$@]": "no shell",
        r"\beval\s*[\"'$]": "no evaluation of text",
        r"\bopen\s*\(\s*\w+,|\bopen\(my \$\w+, [\"']?[<>]*\$": "open with three arguments",
        r"\$SIG\{(ALRM|CHLD|PIPE)\}": "signals are Proxmox VE's",
        r"\bexit\b": "exit would end a service of the node",
        r"\t": "no tabs",
    }
    found = [why for pattern, why in forbidden.items() if re.search(pattern, code)]
    assert found == []
    if module.stem != "Properties":
        assert [line for line in text.splitlines() if len(line) > 120] == []


def test_each_package_is_named_after_its_file() -> None:
    for module in FILES:
        name = "::".join(module.relative_to(MODULES).with_suffix("").parts)
        assert f"package {name};" in module.read_text(encoding="utf-8")
