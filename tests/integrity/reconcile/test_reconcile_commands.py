import json
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integrity.cli import app
from integrity.place import opened_ledger
from integrity.recording import recorded_bucket
from integrity.reports.findings import taken
from s3core.bucket_stack import MEMORY, open_bucket
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.memory_bucket import MemoryBucket
from s3core.settings import load_config


class Site:
    def __init__(self, folder: Path, *, covers: bool = True) -> None:
        self.folder = folder
        self.name = f"b{uuid4().hex[:8]}"
        self.url = f"memory:{self.name}"
        self.bucket: MemoryBucket = MEMORY.bucket(self.name, versioned=True)
        self.config = folder / "config.toml"
        arguments = [
            "init",
            "audit",
            f"file://{folder}/ledger",
            "--state-dir",
            str(folder / "state"),
            "--writer",
            "pve1",
        ]
        arguments += ["--covers", self.url] if covers else []
        assert self.run(*arguments) == ExitCode.OK

    def run(self, *arguments: str) -> int:
        return int(run(app, "s3integrity", [*arguments, "--config", str(self.config)]))

    def put(self, **objects: bytes) -> None:
        config = load_config(self.config)
        inner, _ = open_bucket(self.url, config)
        with closing(recorded_bucket(inner, self.url, config, tool="cowsync")) as bucket:
            for key, data in objects.items():
                bucket.put(key, data)

    def reconcile(self, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = self.run("reconcile", "audit", self.url, "--skew", "1", "--settle", "0", "--json", *more)
        return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.put(a=b"one", b=b"two")
    yield made
    MEMORY.buckets.pop(made.name)


def test_clean_then_altered_then_explained(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.reconcile(capsys)[0] == ExitCode.OK
    site.bucket.put("a", b"altered")
    code, found = site.reconcile(capsys)
    assert (code, found["counts"]) == (ExitCode.FINDING, {"UNLOGGED_OVERWRITE": 1})
    assert taken(json.dumps(found).encode(), "found")["findings"][0]["key"] == "a"
    assert site.run("explain", "audit", f"{site.url}/a", "--skew", "1") == ExitCode.FINDING
    assert "`a` was replaced outside the ledger" in capsys.readouterr().out
    assert site.run("explain", "audit", f"{site.url}/b", "--skew", "1", "--json") == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["said"].startswith("`b` is as the ledger says: last put by ")
    assert told["story"][0]["records"] == ["pve1.1#2", "pve1.1#3"]


def test_what_is_recorded_afterwards_is_no_finding_any_more(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = site.bucket.put("c", b"by hand")
    assert site.reconcile(capsys)[0] == ExitCode.FINDING
    event = {"op": "put", "phase": "done", "source": "client", "bucket": site.name, "key": "c", "size": 7}
    event |= {"etag": written.etag, "version": written.version_id, "who": {"name": "auditor"}}
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(json.dumps(event).encode())))
    assert site.run("record", "audit") == ExitCode.OK
    code, found = site.reconcile(capsys)
    assert (code, found["findings"]) == (ExitCode.OK, [])


def test_a_ledger_that_was_tampered_with_gives_no_verdict_on_the_bucket(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_ledger("audit", load_config(site.config)) as ledger:
        (bundle,) = (one.key for one in ledger.store.list("log/pve1.1/tile/entries/"))
        data = ledger.store.get(bundle).data
        ledger.store.put(bundle, data.replace(b'"key":"a"', b'"key":"z"', 1))
    assert site.run("reconcile", "audit", site.url, "--json") == ExitCode.TAMPERED
    assert '"tampered"' in capsys.readouterr().err


def test_the_result_can_be_written_into_the_ledger(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.bucket.put("evil", b"evil")
    assert site.reconcile(capsys, "--record")[0] == ExitCode.FINDING
    assert site.run("log", "audit", "--json") == ExitCode.OK
    assert '"UNLOGGED_PUT"' in capsys.readouterr().out


def test_a_cache_that_is_no_database_is_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.reconcile(capsys)
    (cache,) = (site.folder / "state" / "reconcile").glob("*.sqlite")
    cache.write_bytes(b"no database" * 1000)
    assert site.run("reconcile", "audit", site.url) == ExitCode.REFUSED
    assert "remove it: it is a cache" in capsys.readouterr().err
    cache.unlink()
    assert site.reconcile(capsys)[0] == ExitCode.OK


def test_usage(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.run("explain", "audit", "s3://only-an-endpoint") == ExitCode.USAGE
    assert site.run("reconcile", "audit", site.url, "--since", "yesterday") == ExitCode.USAGE
    assert "2026-01-31" in capsys.readouterr().err


def test_a_ledger_is_not_held_against_its_own_place(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    own = f"memory:own{uuid4().hex[:8]}/ledger"
    state = str(site.folder / "own")
    assert site.run("init", "own", own, "--state-dir", state, "--writer", "pve1") == ExitCode.OK
    capsys.readouterr()
    assert site.run("reconcile", "own", own) == ExitCode.CONFIGURATION
    assert "s3integrity verify own" in capsys.readouterr().err
