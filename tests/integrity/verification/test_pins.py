"""Pins: durable, forwards only, and of one ledger."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integrity.errors import LedgerError
from integrity.verification.pins import Pin, PinMoved, Pins, PinsDamaged, forget_pins, load_pins, save_pins

ROOT = "ab" * 32


def pins(size: int) -> Pins:
    return Pins("o", "k", "2026-01-31T12:00:00.000000Z", {"a": Pin(size, ROOT, 1, ("x", "y"), "t")}, {"writers": []})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "pins.json"
    assert load_pins(path, "o", "k") == Pins("o", "k")
    save_pins(path, pins(7))
    assert load_pins(path, "o", "k") == pins(7)


def test_verifications_at_once_leave_the_largest(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"

    def save(size: int) -> bool:
        try:
            save_pins(path, pins(size))
        except PinMoved:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(save, range(1, 200)))
    assert load_pins(path, "o", "k").logs["a"].size == 199
    assert saved[-1]


def test_a_pin_never_moves_backwards(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    save_pins(path, pins(7))
    save_pins(path, pins(9))
    with pytest.raises(LedgerError, match="backwards"):
        save_pins(path, pins(8))
    with pytest.raises(LedgerError, match="backwards"):
        save_pins(path, Pins("o", "k"))
    assert load_pins(path, "o", "k").logs["a"].size == 9


def test_pins_of_another_ledger_and_damaged_ones_are_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    save_pins(path, pins(7))
    for origin, key in (("other", "k"), ("o", "other")):
        with pytest.raises(PinsDamaged, match="pins forget"):
            load_pins(path, origin, key)
    path.write_text(path.read_text().replace(ROOT, "abcd"))
    with pytest.raises(PinsDamaged):
        load_pins(path, "o", "k")
    assert forget_pins(path, origin="o", vkey="k") == ["all"]
    assert load_pins(path, "o", "k") == Pins("o", "k")


def test_one_log_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    save_pins(path, pins(7))
    assert forget_pins(path, "b", origin="o", vkey="k") == []
    assert forget_pins(path, "a", origin="o", vkey="k") == ["a"]
    assert load_pins(path, "o", "k").logs == {}


def test_a_crash_before_the_rename_leaves_the_old_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pins.json"
    save_pins(path, pins(7))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            save_pins(path, pins(9))
    # What a kill leaves there is removed by the next save.
    (tmp_path / ".pins-left").write_text("{")
    assert load_pins(path, "o", "k").logs["a"].size == 7
    save_pins(path, pins(9))
    assert os.listdir(tmp_path) == ["pins.json"]
