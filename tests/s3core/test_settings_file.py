"""Editing the configuration file: one table changes, every other byte stays, and nothing is ever half written."""

import os
import stat
import threading
import tomllib
from pathlib import Path

import pytest

from s3core.config_file import change_file, with_settings, with_table, without_settings, without_table
from s3core.settings import ConfigError, load_config

SITE: dict[str, str | int | float | bool] = {"url": "https://s3.example.com", "retries": 3, "sign_payload": True}

COMMENTED = """\
# head

# about a
[endpoint.a]  # trailing
url = "h"     # why

# about s3block
[s3block]
log_level = "info"
# tail
"""


def test_a_new_table_goes_to_the_end() -> None:
    expected = COMMENTED + '\n[endpoint.site]\nurl = "https://s3.example.com"\nretries = 3\nsign_payload = true\n'
    assert with_table(COMMENTED, "endpoint", "site", SITE) == expected
    assert with_table("", "endpoint", "b", {"url": "x"}) == '[endpoint.b]\nurl = "x"\n'


def test_a_table_is_replaced_where_it_stands() -> None:
    changed = with_table(COMMENTED, "endpoint", "a", {"url": "new"})
    assert changed == COMMENTED.replace('[endpoint.a]  # trailing\nurl = "h"     # why', '[endpoint.a]\nurl = "new"')


@pytest.mark.parametrize("text", ["", COMMENTED, "[s3block]\n", '[s3block]\r\nlog_level = "info"\r\n'])
def test_adding_and_removing_leaves_nothing(text: str) -> None:
    assert without_table(with_table(text, "endpoint", "site", SITE), "endpoint", "site") == text


def test_tables_below_go_with_it() -> None:
    text = '[endpoint.b]\nurl = "h"\n[endpoint.b.prices]\ncurrency = "EUR"\n\n# c\n[endpoint.c]\nurl = "k"\n'
    assert without_table(text, "endpoint", "b") == '# c\n[endpoint.c]\nurl = "k"\n'
    assert without_table(text, "endpoint", "c") == text.partition("\n\n")[0] + "\n"


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb\tc", "ü\x7f\u2028", "'''", "# no comment", "[endpoint.x]"])
def test_any_text_reads_back(value: str) -> None:
    assert tomllib.loads(with_table("", "endpoint", "b", {"url": value}))["endpoint"]["b"]["url"] == value


@pytest.mark.parametrize(
    "text", ['endpoint = {a = {url = "h"}}\n', '[endpoint]\na.url = "h"\n', 'endpoint.a.url = "h"\n']
)
def test_a_form_that_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be edited here"):
        with_table(text, "endpoint", "a", {"url": "new"})


def test_what_is_not_toml_or_not_there() -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        with_table("[endpoint", "endpoint", "a", {})
    with pytest.raises(KeyError):
        without_table(COMMENTED, "endpoint", "b")


def test_the_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    change_file(path, lambda text: with_table(text, "endpoint", "b", {"url": "h"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    change_file(path, lambda text: with_table(text, "endpoint", "c", {"url": "h"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(load_config(path).endpoints) == ["b", "c"]
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "config.toml"
    real.write_text("")
    link.symlink_to(real)
    change_file(link, lambda text: with_table(text, "endpoint", "b", {"url": "h"}))
    assert link.is_symlink()
    assert "endpoint.b" in real.read_text()


def test_an_invalid_outcome_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(COMMENTED)
    with pytest.raises(ConfigError, match="did you mean 'url'"):
        change_file(path, lambda text: with_table(text, "endpoint", "b", {"ulr": "h"}))
    with pytest.raises(OSError, match="torn"):
        change_file(path, fail)
    assert path.read_text() == COMMENTED
    assert os.listdir(tmp_path) == ["config.toml"]


def fail(text: str) -> str:
    raise OSError("torn")


def test_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"

    def add(number: int) -> None:
        change_file(path, lambda text: with_table(text, "endpoint", f"e{number}", {"url": "h"}))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_config(path).endpoints) == 8


def test_settings_come_and_go_and_leave_the_rest_of_the_table() -> None:
    text = '# of a\n[endpoint.a]\n# why\nurl = "x" # here\n\n# of b\n[endpoint.b]\nurl = "y"\n'
    more = with_settings(text, "endpoint", "a", {"region": "r", "proxy": "p", "url": "x"})
    assert more == text.replace("[endpoint.a]\n", '[endpoint.a]\nregion = "r"\nproxy = "p"\n')
    assert with_settings(more, "endpoint", "a", {"region": "r"}) == more
    assert without_settings(more, "endpoint", "a", ["region", "proxy", "ca_file"]) == text
    assert without_settings(text, "endpoint", "c", ["region"]) == text
    assert with_settings(text, "endpoint", "c", {"url": "z"}).endswith('\n[endpoint.c]\nurl = "z"\n')
    with pytest.raises(ConfigError, match="has another url already"):
        with_settings(text, "endpoint", "a", {"url": "z"})
    folded = '[endpoint]\na = { url = "x", region = "r" }\n'
    with pytest.raises(ConfigError, match="cannot be edited here"):
        with_settings(folded, "endpoint", "a", {"proxy": "p"})
    with pytest.raises(ConfigError, match="cannot be edited here"):
        without_settings(folded, "endpoint", "a", ["region"])
