"""The slice of Proxmox VE's API description that the fake stands on, and what it makes of requests and answers."""

import json
import os
from pathlib import Path

import pytest

from envctl.fake_pve.cluster import SECRET, TOKEN, Refusal, small_cluster
from envctl.fake_pve.schema import description, route, wrong_answer, wrong_parameters

WHOLE = Path(os.environ.get("PVE_API_SCHEMA", Path(__file__).parents[4] / "shared" / "pve" / "pve-api-schema.json"))
AUTHORIZATION = f"PVEAPIToken={TOKEN}={SECRET}"


@pytest.mark.skipif(
    not WHOLE.exists(), reason="the whole API description of Proxmox VE is not at hand (PVE_API_SCHEMA)"
)
def test_the_slice_is_the_same_as_in_the_whole_description() -> None:
    whole = json.loads(WHOLE.read_text(encoding="utf-8"))
    for path, methods in description().items():
        for method, rule in methods.items():
            assert rule == whole["paths"][path][method], f"{method} {path}"
    slice_file = json.loads(Path("envctl/fake_pve/schema.json").read_text(encoding="utf-8"))
    assert (slice_file["licence"], slice_file["source"]) == (whole["licence"], whole["source"])


def test_every_described_method_may_be_called_with_a_token() -> None:
    for path, methods in description().items():
        for method, rule in methods.items():
            assert rule.get("allowtoken"), f"{method} {path}"


CLONE = {"node": "pve1", "vmid": "9000", "newid": "90000"}


@pytest.mark.parametrize(
    ("method", "path", "parameters", "wrong"),
    [
        ("POST", "/nodes/pve1/qemu/9000/clone", CLONE, set()),
        ("POST", "/nodes/pve1/qemu/9000/clone", {**CLONE, "newid": "99"}, {"newid"}),
        ("POST", "/nodes/pve1/qemu/9000/clone", {**CLONE, "newid": "1000000000"}, {"newid"}),
        ("POST", "/nodes/pve1/qemu/9000/clone", {**CLONE, "name": "no_dns"}, {"name"}),
        ("POST", "/nodes/pve1/qemu/9000/clone", {**CLONE, "full": "maybe"}, {"full"}),
        ("POST", "/nodes/pve1/qemu/9000/clone", {**CLONE, "tags": "x"}, {"tags"}),
        ("POST", "/nodes/pve1/qemu/9000/clone", {"node": "pve1", "vmid": "9000"}, {"newid"}),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "tags": "a;b-c"}, set()),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "tags": "a b,-c"}, {"tags"}),
        (
            "PUT",
            "/nodes/pve1/qemu/9000/config",
            {"node": "pve1", "vmid": "9000", "smbios1": "base64=1,serial=QQ=="},
            set(),
        ),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "smbios1": "serial=a b"}, {"smbios1"}),
        (
            "PUT",
            "/nodes/pve1/qemu/9000/config",
            {"node": "pve1", "vmid": "9000", "agent": "enabled=1,type=virtio"},
            set(),
        ),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "agent": "1,colour=red"}, {"agent"}),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "serial0": "socket"}, set()),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "serial0": "tty"}, {"serial0"}),
        ("PUT", "/nodes/pve1/qemu/9000/config", {"node": "pve1", "vmid": "9000", "force": "1"}, {"delete"}),
        (
            "PUT",
            "/nodes/pve1/qemu/9000/resize",
            {"node": "pve1", "vmid": "9000", "disk": "scsi0", "size": "20G"},
            set(),
        ),
        (
            "PUT",
            "/nodes/pve1/qemu/9000/resize",
            {"node": "pve1", "vmid": "9000", "disk": "scsi99", "size": "20P"},
            {"disk", "size"},
        ),
        (
            "POST",
            "/nodes/pve1/qemu/9000/status/shutdown",
            {"node": "-", "vmid": "1", "timeout": "-1"},
            {"node", "vmid", "timeout"},
        ),
    ],
)
def test_parameters_are_judged_as_the_description_says(
    method: str, path: str, parameters: dict[str, str], wrong: set[str]
) -> None:
    found = route(method, path)
    assert found is not None
    assert set(wrong_parameters(found[1], parameters)) == wrong


def test_answers_are_judged_too() -> None:
    status = description()["/nodes/{node}/tasks/{upid}/status"]["GET"]["returns"]
    good = {
        "upid": "UPID:",
        "node": "n",
        "pid": 1,
        "pstart": 1,
        "starttime": 1,
        "type": "t",
        "id": "1",
        "user": "u",
        "status": "running",
    }
    assert wrong_answer(status, good) == []
    assert wrong_answer(status, {**good, "status": "done", "pid": "1"}) != []
    assert wrong_answer(status, {key: value for key, value in good.items() if key != "upid"}) == ["data.upid: missing"]
    proxy = description()["/nodes/{node}/qemu/{vmid}/termproxy"]["POST"]["returns"]
    assert wrong_answer(proxy, {"port": 1, "ticket": "t", "upid": "u", "user": "u", "more": 1}) == [
        "data.more: not defined"
    ]


def test_the_fake_refuses_what_the_slice_does_not_have_and_remembers_it() -> None:
    fake = small_cluster()
    with pytest.raises(Refusal) as refused:
        fake.handle("GET", "/nodes/pve1/hardware", {}, AUTHORIZATION, "pve1")
    assert refused.value.status == 501
    with pytest.raises(Refusal) as refused:
        fake.handle(
            "POST",
            "/nodes/pve1/qemu/9000/clone",
            {"newid": "90000", "pool": "envctl", "nonsense": "1"},
            AUTHORIZATION,
            "pve1",
        )
    assert refused.value.status == 400
    assert list(refused.value.errors) == ["nonsense"]
    assert len(fake.violations) == 2


def test_a_separated_token_has_what_both_it_and_its_user_have() -> None:
    fake = small_cluster()
    fake.access.revoke(TOKEN.partition("!")[0], "/pool/envctl", "VM.PowerMgmt")
    assert "VM.PowerMgmt" not in fake.access.rights(TOKEN, "/pool/envctl", {})
    fake.access.grant("other@pve!x", "/vms", ["VM.Audit"])
    assert fake.access.allows("other@pve!x", "/vms/100", "VM.Audit", {})
    fake.access.grant("other@pve!x", "/vms/100", ["VM.Console"])
    assert not fake.access.allows("other@pve!x", "/vms/100", "VM.Audit", {}), "a deeper entry replaces the ones above"
    for wrong in ("", "PVEAPIToken=envctl@pve!console=wrong", "Bearer x"):
        with pytest.raises(Refusal) as refused:
            fake.handle("GET", "/version", {}, wrong, "pve1")
        assert refused.value.status == 401
