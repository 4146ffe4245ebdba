"""The methods of files storages over the real socket: what Proxmox VE sees, and what the bucket has then."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.service.collecting import collect_where_due
from s3core.memory_bucket import MemoryService
from tests.plugin.service_world import Node, ToldError, ask_all, wait_until

BACKUP = "backup/vzdump-qemu-100-2026_11_22-10_00_00.vma.zst"
KEY = "s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.vma.zst"


@pytest.fixture(autouse=True)
def simple_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole objects; `plugin.download` has tests of its own."""

    def download(bucket: Any, key: str, path: Path, *, facts: Any, progress: Any, stop: Any) -> Any:
        path.write_bytes(bucket.get(key, if_match=facts.etag))
        progress(facts.size, facts.size)
        return facts

    monkeypatch.setattr("plugin.service.files.download", download)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.add("s3")
    yield made.start()
    made.stop()


def test_ping(node: Node) -> None:
    assert node.ask("ping", "")["pid"] == os.getpid()
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600


def test_status_tells_usage_and_quota(node: Node) -> None:
    bucket = node.bucket()
    bucket.put("s3/template/iso/a.iso", b"12345")
    assert node.names() == ["iso/a.iso"]
    told = node.ask("status")
    assert (told["used"], told["active"], told["total"]) == (5, True, 5 + (1 << 50))
    node.add("s3", bw_quota=2)
    wait_until(lambda: node.ask("status")["total"] == 2 << 30)
    assert node.ask("status")["avail"] == (2 << 30) - 5


def test_a_list_has_what_proxmox_ve_shows(node: Node) -> None:
    bucket = node.bucket()
    bucket.put(KEY, b"123")
    bucket.put(KEY + ".notes", "größe\nline two".encode())
    bucket.put(KEY + ".protected", b"")
    bucket.put("s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.log", b"log")
    bucket.put("s3/dump/vzdump-lxc-200-2026_01_02-03_04_05.tar.zst", b"1")
    bucket.put("s3/.bucketworks/index/" + KEY.removeprefix("s3/") + ".index", b"x")
    bucket.put("s3/template/iso/a.iso", b"1234")
    bucket.put("s3/snippets/hook.sh", b"#!")
    bucket.put("other/template/iso/b.iso", b"1234")
    node.forget()
    found = {one["volname"]: one for one in node.ask("list")["volumes"]}
    assert set(found) == {BACKUP, "backup/vzdump-lxc-200-2026_01_02-03_04_05.tar.zst", "iso/a.iso", "snippets/hook.sh"}
    made = int(time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1)))
    assert found[BACKUP] == {
        "volname": BACKUP,
        "content": "backup",
        "format": "vma.zst",
        "size": 3,
        "ctime": made,
        "vmid": 100,
        "subtype": "qemu",
        "notes": "größe",
        "protected": 1,
    }
    assert node.names(vmid=200) == ["backup/vzdump-lxc-200-2026_01_02-03_04_05.tar.zst"]
    assert node.names(content=["iso"]) == ["iso/a.iso"]
    with pytest.raises(ToldError) as told:
        node.ask("list", content=["images"])
    assert told.value.code == "configuration"


def test_a_list_is_real_when_the_last_one_is_old(node: Node) -> None:
    assert node.names() == []
    node.bucket().put("s3/template/iso/a.iso", b"1")
    assert node.ask("list")["volumes"] == []
    node.forget()
    assert [one["volname"] for one in node.ask("list")["volumes"]] == ["iso/a.iso"]


def test_notes_and_protection(node: Node) -> None:
    bucket = node.bucket()
    bucket.put(KEY, b"123")
    assert node.ask("attribute_get", volname=BACKUP, name="notes") == {"value": ""}
    node.ask("attribute_set", volname=BACKUP, name="notes", value="first\nsecond ä")
    assert bucket.get(KEY + ".notes") == "first\nsecond ä".encode()
    assert node.ask("attribute_get", volname=BACKUP, name="notes") == {"value": "first\nsecond ä"}
    node.ask("attribute_set", volname=BACKUP, name="protected", value=1)
    assert bucket.head(KEY + ".protected").size == 0
    assert node.ask("attribute_get", volname=BACKUP, name="protected") == {"value": 1}
    (told,) = node.ask("list")["volumes"]
    assert (told["notes"], told["protected"]) == ("first", 1)
    with pytest.raises(ToldError, match="it is protected") as refused:
        node.ask("free", volname=BACKUP)
    assert refused.value.code == "refused"
    node.ask("attribute_set", volname=BACKUP, name="protected", value="0")
    node.ask("attribute_set", volname=BACKUP, name="notes", value="")
    assert bucket.list_page().keys == [KEY.encode()]


@pytest.mark.parametrize("method", ["size", "free", "attribute_set", "thaw", "fetch"])
def test_a_volume_that_is_not_there(node: Node, method: str) -> None:
    name = "iso/none.iso" if method == "fetch" else BACKUP
    with pytest.raises(ToldError) as told:
        node.ask(method, volname=name, name="notes", value="x", days=1)
    assert told.value.code == "not-found"
    assert node.bucket().list_page().keys == []


@pytest.mark.parametrize("volname", ["", "iso/../../etc/passwd", "images/100/x.qcow2", "iso/a/b.iso", "backup/x"])
def test_a_name_that_is_none(node: Node, volname: str) -> None:
    with pytest.raises(ToldError) as told:
        node.ask("free", volname=volname)
    assert told.value.code == "configuration"


def test_free_takes_everything_beside_it(node: Node) -> None:
    bucket = node.bucket()
    for key in (KEY, KEY + ".notes", KEY.replace(".vma.zst", ".log"), f"s3/.bucketworks/index/{KEY[3:]}.index"):
        bucket.put(key, b"1")
    bucket.put("s3/dump/vzdump-qemu-101-2026_11_22-10_00_00.vma.zst", b"1")
    node.names()
    node.ask("free", volname=BACKUP)
    assert bucket.list_page().keys == [b"s3/dump/vzdump-qemu-101-2026_11_22-10_00_00.vma.zst"]
    assert node.names() == ["backup/vzdump-qemu-101-2026_11_22-10_00_00.vma.zst"]
    assert node.attached().place.catalogue.usage().stored == 1


def test_fetch_brings_a_real_file_and_follows_the_store(node: Node) -> None:
    bucket = node.bucket()
    bucket.put("s3/template/iso/a.iso", b"one")
    told, logs = ask_all(node.socket, "fetch", "s3", volname="iso/a.iso")
    path = Path(told["path"])
    assert path == node.directory / "state/s3/cache/template/iso/a.iso"
    assert path.read_bytes() == b"one"
    assert node.ask("path", volname="iso/a.iso") == {"path": str(path)}
    requests = len(node.gates["s3"].requests)
    assert node.ask("fetch", volname="iso/a.iso") == {"path": str(path)}
    assert [one[0] for one in node.gates["s3"].requests[requests:] if one[0] != "list"] == ["head"]
    bucket.put("s3/template/iso/a.iso", b"other")
    node.ask("fetch", volname="iso/a.iso")
    assert path.read_bytes() == b"other"
    bucket.delete("s3/template/iso/a.iso")
    with pytest.raises(ToldError) as gone:
        node.ask("fetch", volname="iso/a.iso")
    assert gone.value.code == "not-found"
    assert not path.exists()
    assert isinstance(logs, list)


def test_backups_are_read_through_the_mount(node: Node) -> None:
    assert node.ask("path", volname=BACKUP) == {"path": f"{node.directory}/mnt/s3/dump/{BACKUP[7:]}"}
    with pytest.raises(ToldError, match="through the mount"):
        node.ask("fetch", volname=BACKUP)


def test_warm_fetches_isos_and_templates(node: Node) -> None:
    bucket = node.bucket()
    for key in ("template/iso/a.iso", "template/cache/t.tar.zst", "import/i.raw"):
        bucket.put(f"s3/{key}", b"1")
    node.forget()
    assert node.ask("warm")["fetched"] == ["iso/a.iso", "vztmpl/t.tar.zst"]
    assert node.ask("warm", volnames=["import/i.raw"])["fetched"] == ["import/i.raw"]
    assert (node.directory / "state/s3/cache/import/i.raw").exists()


def test_snippets_are_always_here(node: Node) -> None:
    hook = node.directory / "state/s3/cache/snippets/hook.sh"
    bucket = node.bucket()
    bucket.put("s3/snippets/hook.sh", b"#!/bin/sh\n")
    node.names()
    wait_until(hook.exists)
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755
    bucket.put("s3/snippets/hook.sh", b"#!/bin/sh\nexit 0\n")
    node.names()
    wait_until(lambda: hook.read_bytes().endswith(b"exit 0\n"))
    bucket.delete("s3/snippets/hook.sh")
    node.names()
    wait_until(lambda: not hook.exists())


def test_a_snippet_that_cannot_be_kept_keeps_no_other_away(node: Node) -> None:
    folder = node.directory / "state/s3/cache/snippets"
    (folder / "a").mkdir(parents=True)
    (folder / "a/file").write_text("in the way of the snippet a")
    for name in ("a", "hook.sh"):
        node.bucket().put(f"s3/snippets/{name}", b"#!/bin/sh\n")
    node.names()
    wait_until((folder / "hook.sh").exists)
    assert (folder / "a").is_dir()


def test_the_identity_is_the_buckets(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    told = node.ask("identity")["identity"]
    assert node.bucket().get("s3/.bucketworks/identity").decode() == told
    other = Node(tmp_path_factory.mktemp("other"), node.service)
    other.add("renamed", bw_prefix="s3")
    other.start()
    assert other.ask("identity", "renamed")["identity"] == told
    other.stop()


def test_two_nodes_see_each_other(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Node(tmp_path_factory.mktemp("other"), node.service)
    other.add("s3")
    other.start()
    node.bucket().put(KEY, b"123")
    assert other.names() == node.names() == [BACKUP]
    node.ask("attribute_set", volname=BACKUP, name="notes", value="from one")
    assert other.ask("attribute_get", volname=BACKUP, name="notes") == {"value": "from one"}
    other.ask("free", volname=BACKUP)
    with pytest.raises(ToldError) as told:
        node.ask("size", volname=BACKUP)
    assert told.value.code == "not-found"
    assert node.names() == []
    other.stop()


def test_check_tries_a_configuration(node: Node) -> None:
    config = {
        "type": "bucketfiles",
        "path": "/mnt/pve/new",
        "bw-bucket": "bucket",
        "bw-prefix": "new",
        "bw-endpoint": "http://127.0.0.1:9",
        "bw-credentials": "none",
    }
    node.ask("check", "new", config=config, secrets={})
    assert node.bucket().head("new/.bucketworks/identity").size == 36
    with pytest.raises(ToldError, match="bw-bucket") as told:
        node.ask("check", "new", config={"type": "bucketfiles"}, secrets={})
    assert told.value.code == "configuration"
    with pytest.raises(ToldError, match="lies in bucket/s3/ already") as taken:
        node.ask("check", "new", config=config | {"bw-prefix": "s3/below"}, secrets={})
    assert taken.value.code == "refused"
    node.gates["new"].state = "denied"
    with pytest.raises(ToldError) as denied:
        node.ask("check", "new", config=config, secrets={})
    assert denied.value.code == "denied"


def test_usage_tells_requests_costs_and_contents(node: Node) -> None:
    node.bucket().put(KEY, b"12345")
    node.names()
    told = node.ask("usage")
    assert (told["objects"], told["bytes"]) == (1, 5)
    assert told["contents"]["backup"] == {"objects": 1, "bytes": 5}
    assert told["requests"]["list"]["requests"] >= 1
    assert told["month"]["requests"] >= 1
    assert told["cache"]["bound"] == 32 << 30


def test_a_budget_that_refuses(node: Node) -> None:
    node.add("s3", bw_budget_requests=1, bw_budget_action="refuse")
    wait_until(lambda: node.attached().storage.budget_requests == 1)
    node.bucket().put("s3/template/iso/a.iso", b"1")
    node.bucket().put(KEY, b"1")
    with pytest.raises(ToldError, match="budget") as told:
        node.ask("fetch", volname="iso/a.iso")
    assert told.value.code == "refused"
    node.ask("free", volname=BACKUP)


def test_storages_come_and_go(node: Node) -> None:
    node.add("late", bw_prefix="late")
    node.bucket().put("late/template/iso/a.iso", b"1")
    assert node.names("late") == ["iso/a.iso"]
    node.remove("late")
    wait_until(lambda: "late" not in {one.storage.id for one in node.core.storages.all()} if node.core else False)
    with pytest.raises(ToldError) as told:
        node.ask("list", "late")
    assert told.value.code == "not-found"
    node.add("bad", bw_quota="many")
    with pytest.raises(ToldError, match="bw-quota") as wrong:
        node.ask("list", "bad")
    assert wrong.value.code == "configuration"
    assert node.names("s3") == []


def test_activate_and_deactivate(node: Node) -> None:
    assert node.ask("activate") == {"mounted": True, "reason": ""}
    assert node.mounts.mounted == {"s3"}
    assert node.ask("deactivate") == {}
    assert node.mounts.mounted == set()


def test_disks_have_no_files(node: Node) -> None:
    node.add("disks", type="bucketdisks")
    with pytest.raises(ToldError) as told:
        node.ask("list", "disks")
    assert told.value.code == "unsupported"
    assert node.ask("status", "disks")["active"] is True


def test_versions_locks_and_holds(tmp_path: Path) -> None:
    service = MemoryService()
    bucket = service.bucket("bucket", object_lock=True)
    node = Node(tmp_path, service)
    node.add("s3", bw_object_lock="hold")
    node.start()
    try:
        bucket.put(KEY, b"123")
        node.ask("attribute_set", volname=BACKUP, name="protected", value=1)
        assert bucket.legal_hold(KEY) is True
        node.ask("attribute_set", volname=BACKUP, name="protected", value=0)
        assert bucket.legal_hold(KEY) is False
        bucket.set_legal_hold(KEY, True)
        with pytest.raises(ToldError, match="legal hold") as told:
            node.ask("free", volname=BACKUP)
        assert told.value.code == "refused"
        bucket.set_legal_hold(KEY, False)
        node.ask("free", volname=BACKUP)
        assert node.names() == []

        # A delete that was killed between hiding and deleting: a week later the versions go, once a day is looked.
        bucket.put(KEY, b"456")
        bucket.delete(KEY)
        later = time.time() + 8 * 86_400
        assert collect_where_due(node.attached(), time.time()) == 0
        assert collect_where_due(node.attached(), later) == 1
        assert collect_where_due(node.attached(), later + 60) == 0
        assert not [one for one in bucket.list_versions().versions if one.key == KEY]
    finally:
        node.stop()
