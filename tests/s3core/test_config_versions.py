"""Versions of the configuration file, with a made-up history: tables and text come to the same, and nothing else changes."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import config_commands, config_migration, settings
from s3core.config_check import examine_version
from s3core.config_commands import migrate_file, resolved_tables
from s3core.config_file import change_file, with_table
from s3core.config_migration import migrated
from s3core.config_versions import (
    HISTORY,
    History,
    Moved,
    NewDefault,
    Removed,
    Version,
    VersionError,
    at_version,
    version_of,
)
from s3core.settings import ConfigError, load_config, parse_config

GOLDEN = Path(__file__).parent / "configurations"

MADE_UP = History(
    (
        Version(
            2,
            (
                Moved(("volume", "NAME"), "place", ("volume", "NAME"), "url"),
                Moved(("s3block",), "telemetry", ("s3block",), "metrics_listen"),
                Removed(("s3block",), "turbo", "it is always as fast as it can be"),
            ),
        ),
        Version(
            3,
            (
                Moved(("s3block",), "console_listen", ("envctl",), "listen"),
                NewDefault(("mirror", "NAME"), "every_s", "1h", "a mirror ran every hour"),
                NewDefault(("s3block",), "log_level", "warning", "information is logged"),
            ),
        ),
    )
)
"""Version 3 is today's in these tests."""

OLD = """\
# Our gateway. Ask Ida before you change anything.

[volume.mail]  # the post
# It was at another provider until May.
place = "file:///srv/mail"   # do not touch
size_bytes = "1G"
initiators = [
    "iqn.1993-08.org.debian:01:a",
    # "[volume.not-one]",
]

[s3block]
"telemetry" = "127.0.0.1:9260"
turbo = true  # faster
# The people's page.
console_listen = "127.0.0.1:9999"

[mirror.a]
source = "file:///srv/a"
target = "file:///srv/b"
"""


def test_an_older_file_is_read_with_a_warning_that_says_what_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.toml"
    with caplog.at_level(logging.WARNING):
        config = parse_config(OLD, path=path, history=MADE_UP)
        parse_config(OLD, path=path, history=MADE_UP)
    assert config.volumes["mail"].url == "file:///srv/mail"
    assert config.s3block.metrics_listen == "127.0.0.1:9260"
    assert config.envctl.listen == "127.0.0.1:9999"
    assert config.mirrors["a"].every_s == 3600
    assert config.s3block.log_level == "warning"
    (told,) = caplog.messages
    assert "is of version 1" in told
    assert "bucketworks config migrate" in told


def test_a_newer_file_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="is of version 4, and this program knows versions up to 3") as caught:
        parse_config("version = 4\n[s3block]\nhyper = true\n", history=MADE_UP)
    assert "config migrate --to 3" in caught.value.hint
    with pytest.raises(ConfigError, match="is of version 2"):
        parse_config("version = 2\n")


@pytest.mark.parametrize("text", ["version = true", "version = 0", "version = '1'", "version = 1.0"])
def test_a_version_is_a_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match="version must be a whole number"):
        parse_config(text)


def test_text_is_migrated_and_keeps_every_comment() -> None:
    outcome = migrated(OLD, history=MADE_UP)
    assert (outcome.before, outcome.after, len(outcome.done)) == (1, 3, 6)
    assert (
        outcome.text
        == """\
version = 3

# Our gateway. Ask Ida before you change anything.

[volume.mail]  # the post
# It was at another provider until May.
url = "file:///srv/mail"   # do not touch
size_bytes = "1G"
initiators = [
    "iqn.1993-08.org.debian:01:a",
    # "[volume.not-one]",
]

[s3block]
metrics_listen = "127.0.0.1:9260"
log_level = "warning"
# No longer a setting: it is always as fast as it can be
# turbo = true  # faster

[mirror.a]
source = "file:///srv/a"
target = "file:///srv/b"
every_s = "1h"

[envctl]
# The people's page.
listen = "127.0.0.1:9999"
"""
    )
    assert parse_config(outcome.text, history=MADE_UP) == parse_config(OLD, history=MADE_UP)


def test_migration_is_idempotent_and_goes_back_as_far_as_it_can() -> None:
    new = migrated(OLD, history=MADE_UP).text
    assert migrated(new, history=MADE_UP).text == new
    back = migrated(new, 1, history=MADE_UP)
    tables = tomllib.loads(back.text)
    assert tables["version"] == 1
    assert tables["volume"]["mail"]["place"] == "file:///srv/mail"
    assert tables["s3block"]["console_listen"] == "127.0.0.1:9999"
    assert parse_config(back.text, history=MADE_UP) == parse_config(OLD, history=MADE_UP)
    steps = migrated(migrated(OLD, 2, history=MADE_UP).text, 3, history=MADE_UP)
    assert tomllib.loads(steps.text) == tomllib.loads(new)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[volume]\nmail = {place = "file:///srv/mail"}\n', "cannot be edited here"),
        ('volume.mail.place = "file:///srv/mail"\n', "cannot be edited here"),
        ('[volume.mail]\nplace = "file:///a"\nurl = "file:///b"\n', "are the same setting; keep one"),
        ("[volume\n", "is not TOML"),
        ("version = 9\n", "versions from 1 to 3 are known here, not 9"),
    ],
)
def test_what_cannot_be_migrated_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        migrated(text, history=MADE_UP)


def test_line_ends_of_two_bytes_stay() -> None:
    made = migrated("[volume.a]\r\nplace = 'file:///x'\r\n", 2, history=MADE_UP).text
    assert "url = 'file:///x'\r\n" in made


_values = st.one_of(st.booleans(), st.integers(-5, 5), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3))


@given(
    st.dictionaries(st.sampled_from(["place", "size", "note"]), _values),
    st.dictionaries(st.sampled_from(["telemetry", "turbo", "console_listen", "x"]), _values),
)
def test_text_and_tables_come_to_the_same(volume: dict[str, object], s3block: dict[str, object]) -> None:
    tables = {"s3block": s3block, "volume": {"a": volume, "b c": dict(volume)}}
    text = config_commands.as_toml(tables)
    assert tomllib.loads(text) == tables
    outcome = migrated(text, history=MADE_UP)
    assert tomllib.loads(outcome.text) == at_version(tables, 3, MADE_UP)


def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the made-up history were the program's."""
    for function in (settings.parse_config, settings.parse_tables, config_migration.migrated):
        assert function.__kwdefaults__ is not None
        monkeypatch.setitem(function.__kwdefaults__, "history", MADE_UP)
    monkeypatch.setattr(settings.require_current, "__defaults__", (MADE_UP,))


def test_a_file_is_migrated_with_a_backup_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch)
    path = tmp_path / "config.toml"
    path.write_text(OLD)
    with pytest.raises(ConfigError, match="only files of version 3 are changed"):
        change_file(path, lambda text: with_table(text, "volume", "new", {"url": "file:///n"}))
    assert path.read_text() == OLD
    outcome, backup = migrate_file(path, dry_run=True)
    assert (outcome.after, backup, path.read_text()) == (3, None, OLD)
    outcome, backup = migrate_file(path)
    assert backup == tmp_path / "config.toml.version-1"
    assert backup.read_text() == OLD
    assert backup.stat().st_mode & 0o777 == 0o600
    assert load_config(path).volumes["mail"].url == "file:///srv/mail"
    before = path.read_text()
    assert migrate_file(path) == (config_migration.Migrated(before, 3, 3, ()), None)
    change_file(path, lambda text: with_table(text, "volume", "new", {"url": "file:///n"}))
    assert load_config(path).volumes["new"].url == "file:///n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.toml", "config.toml.version-1"]


def test_a_crash_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch)
    path = tmp_path / "config.toml"
    path.write_text(OLD)

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            migrate_file(path)
    assert path.read_text() == OLD
    assert migrate_file(path)[0].after == 3


def test_check_tells_of_an_older_file() -> None:
    (finding,) = examine_version(2, MADE_UP)
    assert finding.verdict == "warning"
    assert "console_listen is listen of [envctl]" in finding.said
    assert examine_version(HISTORY.current) == []


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.toml")), ids=lambda path: path.stem)
def test_files_of_every_version_stay_readable(path: Path) -> None:
    """What the file says means the same as on the day it was written; the values are beside it."""
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    today = resolved_tables(parse_config(path.read_text(encoding="utf-8"), path=path))

    def compare(then: object, now: object, where: str) -> None:
        if isinstance(then, dict):
            assert isinstance(now, dict), where
            for name, value in then.items():
                assert name in now, f"{where}.{name}"
                compare(value, now[name], f"{where}.{name}")
        else:
            assert then == now, where

    compare(told, today, "")


def test_every_version_has_a_file() -> None:
    numbers = {version_of(tomllib.loads(path.read_text())) for path in GOLDEN.glob("*.toml")}
    assert numbers == set(range(1, HISTORY.current + 1))
    assert [one.number for one in MADE_UP.versions] == [2, 3]
    with pytest.raises(VersionError):
        version_of({"version": -1})
