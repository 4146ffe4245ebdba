"""docs/integrity/quickstart.md, as somebody types it: every `sh` block in order, in an empty directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT


@pytest.mark.slow
def test_what_the_quickstart_tells_to_type_says_what_it_tells(tmp_path: Path) -> None:
    text = (ROOT / "docs/integrity/quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    # Where the text prints an exit code it is of a command that says no, which must not end the script.
    script = "set -e\n" + "".join(f"echo '### {number}'\n{block}" for number, block in enumerate(blocks))
    surroundings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    surroundings.pop("BUCKETWORKS_CONFIG", None)
    done = subprocess.run(
        ["bash", "-c", script.replace("; echo", " || echo")],
        cwd=tmp_path,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    output = done.stdout.decode()
    assert done.returncode == 0, output
    said = re.split(r"^### \d+\n", output, flags=re.MULTILINE)[1:]
    assert "bucketworks/archive+" in said[0]
    assert re.search(r"begun +laptop\.1#0 .*\(create vm1\)", said[1])
    assert re.search(r"done +laptop\.1#1 ", said[1])
    assert "VERIFIED: " in said[2]
    assert "TAMPERED: " in said[3]
    assert "the record was changed" in said[3]
    assert "exit code 12" in said[3]
    assert said[4].index("VERIFIED: ") < said[4].index("TAMPERED: ")
    assert "cut or rolled back: the store shows" in said[4]
    assert "exit code 12" in said[4]
    assert "VERIFIED: " in said[5]
    assert "VERIFIED: " in said[6]
    assert "as it was signed by bucketworks/archive: " in said[6]
    assert len(list((tmp_path / "ledger-tour/reports").glob("*.html"))) == 1
