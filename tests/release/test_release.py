"""The wheel is the same twice, the bill of materials is valid and whole, the audit tells what it knows and what it does not."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

RELEASE = ROOT / "deploy/release"


def script(name: str, *arguments: str | Path, root: Path = ROOT, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(root / "deploy/release" / name), *map(str, arguments)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"needs {module}, of the development group: make venv")


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_is_the_same_from_another_copy_of_the_tree(tmp_path: Path) -> None:
    """A copy without git, at another place, with other times and modes, under another umask."""
    made = script("make_wheel.py", "--output", tmp_path / "here", SOURCE_DATE_EPOCH="1767225600")
    assert made.returncode == 0, made.stderr
    copy = tmp_path / "copy"
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("needs the repository: this is an unpacked archive")
    vendor = [file.relative_to(ROOT) for file in (ROOT / "envctl/web/static/vendor").rglob("*") if file.is_file()]
    for name in [*(Path(one.decode()) for one in listed.stdout.split(b"\0") if one), *vendor]:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
            (copy / name).chmod(0o700 if os.access(ROOT / name, os.X_OK) else 0o600)
    again = script(
        "make_wheel.py",
        "--output",
        tmp_path / "there",
        root=copy,
        SOURCE_DATE_EPOCH="1767225600",
        GIT_DIR="/nonexistent",
    )
    assert again.returncode == 0, again.stderr
    (one,), (other,) = (list((tmp_path / place).glob("*.whl")) for place in ("here", "there"))
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        assert first.namelist() == second.namelist()
        for left, right in zip(first.infolist(), second.infolist(), strict=True):
            assert (left.filename, left.date_time, left.external_attr, left.CRC) == (
                right.filename,
                right.date_time,
                right.external_attr,
                right.CRC,
            )
        names = first.namelist()
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
    assert not [
        name for name in names if name.startswith(("tests/", "bench/", "deploy/", "build/")) or "__pycache__" in name
    ]
    assert "envctl/web/templates/base.html" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


# --- licences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-2.0-only OR MIT", True),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", True),
        ("GPL-2.0-only", False),
        ("MIT AND GPL-2.0-only", False),
        ("SSPL-1.0", False),
        ("BUSL-1.1 OR LicenseRef-Commercial", False),
    ],
)
def test_a_licence_that_nobody_has_read_is_refused(expression: str, fine: bool) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"import licences; licences.check('x', {expression!r})"],
        env={**os.environ, "PYTHONPATH": str(RELEASE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode == 0) is fine, said.stderr
    if not fine:
        assert f"x: {expression} is not known to be compatible with AGPL-3.0-or-later" in said.stderr


def test_what_is_locked_twice_is_locked_alike() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import locked; print(len(locked.shipped()), len(locked.read_lock('requirements.txt')))",
        ],
        env={**os.environ, "PYTHONPATH": str(RELEASE)},
        capture_output=True,
        text=True,
        check=True,
    )
    shipped, runtime = map(int, found.stdout.split())
    assert shipped > runtime > 40, "the extras are in it too"


# --- the bill of materials -------------------------------------------------------------------------------------------


def test_the_bill_of_materials_is_whole_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = script("make_sbom.py", "--output", tmp_path / name, SOURCE_DATE_EPOCH="1767225600")
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    told = json.loads((tmp_path / "a").read_text(encoding="utf-8"))
    assert told["metadata"]["timestamp"] == "2026-01-01T00:00:00Z"
    parts = {part["purl"]: part for part in told["components"]}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            name, _, version = line.split(" ")[0].split(";")[0].partition("==")
            part = parts[f"pkg:pypi/{name}@{version}"]
            assert part["licenses"][0]["expression"]
            assert [one for one in part["properties"] if one["name"] == "bucketworks:locked-sha256"]
    assert "pkg:npm/%40novnc/novnc@" in " ".join(parts)
    carried = [
        name for name, part in parts.items() if {"deb:bucketworks"} & {one["value"] for one in part["properties"]}
    ]
    assert any("/boto3@" in name for name in carried)
    assert not any("/setuptools@" in name for name in carried), "it builds, and is not imported"
    refs = {node["ref"] for node in told["dependencies"]}
    assert refs == {*parts, told["metadata"]["component"]["bom-ref"]}
    assert {other for node in told["dependencies"] for other in node["dependsOn"]} <= refs
    (root,) = (node for node in told["dependencies"] if node["ref"].startswith("pkg:pypi/bucketworks@"))
    assert any("/boto3@" in name for name in root["dependsOn"])


def test_the_bill_of_materials_is_valid(tmp_path: Path) -> None:
    needs("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    made = script("make_sbom.py", "--output", tmp_path / "bom.json")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "bom.json").read_text(encoding="utf-8")
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"thing"')) is not None, "the validator looks"


# --- the audit -------------------------------------------------------------------------------------------------------


@contextmanager
def database(known: dict[str, str]) -> Iterator[str]:
    """A server that speaks osv.dev's protocol and knows a vulnerability of the packages in `known`."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = asked["package"]["name"], asked["version"]
            found = [
                {
                    "id": known[name],
                    "summary": "made up",
                    "modified": "2026-01-01T00:00:00Z",
                    "affected": [
                        {
                            "package": {"name": name, "ecosystem": "PyPI"},
                            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
                            "versions": [version],
                        }
                    ],
                }
                for _ in range(name in known)
            ]
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Silence: the test's output is the audit's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A requirements file with two packages."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"idna==3.10 \\\n    --hash=sha256:{'0' * 64}\nsix==1.17.0 \\\n    --hash=sha256:{'1' * 64}\n")
    return file


def test_the_audit_names_what_is_known(few: Path) -> None:
    needs("pip_audit")
    with database({"six": "PYSEC-2026-1"}) as url:
        found = script("audit.py", "--osv-url", url, few)
    assert found.returncode == 1, found.stderr
    assert "six 1.17.0: PYSEC-2026-1; mended in 99.1" in found.stdout
    assert "2 versions asked for, 1 known vulnerabilities" in found.stdout


def test_the_audit_of_what_is_clean(few: Path) -> None:
    needs("pip_audit")
    with database({}) as url:
        found = script("audit.py", "--osv-url", url, few)
    assert found.returncode == 0, found.stderr
    assert "2 versions asked for, 0 known vulnerabilities" in found.stdout


def test_an_audit_without_a_database_is_no_clean_bill(few: Path) -> None:
    needs("pip_audit")
    found = script("audit.py", "--osv-url", "http://127.0.0.1:1/v1/query", few)
    assert found.returncode == 75, found.stderr
    assert "NOT ASKED: no database of vulnerabilities answers" in found.stdout


def test_what_has_no_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("six==1.17.0\n")
    found = script("audit.py", tmp_path / "r.txt")
    assert found.returncode == 1
    assert "is not pinned with a hash" in found.stderr
