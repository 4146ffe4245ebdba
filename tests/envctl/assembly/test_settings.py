"""`[envctl]` in the configuration file, and the settings that are kept in the console over it."""

from pathlib import Path

import pytest

from envctl.errors import Invalid, NoSuchThing
from envctl.live_settings import KEPT, SEEN_S, live
from envctl.verbs import settings as verbs
from envctl.verbs.verb import Nothing
from s3core.settings import ConfigError, EnvctlSettings, parse_config
from tests.envctl.world import World, make_world


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[envctl]\nurll = 'x'", "[envctl]: unknown setting 'urll': did you mean 'url'?"),
        ("[envctl]\nbackup_interval_s = 1", "[envctl]: backup_interval_s: "),
        ("[envctl]\nurl = 'console.example'", "[envctl]: url: 'console.example' is no address"),
        ("[envctl]\ncertificate = '/a'", "[envctl]: certificate and private_key belong together"),
        ("[envctl]\nproxies = ['everybody']", "[envctl]: proxies: "),
        ("[envctl]\nhomes = '/srv'", "[envctl]: homes: "),
        ("[envctl]\nledger = 'trail'", "[envctl]: ledger: there is no [ledger.trail]"),
        ("[envctl.driver.pve]\ntokn = 'x'", "[envctl.driver.pve]: unknown setting 'tokn': did you mean 'token'?"),
        ("[envctl.driver.pve]\nvmid_first = 2000\nvmid_last = 1000", "[envctl.driver.pve]: vmid_first is above"),
        ("[envctl.oidc]\nissue = 'x'", "[envctl.oidc]: unknown setting 'issue': did you mean 'issuer'?"),
    ],
)
def test_what_is_refused_names_table_and_setting(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text)
    assert expected in str(refused.value)


def test_every_kept_setting_is_one_of_the_file() -> None:
    assert set(KEPT) <= set(EnvctlSettings.model_fields)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_a_kept_setting_holds_in_every_process_within_seconds(world: World) -> None:
    file = world.context.settings
    seen = live(file, world.database, world.clock)
    assert seen.idle_stop_s == file.idle_stop_s == 0
    root = world.caller("root")
    told = verbs.set_one(world.context, root, verbs.SetSetting(key="idle_stop_s", value="2h"))
    assert (told.value, told.kept, told.from_file) == (7200.0, True, 0.0)
    assert seen.idle_stop_s == 0, "another process asks the database now and then, not each time"
    world.clock.now += SEEN_S
    assert seen.idle_stop_s == 7200.0
    assert seen.url == file.url
    shown = {one.key: one for one in verbs.show(world.context, root, Nothing())}
    assert list(shown) == list(KEPT)
    assert shown["idle_stop_s"].kept
    assert not shown["boot_s"].kept
    assert not verbs.reset(world.context, root, verbs.SettingKey(key="idle_stop_s")).kept
    world.clock.now += SEEN_S
    assert seen.idle_stop_s == 0


def test_a_value_that_cannot_be_changes_nothing(world: World) -> None:
    root = world.caller("root")
    for key, value in (("backup_interval_s", "1"), ("idle_stop_s", "soon"), ("require_totp", "sometimes")):
        with pytest.raises(Invalid):
            verbs.set_one(world.context, root, verbs.SetSetting(key=key, value=value))
    with pytest.raises(NoSuchThing):
        verbs.set_one(world.context, root, verbs.SetSetting(key="listen", value="0.0.0.0:1"))
    assert not any(one.kept for one in verbs.show(world.context, root, Nothing()))


def test_while_the_database_is_away_what_was_seen_last_counts(world: World) -> None:
    seen = live(world.context.settings, world.database, world.clock)
    verbs.set_one(world.context, world.caller("root"), verbs.SetSetting(key="boot_s", value=99))
    assert seen.boot_s == 99
    (world.directory / "envctl.sqlite3").rename(world.directory / "elsewhere")
    world.database.close()
    world.clock.now += SEEN_S
    assert seen.boot_s == 99
