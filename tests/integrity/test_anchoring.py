"""Timestamps of checkpoints, by a real authority: made, kept, verified here and by openssl, and refused."""

import builtins
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from integrity.anchoring import anchor, check_timestamp, kept_stamp, read_roots, timestamp_query
from integrity.cli import app
from integrity.cosigning import Network
from integrity.errors import LedgerError, Malformed, Rejected
from integrity.layout import LEDGER_WRITER, kept_checkpoint_key, timestamp_key
from integrity.place import Ledger, open_ledger
from integrity.tlog.checkpoint import Checkpoint
from s3core.errors import Unavailable
from s3core.settings import ConfigError, load_config
from tests.integrity.authority import Authority
from tests.integrity.test_cosigning import config, published
from tests.integrity.test_witness import ORIGIN, OURS

__all__ = ["config"]
HEAD = Checkpoint(ORIGIN, 300, OURS.root(300))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa") / "authority")


@pytest.fixture
def ledger(config: Path, authority: Authority) -> Iterator[Ledger]:
    with authority.serving() as url:
        config.write_text(f'{config.read_text()}timestamps = "{url}"\ntimestamp_roots = "{authority.root}"\n')
        ledger = open_ledger("audit", load_config(config))
        published(ledger.store, 300)
        ledger.store.put(kept_checkpoint_key(LEDGER_WRITER, 300), OURS.note(300))
        yield ledger
        ledger.close()


def test_a_timestamp_is_made_kept_and_verified(ledger: Ledger, authority: Authority) -> None:
    roots = read_roots(str(authority.root))
    stamp = anchor(ledger, Network(), roots)
    assert (stamp.checkpoint, stamp.verified) == (HEAD, True)
    assert abs(stamp.unix_s - time.time()) < 60
    assert ledger.store.get(timestamp_key(300)).data == stamp.token
    assert authority.verifies(HEAD.text(), stamp.token)
    assert anchor(ledger, Network(), roots) == kept_stamp(ledger, 300, roots) == stamp
    assert not anchor(ledger, Network(), []).verified
    with pytest.raises(LedgerError, match="no timestamp of 200 records is kept"):
        kept_stamp(ledger, 200, roots)


def test_what_a_timestamp_does_not_hold_for(authority: Authority, tmp_path: Path) -> None:
    query, nonce = timestamp_query(HEAD)
    token = authority.answer(query)
    roots = read_roots(str(authority.root))
    assert check_timestamp(token, HEAD, roots, nonce=nonce).verified
    with pytest.raises(Rejected, match="is not of the checkpoint of 301 records"):
        check_timestamp(token, Checkpoint(ORIGIN, 301, HEAD.root), roots)
    with pytest.raises(Rejected, match="answers another request"):
        check_timestamp(token, HEAD, roots, nonce=nonce + 1)
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(Rejected, match="does not hold"):
        check_timestamp(token, HEAD, read_roots(str(stranger.root)))
    for wrong in (b"", b"nonsense", token[:-1]):
        with pytest.raises((Malformed, Rejected)):
            check_timestamp(wrong, HEAD, roots)
    spoiled = bytearray(token)
    spoiled[-1] ^= 1
    with pytest.raises((Malformed, Rejected)):
        check_timestamp(bytes(spoiled), HEAD, roots)


def test_an_authority_that_refuses_or_is_away(ledger: Ledger, tmp_path: Path, config: Path) -> None:
    picky = Authority(tmp_path / "picky", digests="sha512")
    text = config.read_text()
    with picky.serving() as url:
        config.write_text(text.replace(ledger.settings.timestamps, url))
        with pytest.raises(Rejected, match="the time-stamping authority refused"):
            anchor(open_ledger("audit", load_config(config)), Network(), [])
    with pytest.raises(Unavailable):
        anchor(open_ledger("audit", load_config(config)), Network(2.0), [])
    assert not list(ledger.store.list("anchors/"))


def test_the_command(ledger: Ledger, config: Path, authority: Authority, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tsr"
    made = CliRunner().invoke(app, ["anchor", "audit", "--config", str(config), "--json", "--output", str(copy)])
    assert made.exit_code == 0, made.output
    told: dict[str, Any] = json.loads(made.stdout)
    assert (told["size"], told["root"], told["verified"]) == (300, HEAD.root.hex(), True)
    assert authority.verifies(HEAD.text(), copy.read_bytes())
    looked = CliRunner().invoke(app, ["anchor", "audit", "--config", str(config), "--check", "300"])
    assert looked.exit_code == 0
    assert told["time"] in looked.stdout
    config.write_text(config.read_text().replace("timestamps =", "# timestamps ="))
    without = CliRunner().invoke(app, ["anchor", "audit", "--config", str(config)])
    assert isinstance(without.exception, ConfigError)


def test_without_the_extra_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "rfc3161_client":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(LedgerError, match=r"pip install 'bucketworks\[anchor\]'"):
        timestamp_query(HEAD)


def test_files_that_hold_no_roots(tmp_path: Path) -> None:
    wrong = tmp_path / "roots.pem"
    wrong.write_text("nothing")
    with pytest.raises(LedgerError, match="holds no certificates"):
        read_roots(str(wrong))
    assert read_roots("") == []
