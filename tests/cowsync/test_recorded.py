"""A mirror that a ledger covers: each line is in it, with no code of its own; and nothing is written where it cannot be."""

import json
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cowsync.apply.pieces import LinesPiece
from cowsync.apply.transfer import TransferSettings
from cowsync.cli import app
from cowsync.mirror import carry_piece, opened
from integrity.place import open_ledger
from integrity.slots import try_lock
from s3core.bucket_stack import MEMORY
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.memory_bucket import MemoryBucket
from s3core.settings import ConfigError, load_config
from tests.integrity.ledgers import join, ledger_settings, records

MIB = 1 << 20


class Site:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *, covers: str = "memory:{target}") -> None:
        mark = uuid4().hex[:8]
        names = {"source": f"source-{mark}", "target": f"mirror-{mark}", "state": f"state-{mark}"}
        self.source, self.target = (MEMORY.bucket(names[name]) for name in ("source", "target"))
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[mirror.m]\nsource = "memory:{names["source"]}"\ntarget = "memory:{names["target"]}/copy"\n'
            f'state = "memory:{names["state"]}"\nstate_dir = "{folder}/state"\npart_bytes = "5M"\nscanners = 1\n'
            + ledger_settings(folder, *(url.format(**names) for url in covers.split()))
        )
        self._capsys = capsys

    def cowsync(self, *words: str, expect: int = 0) -> str:
        self._capsys.readouterr()
        code = run(app, "cowsync", [*words, "--config", str(self.config)])
        said = self._capsys.readouterr()
        assert code == expect, said.err
        return said.err or said.out


Make = Callable[..., Site]


@pytest.fixture
def make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Make:
    def made(**more: Any) -> Site:
        return Site(tmp_path, capsys, **more)

    return made


def held(bucket: MemoryBucket) -> dict[str, str]:
    page = bucket.list_page()
    return {key.decode(): etag.decode() for key, etag in zip(page.keys, page.etags, strict=True)}


def told(found: list[dict[str, Any]]) -> dict[str, str]:
    """What a bucket holds by its records: the last one of each key that is done."""
    state: dict[str, str] = {}
    for one in found:
        if one["phase"] == "done" and one["op"] in ("put", "copy", "delete"):
            state.pop(one["key"], None)
            if one["op"] != "delete":
                state[one["key"]] = one["etag"]
    return state


def test_what_the_ledger_says_the_mirror_holds_is_what_it_holds(make: Make) -> None:
    site = make()
    join(site.config)
    for number in range(20):
        site.source.put(f"a/{number}", bytes(number))
    site.source.put("large", bytes(12 * MIB))
    site.cowsync("run", "m")
    site.source.put("a/3", b"changed")
    site.source.delete("a/4")
    site.cowsync("run", "m")
    found = records(site.config)
    assert told(found) == held(site.target)
    by_intent = {one["n"]: one for one in found if one["phase"] == "intent"}
    outcomes = [one for one in found if one["phase"] != "intent"]
    assert sorted(one["intent"] for one in outcomes) == sorted(by_intent)
    for one in outcomes:
        before = by_intent[one["intent"]]
        assert before["n"] < one["n"]
        assert all(one[name] == before[name] for name in ("op", "key", "bucket", "who"))
    (large,) = (one for one in outcomes if one["key"] == "copy/large")
    assert (large["op"], large["detail"]["from"]["key"], large["etag"]) == (
        "copy",
        "large",
        large["detail"]["from"]["etag"],
    )
    assert {one["who"]["name"] for one in found} == {"cowsync run"}
    replaced = [one for one in outcomes if one["key"] == "copy/a/3"]
    assert [key for key, _ in groupby(one["phase"] for one in replaced)] == ["done"]


def test_a_restore_and_the_state_are_recorded_where_they_are_covered(make: Make) -> None:
    site = make(covers="memory:{source} memory:{state}")
    join(site.config)
    site.source.put("a", b"1")
    site.cowsync("run", "m")
    assert {one["bucket"].partition("-")[0] for one in records(site.config)} == {"state"}
    site.source.put("a", b"2")
    site.cowsync("snapshot", "restore", "m", "run:1", "--overwrite", "--go")
    (put,) = (one for one in records(site.config) if one["bucket"].startswith("source") and one["phase"] == "done")
    assert put["who"]["name"] == "cowsync snapshot restore"
    assert site.source.get("a") == b"1"


def test_without_a_free_slot_nothing_is_written_and_looking_needs_none(make: Make) -> None:
    site = make()
    site.source.put("a", b"1")
    assert "this host is no writer of ledger audit" in site.cowsync("run", "m", expect=ExitCode.REFUSED)
    join(site.config, writers=1)
    ledger = open_ledger("audit", load_config(site.config))
    slot = try_lock(ledger, "here.1")
    assert slot is not None
    try:
        site.cowsync("plan", "m", expect=ExitCode.FINDING)
        site.cowsync("status", "m")
        said = site.cowsync("apply", "m", expect=ExitCode.REFUSED)
        assert "nothing was sent: ledger audit cannot record what is done: all 1 slots" in " ".join(said.split())
        assert dict(site.target.requests).get("put", 0) == 0
    finally:
        slot.release()
        ledger.close()
    site.cowsync("apply", "m")
    assert held(site.target) == told(records(site.config))


def test_a_ledger_whose_store_is_away_holds_up_no_mirror(make: Make, tmp_path: Path) -> None:
    site = make()
    join(site.config)
    site.source.put("a", b"1")
    text = site.config.read_text()
    away = '[endpoint.away]\nurl = "http://127.0.0.1:9"\naccess_key = "a"\nsecret_key = "b"\n'
    site.config.write_text(away + text.replace(f"file://{tmp_path}/ledger", "s3://away/ledger"))
    site.config.chmod(0o600)
    began = time.monotonic()
    site.cowsync("run", "m")
    assert time.monotonic() - began < 30, "its endpoint may try for a minute, each time"
    assert list(held(site.target)) == ["copy/a"]
    site.config.write_text(text)
    site.source.put("b", b"2")
    site.cowsync("run", "m")
    assert told(records(site.config)) == held(site.target), "what was not published then is now"
    assert json.loads((tmp_path / "ledger-state/slots/here.1/key.json").read_text())


class NoHold:
    """Of a piece that is refused before it begins."""

    name = "a worker"

    def begin(self) -> bool:
        raise AssertionError("it was begun")

    def keep(self) -> None:
        raise AssertionError("it was begun")

    def tell(self, *words: str) -> None:
        raise AssertionError("it was begun")


def test_a_worker_that_knows_of_no_ledger_carries_nothing_out(make: Make) -> None:
    site = make()
    with opened(load_config(site.config), "m") as mirror:
        where = mirror.where
    site.config.write_text(site.config.read_text().replace("covers = [", "covers = [] #"))
    piece = LinesPiece("digest", 1, 1, 1.0, False, TransferSettings(), where)
    with pytest.raises(
        ConfigError, match="the ledger that covers the target is '' here, and 'audit' where the run began"
    ):
        carry_piece(piece, NoHold())
