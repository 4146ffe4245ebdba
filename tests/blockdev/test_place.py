"""What people type, and the volume it means."""

from pathlib import Path

import pytest

from blockdev.place import resolve
from s3core.settings import Config, ConfigError, parse_config

CONFIG = parse_config(
    """
[endpoint.site]
url = "http://127.0.0.1:1"
[volume.mail]
url = "s3://site/disks/prod/"
size_bytes = "1G"
sector_bytes = 4096
[volume.own]
url = "file:///srv/store"
state_dir = "/elsewhere"
"""
)


@pytest.mark.parametrize(
    ("text", "store_url", "name"),
    [
        ("mail", "s3://site/disks/prod", "mail"),
        ("s3://site/disks/prod/mail", "s3://site/disks/prod", "mail"),
        ("s3://site/disks/vm-1", "s3://site/disks", "vm-1"),
        ("file:///srv/store/vm1/", "file:///srv/store", "vm1"),
        ("memory:m/vm1", "memory:m", "vm1"),
        ("memory:m/deep/vm1", "memory:m/deep", "vm1"),
    ],
)
def test_names_and_urls(text: str, store_url: str, name: str) -> None:
    place = resolve(CONFIG, text, environ={"HOME": "/home/u"}, user=1000)
    assert (place.store_url, place.name, place.url) == (store_url, name, f"{store_url}/{name}")


def test_a_url_of_a_configured_volume_has_its_settings() -> None:
    assert resolve(CONFIG, "s3://site/disks/prod/mail").settings.sector_bytes == 4096
    assert resolve(CONFIG, "s3://site/disks/mail").settings.sector_bytes == 512
    assert resolve(CONFIG, "memory:m/x").settings.iqn == "iqn.2025-01.internal.bucketworks:x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://site/vm1", "names no volume in a store"),
        ("file:///vm1", "names no volume in a store"),
        ("file://host/a/vm1", "names no volume in a store"),
        ("http://site/a/vm1", "names no volume in a store"),
        ("memory:vm1", "names no volume in a store"),
        ("file:///srv/VM1", "no name for a volume"),
        ("file:///srv/" + "a" * 64, "no name for a volume"),
        ("file:///srv/..", "no name for a volume"),
        ("/srv/store/vm1", "no name for a volume"),
        ("", "no name for a volume"),
    ],
)
def test_what_is_neither(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(CONFIG, text)


def test_a_name_nobody_configured() -> None:
    with pytest.raises(ConfigError, match="did you mean mail"):
        resolve(CONFIG, "mial")


@pytest.mark.parametrize(
    ("text", "user", "environ", "state_dir"),
    [
        ("mail", 0, {"HOME": "/root"}, "/var/lib/bucketworks/mail"),
        ("mail", 1000, {"HOME": "/home/u"}, "/home/u/.local/state/bucketworks/mail"),
        ("mail", 1000, {"HOME": "/home/u", "XDG_STATE_HOME": "/state"}, "/state/bucketworks/mail"),
        ("mail", 1000, {"HOME": "/home/u", "XDG_STATE_HOME": "state"}, "/home/u/.local/state/bucketworks/mail"),
        ("own", 1000, {"HOME": "/home/u"}, "/elsewhere"),
    ],
)
def test_where_state_is_kept(text: str, user: int, environ: dict[str, str], state_dir: str) -> None:
    assert resolve(CONFIG, text, environ=environ, user=user).state_dir == Path(state_dir)


def test_a_configured_state_directory_is_everybodys() -> None:
    config: Config = parse_config('s3block.state_dir = "/data"')
    assert resolve(config, "memory:m/x", environ={"HOME": "/home/u"}, user=1000).state_dir == Path("/data/x")
