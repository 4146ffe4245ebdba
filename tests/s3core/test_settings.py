"""The configuration file: what is read from it, what is refused, and how the refusal reads."""

from pathlib import Path

import pytest

from s3core.settings import Config, ConfigError, load_config, parse_config
from s3core.settings_table import reason, settings_table

PATH = Path("/etc/bucketworks/config.toml")

WHOLE = """
[endpoint.site]
preset = "ceph"
url = "https://rgw.example.com"
region = "us-east-1"
credentials = "file:/etc/bucketworks/site.key"
connect_timeout_s = "500ms"
bytes_per_s = "100M"
[endpoint.site.prices]
per_gib_month = 0.02

[s3block]
listen = "10.0.0.1:3260"
cache_bytes = "8G"

[volume.mail]
url = "s3://site/disks/mail"
size_bytes = "100G"
commit_interval_s = "2s"
initiators = ["iqn.1993-08.org.debian:01:abc"]

[volume.web]
url = "file:///srv/web"
cache_bytes = "1G"
listen = ["127.0.0.1:3261", "[::1]:3261"]
state_dir = "/srv/state/web"
iqn = "iqn.2025-01.internal.bucketworks:pair"
lun = 1
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)


def test_a_whole_file() -> None:
    config = parse_config(WHOLE)
    endpoint = config.endpoints["site"]
    assert (endpoint.preset, endpoint.connect_timeout_s, endpoint.bytes_per_s) == ("ceph", 0.5, 100 * 1024**2)
    mail = config.volume("mail")
    assert (mail.size_bytes, mail.commit_interval_s, mail.flush) == (100 * 1024**3, 2.0, "local")
    assert mail.initiators == ("iqn.1993-08.org.debian:01:abc",)


def test_what_a_volume_leaves_unset_comes_from_s3block() -> None:
    config = parse_config(WHOLE)
    mail, web = config.volume("mail"), config.volume("web")
    assert mail.listen == ("10.0.0.1:3260",)
    assert mail.cache_bytes == 8 * 1024**3
    assert mail.journal_bytes == 1024**3
    assert mail.state_dir == "/var/lib/bucketworks/mail"
    assert mail.iqn == "iqn.2025-01.internal.bucketworks:mail"
    assert web.listen == ("127.0.0.1:3261", "[::1]:3261")
    assert (web.cache_bytes, web.state_dir, web.lun) == (1024**3, "/srv/state/web", 1)


def test_what_is_advertised_goes_with_what_is_listened_on() -> None:
    config = parse_config(
        """
s3block.advertise = "203.0.113.9:3260"
[volume.a]
url = "file:///a"
[volume.b]
url = "file:///b"
listen = "10.0.0.1:3260"
[volume.c]
url = "file:///c"
listen = ["10.0.0.2:3260", "10.0.1.2:3260"]
advertise = ["disk.example.com:1", "disk.example.com:2"]
"""
    )
    assert config.volume("a").advertise == ("203.0.113.9:3260",)
    assert config.volume("b").advertise == ()
    assert config.volume("c").advertise == ("disk.example.com:1", "disk.example.com:2")


def test_a_volume_may_be_watched_at_a_port_of_its_own() -> None:
    config = parse_config(
        's3block.metrics_listen = "10.0.0.1:9260"\n[volume.a]\nurl = "file:///a"\n'
        '[volume.b]\nurl = "file:///b"\nmetrics_listen = "10.0.0.1:9270"\n'
    )
    assert config.volume("a").metrics_listen is None, "as [s3block]"
    assert config.volume("b").metrics_listen == "10.0.0.1:9270"
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_config('[volume.a]\nurl = "file:///a"\nmetrics_listen = "here"\n')


def test_an_endpoint_is_its_preset_with_what_the_file_says(tmp_path: Path) -> None:
    key = tmp_path / "site.key"
    key.write_text('access_key = "AK"\nsecret_key = "hush"\n')
    key.chmod(0o600)
    endpoint = parse_config(WHOLE.replace("/etc/bucketworks/site.key", str(key))).endpoint("site", {})
    assert endpoint.addressing == "path"
    assert endpoint.if_match_quoted is False
    assert endpoint.prices.per_gib_month == 0.02
    assert endpoint.credentials.access_key == "AK"
    assert "hush" not in repr(endpoint)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[endpoint.a]\nulr = 'h'", "[endpoint.a]: unknown setting 'ulr': did you mean 'url'?"),
        ("[endpont.a]\nurl = 'h'", "unknown table [endpont]: did you mean 'endpoint'?"),
        ("[zebra]\n", "unknown table [zebra]"),
        ("[s3blok]\n", "unknown table [s3blok]: did you mean 's3block'?"),
        ("path = 'x'", "unknown table 'path'"),
        (
            "[endpoint.a]\nurl='h'\nprices.per_1000_puts = 1",
            "[endpoint.a.prices]: unknown setting 'per_1000_puts': did",
        ),
        ("[volume.v]\nurl='file:///x'\nlog_level='info'", "unknown setting 'log_level'; it is a setting of [s3block]"),
        ("[volume.v]\nflush='s3'", "[volume.v]: url: is required: where the volume lives"),
        ("[volume.v]\nurl='/x'", "[volume.v]: url: '/x' is not a place in a store; write s3://ENDPOINT/BUCKET/PREFIX"),
        ("[volume.v]\nurl='file:///x'\nsize_bytes='10Q'", "size_bytes: '10Q' is not a size; write bytes or a number"),
        ("[volume.v]\nurl='file:///x'\nflush='later'", "[volume.v]: flush: should be 'local' or 's3'"),
        ("[volume.v]\nurl='file:///x'\nextent_bytes='3M'", "extent_bytes: must be a power of two from 128K to 4M"),
        ("[volume.v]\nurl='file:///x'\nframe_bytes='1M'", "frame_bytes: must be a power of two from 16K to 128K"),
        ("[volume.v]\nurl='file:///x'\nlisten='here'", "listen: 'here' is not HOST:PORT, such as 127.0.0.1:3260"),
        ("[volume.v]\nurl='file:///x'\nlisten='a:70000'", "listen: 'a:70000' is not HOST:PORT"),
        ("[volume.v]\nurl='file:///x'\ncommit_interval_s='0s'", "commit_interval_s: should be greater than 0"),
        ("[volume.v]\nurl='file:///x'\ninitiators='bob'", "initiators: 'bob' is not an iSCSI name"),
        ("[s3block]\ndiscovery_chap_user='u'", "discovery_chap_user and discovery_chap_secret_file belong together"),
        (
            "[s3block]\ndiscovery_chap_mutual_user='u'\ndiscovery_chap_mutual_secret_file='/s'",
            "[s3block]: discovery_chap_mutual_user needs discovery_chap_user",
        ),
        ("[volume.v]\nurl='file:///x'\nadvertise='here'", "advertise: 'here' is not HOST:PORT"),
        ("[volume.v]\nurl='file:///x'\nchap_user='u'", "chap_user and chap_secret_file belong together"),
        (
            "[volume.v]\nurl='file:///x'\nchap_mutual_user='u'\nchap_mutual_secret_file='/s'",
            "chap_mutual_user needs chap_user",
        ),
        (
            "[volume.v]\nurl='file:///x'\n[volume.w]\nurl='file:///y'\niqn='iqn.2025-01.internal.bucketworks:v'",
            "[volume.w]: lun 0 of iqn.2025-01.internal.bucketworks:v is [volume.v] (give it another lun)",
        ),
        ("[endpoint.A]\nurl='h'", "[endpoint.A]: a name is made of a-z, 0-9, '.' and '-'"),
        ("endpoint = 3", "[endpoint]: must be a table"),
        ("[endpoint.a]", "[endpoint.a]: url: preset generic has no address of its own"),
        ("[endpoint.a]\nurl='ftp://h'", "[endpoint.a]: url: must begin with https:// or http://"),
        ("[endpoint.a]\nurl='h'\nfingerprint='abc'", "[endpoint.a]: fingerprint must be a certificate's SHA-256"),
        ("[endpoint.a]\nurl='h'\nregion=7", "[endpoint.a]: region: should be a valid string"),
        ("[endpoint.a]\nurl='h'\ncredentials='vault'", "credentials must be environment, file:PATH, profile:NAME"),
        ("[endpoint.a]\nurl='h'\naccess_key='k'", "access_key and secret_key belong together"),
        (
            "[endpoint.a]\nurl='h'\naccess_key='k'\nsecret_key='s'\ncredentials='environment'",
            "access_key and credentials are two sources; keep one",
        ),
        ("[endpoint.a\n", "is not TOML"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    said = refusal(text)
    assert expected in said
    assert said.startswith(str(PATH))


def test_everything_wrong_is_said_at_once() -> None:
    said = refusal("[volume.v]\nurl='file:///x'\ncache_byte=1\nlun=999\n[endpoint.a]\nurl='h'\nretries=-1")
    assert len(said.splitlines()) == 3


def test_a_refusal_never_quotes_a_secret() -> None:
    assert "hushhush" not in refusal("[endpoint.a]\nurl='h'\naccess_key='k'\nsecret_key=['hushhush']")
    assert "hushhush" not in refusal("[endpoint.a]\nurl='h'\nsecret_kye='hushhush'")


def test_a_name_that_is_not_there_suggests_the_nearest() -> None:
    config = parse_config(WHOLE)
    with pytest.raises(ConfigError, match=r"there is no \[volume.mial\] \(did you mean mail\?\)"):
        config.volume("mial")
    with pytest.raises(ConfigError, match=r"bucketworks endpoint create zzz"):
        config.endpoint("zzz", {})


def test_an_absent_file_is_empty_unless_it_was_named(tmp_path: Path) -> None:
    absent = tmp_path / "none.toml"
    config = load_config(environ={"BUCKETWORKS_CONFIG": str(absent)})
    assert config.endpoints == {}
    assert config.path == absent
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(absent, environ={})


def test_the_path_outranks_the_variable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("[endpoint.one]\nurl = 'h'\n")
    two.write_text("[endpoint.two]\nurl = 'h'\n")
    environ = {"BUCKETWORKS_CONFIG": str(two)}
    assert list(load_config(one, environ=environ).endpoints) == ["one"]
    assert list(load_config(environ=environ).endpoints) == ["two"]


def test_a_file_with_a_secret_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[endpoint.a]\nurl = 'h'\naccess_key = 'AK'\nsecret_key = 'hush'\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640; make it private: chmod 600"):
        load_config(path)
    path.chmod(0o600)
    config = load_config(path)
    assert "hush" not in repr(config)
    credentials = config.endpoint("a", {}).credentials
    assert (credentials.access_key, credentials.secret_key, credentials.source) == ("AK", "hush", str(path))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(latin)


def test_the_table_has_every_setting_with_a_reason() -> None:
    rows = list(settings_table())
    assert len({(row.table, row.name) for row in rows}) == len(rows) > 40
    assert all(row.reason and row.type and row.default for row in rows)
    for row in rows:
        wants = {"_bytes": "bytes", "_s": "seconds"}
        ending = next((ending for ending in wants if row.name.endswith(ending)), None)
        if ending and row.unit not in ("requests/s", "bytes/s"):
            assert row.unit == wants[ending]
    assert reason("s3block", "cache_bytes") == "read cache of a volume [4G]"
    with pytest.raises(KeyError):
        reason("s3block", "cash_bytes")


def test_defaults_pass_their_own_checks() -> None:
    assert Config().s3block == parse_config("[s3block]\niqn_prefix = 'iqn.2025-01.internal.bucketworks'").s3block


def test_the_guard_of_a_mirror_is_a_table_of_its_own() -> None:
    mirror = '[mirror.photos]\nsource = "memory:"\ntarget = "memory:"\n'
    config = parse_config(mirror + '[mirror.photos.guard]\nvanished_percent = 5.0\ncanaries = "a/canary"\n')
    guard = config.mirrors["photos"].guard
    assert (guard.vanished_percent, guard.canaries, guard.floor_keys) == (5.0, ("a/canary",), 10)
    with pytest.raises(ConfigError, match=r"\[mirror.photos.guard\]: unknown setting 'vanish_percent': did you mean"):
        parse_config(mirror + "[mirror.photos.guard]\nvanish_percent = 5.0\n")
    with pytest.raises(ConfigError, match=r"\[mirror.photos.guard\]: floor_keys: "):
        parse_config(mirror + "[mirror.photos.guard]\nfloor_keys = -1\n")
