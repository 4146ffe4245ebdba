"""The saved configuration: one volume's entries change, all others stay, and a crash leaves the old file or the new."""

import json
from pathlib import Path
from typing import Any

import pytest

from blockdev.errors import LocalDiskFailed, Refused
from blockdev.lio import saved

IQN = "iqn.2025-01.internal.bucketworks:"


def device(name: str, plugin: str = "user", **more: Any) -> dict[str, Any]:
    return {"plugin": plugin, "name": name} | more


def target(name: str, *volumes: str, fabric: str = "iscsi") -> dict[str, Any]:
    luns = [{"index": number, "storage_object": f"/backstores/user/{volume}"} for number, volume in enumerate(volumes)]
    return {"wwn": f"{IQN}{name}", "fabric": fabric, "tpgs": [{"tag": 1, "luns": luns}]}


OTHERS = {
    "storage_objects": [device("disk", "block"), device("vm1", "fileio"), device("vm9")],
    "targets": [target("disk", "disk"), target("loop", "vm1", fabric="loopback"), target("vm9", "vm9")],
    "fabric_modules": [{"name": "iscsi", "discovery_userid": "x"}],
}


def test_a_volume_is_added_and_the_rest_is_kept_as_it_was_saved() -> None:
    now = {
        # What the kernel has of the others at the moment is not what was saved: that stays out.
        "storage_objects": [device("vm1", size=5), device("disk", "block", changed=True)],
        "targets": [target("vm1", "vm1"), target("half-made")],
        "fabric_modules": [],
    }
    merged = saved.merged(OTHERS, now, "vm1", [f"{IQN}vm1"])
    assert merged["storage_objects"] == [*OTHERS["storage_objects"], device("vm1", size=5)]
    assert merged["targets"] == [*OTHERS["targets"], target("vm1", "vm1")]
    assert merged["fabric_modules"] == OTHERS["fabric_modules"]
    assert saved.merged(merged, now, "vm1", [f"{IQN}vm1"]) == merged


def test_discovery_is_saved_only_with_what_we_set() -> None:
    now = {"fabric_modules": [{"name": "iscsi", "discovery_userid": "us"}]}
    assert saved.merged(OTHERS, now, "vm1", [])["fabric_modules"] == OTHERS["fabric_modules"]
    assert saved.merged(OTHERS, now, "vm1", [], discovery=True)["fabric_modules"] == now["fabric_modules"]


def test_a_volume_is_taken_out_and_a_target_it_shared_stays_with_the_others_luns() -> None:
    document = {"storage_objects": [device("vm1"), device("vm2")], "targets": [target("both", "vm1", "vm2")]}
    now = {"storage_objects": [device("vm2")], "targets": [target("both", "vm2")]}
    merged = saved.merged(document, now, "vm1", [f"{IQN}both"])
    assert merged["storage_objects"] == [device("vm2")]
    assert merged["targets"] == [target("both", "vm2")]
    gone = saved.merged(merged, {}, "vm2", [])
    assert gone["storage_objects"] == gone["targets"] == []


def test_the_file_is_private_and_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "target/saveconfig.json"
    assert saved.read(path) == {"storage_objects": [], "targets": [], "fabric_modules": []}
    assert saved.write(path, OTHERS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert saved.read(path) == OTHERS
    assert not saved.write(path, OTHERS)
    assert json.loads(path.read_text())["targets"] == OTHERS["targets"]
    assert [item.name for item in path.parent.iterdir()] == ["saveconfig.json"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "saveconfig.json"
    saved.write(path, OTHERS)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(5, "no")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(LocalDiskFailed):
            saved.write(path, {})
    assert saved.read(path) == OTHERS
    assert saved.write(path, {"targets": []})
    assert saved.read(path) == {"targets": []}


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_something_else_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "saveconfig.json"
    path.write_text(text)
    with pytest.raises(Refused, match="not a saved configuration"):
        saved.read(path)


def test_the_distributions_folder_is_taken_if_it_is_there(tmp_path: Path) -> None:
    debian, others = tmp_path / "rtslib-fb-target", tmp_path / "target"
    assert saved.folder([debian, others]) == others
    others.mkdir()
    assert saved.folder([debian, others]) == others
    debian.mkdir()
    assert saved.folder([debian, others]) == debian
