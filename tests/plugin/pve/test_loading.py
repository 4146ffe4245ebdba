"""The real loader takes our plugins, without a word, alone and beside others; and what they bring harms nobody else.

Needs PVE_SRC (`tests.plugin.pve.node`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.properties import PROPERTIES
from tests.plugin.pve.node import PERL_PACKAGES, Node, PveError, checkouts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not checkouts(), reason=f"PVE_SRC names no checkouts of Proxmox VE; they also need {PERL_PACKAGES}"
    ),
]

# fmt: off
COMMON_NAMES = [
    "endpoint", "bucket", "region", "access_key", "secret_key", "access-key", "secret-key", "prefix",
    "s3-endpoint", "s3-bucket", "cache", "quota", "encryption", "storage_class", "multipart_chunk_size",
    "max_concurrent_uploads", "connection_timeout", "kms_key_id", "lifecycle_enabled", "credentials", "rate",
    "transition_days", "glacier_days", "use_ssl", "verify_ssl", "api_url", "api_key", "user", "passphrase",
    "socket", "debug",
]
# fmt: on
"""Which public plugins define without a prefix, or might."""


def foreign_plugin(tree: Path, name: str, properties: list[str]) -> None:
    """A plugin of somebody else, which defines these."""
    place = tree / "PVE/Storage/Custom"
    place.mkdir(parents=True)
    defined = "".join(f"'{one}' => {{ type => 'string', description => 'x' }}, " for one in properties)
    options = "".join(f"'{one}' => {{ optional => 1 }}, " for one in properties)
    (place / f"{name}.pm").write_text(
        f"package PVE::Storage::Custom::{name};\nuse strict;\nuse warnings;\nuse base qw(PVE::Storage::Plugin);\n"
        f"sub api {{ return PVE::Storage::APIVER() }}\nsub type {{ return '{name.lower()}' }}\n"
        "sub plugindata { return { content => [{ backup => 1 }, { backup => 1 }] } }\n"
        f"sub properties {{ return {{ {defined} }} }}\nsub options {{ return {{ {options} }} }}\n1;\n"
    )


@pytest.fixture(params=checkouts(), ids=lambda path: path.name)
def checkout(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def nodes(checkout: Path, tmp_path: Path) -> Iterator[list[Node]]:
    made: list[Node] = []
    yield made
    for node in made:
        node.stop()


def loaded(nodes: list[Node], checkout: Path, tmp_path: Path, *plugins: Path) -> Node:
    node = Node(checkout, tmp_path / f"node{len(nodes)}", {}, plugins=plugins)
    nodes.append(node)
    node.start()
    return node


def test_without_a_word(nodes: list[Node], checkout: Path, tmp_path: Path) -> None:
    node = loaded(nodes, checkout, tmp_path)
    assert node.loaded == ""
    for type in sorted(path.stem for path in (node.root / "usr/share/perl5/PVE/Storage/Custom").iterdir()):
        wanted = type.removesuffix("Plugin").lower()
        with pytest.raises(PveError, match=f"{wanted}.*bw-bucket|bw-bucket"):
            node.api("POST", "/storage", storage="s1", type=wanted)
    assert "local" in node.pvesm("status")


def test_beside_plugins_that_define_common_names(nodes: list[Node], checkout: Path, tmp_path: Path) -> None:
    assert not {one.name for one in PROPERTIES} & set(COMMON_NAMES)
    foreign_plugin(tmp_path / "first", "AaaPlugin", COMMON_NAMES[::2])
    foreign_plugin(tmp_path / "second", "ZzzPlugin", COMMON_NAMES[1::2])
    node = loaded(nodes, checkout, tmp_path, tmp_path / "first", tmp_path / "second")
    assert node.loaded == ""
    assert [one["storage"] for one in node.api("GET", "/storage").data] == ["local"]


def test_two_plugins_with_one_name_take_everything_down(nodes: list[Node], checkout: Path, tmp_path: Path) -> None:
    """Why ours are prefixed: this is what a name in common does. It would also tell that the trap has gone."""
    foreign_plugin(tmp_path / "first", "AaaPlugin", ["bucket"])
    foreign_plugin(tmp_path / "second", "ZzzPlugin", ["bucket"])
    with pytest.raises(PveError, match="duplicate property 'bucket'"):
        loaded(nodes, checkout, tmp_path, tmp_path / "first", tmp_path / "second")


def test_storages_of_others_can_still_be_changed(nodes: list[Node], checkout: Path, tmp_path: Path) -> None:
    """With `isolate-properties` in a plugin's data, pve-common 9.2.1 asks for `type` in every update, of any storage, and
    refuses `pvesm set` and the web interface's edits without it. So ours do not set it."""
    node = loaded(nodes, checkout, tmp_path)
    (tmp_path / "files").mkdir()
    node.api("POST", "/storage", storage="other", type="dir", path=str(tmp_path / "files"), content="iso")
    node.api("PUT", "/storage/other", storage="other", content="iso,backup")
    assert set(node.api("GET", "/storage/other", storage="other").data["content"].split(",")) == {"iso", "backup"}
    node.pvesm("set", "other", "--content", "iso")
