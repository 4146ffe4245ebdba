"""How a volume stands between its daemon, the kernel and the saved configuration, as `s3block lio status` tells it. Pure.

One rule: a problem says what is wrong and which command cures it; a volume without problems is reachable as its settings
say, and is so again after a boot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from blockdev.lio.found import Device, Found, Group, Target
from blockdev.lio.plan import Difference
from blockdev.lio.wanted import NEVER_WAIT
from s3core.quantities import shown_size


def condition(
    volume: str,
    found: Found,
    daemon: Mapping[str, Any] | None,
    saved: Mapping[str, Any],
    differing: Sequence[Difference] = (),
) -> dict[str, Any]:
    """`daemon`: its status, None where none serves the volume. `saved`: the saved configuration. `differing`: from what the
    settings want, where that is known."""
    device = found.device(volume)
    uio = next((item for item in found.uio if item.volume == volume), None)
    answer: dict[str, Any] = {
        "name": volume,
        "state": str(daemon["state"]) if daemon is not None else "not served",
        "size_bytes": daemon.get("size_bytes") if daemon is not None else None,
        "device": _device(device) if device is not None and device.ours else None,
        "uio": {"name": uio.name, "map_bytes": uio.map_bytes} if uio is not None else None,
        "handler": daemon.get("lio") if daemon is not None else None,
        "targets": [_target(target, group, lun) for target, group, lun in _exports(found, device)],
        "discovery_chap": bool(found.discovery.user),
        "saved": _is_saved(volume, saved),
    }
    return answer | {"problems": list(_problems(volume, found, daemon, answer, differing))}


def _exports(found: Found, device: Device | None) -> list[tuple[Target, Group, int]]:
    return list(found.exports(device)) if device is not None and device.ours else []


def _device(device: Device) -> dict[str, Any]:
    def number(attribute: str) -> int | None:
        value = device.attributes.get(attribute, "")
        return int(value) if value.lstrip("-").isdigit() else None

    return {
        "path": f"{device.hba}/{device.name}",
        "enabled": device.enabled,
        "serial": device.serial,
        "size_bytes": device.size_bytes,
        "sector_bytes": number("hw_block_size"),
        "data_area_mib": number("max_data_area_mb"),
        "command_timeout_s": number("cmd_time_out"),
        "blocked": device.blocked,
        "waits_for_handler": device.attributes.get("nl_reply_supported") not in (NEVER_WAIT, ""),
    }


def _target(target: Target, group: Group, lun: int) -> dict[str, Any]:
    chaps = [group.chap] if group.attributes.get("generate_node_acls") == "1" else [acl.chap for acl in group.acls]
    asked = group.attributes.get("authentication") == "1" and any(chap.user for chap in chaps)
    return {
        "iqn": target.iqn,
        "lun": lun,
        "open": group.enabled,
        "portals": [str(portal) for portal in group.portals],
        "anybody": group.attributes.get("generate_node_acls") == "1",
        "initiators": [acl.initiator for acl in group.acls],
        "chap": ("mutual" if any(chap.mutual_user for chap in chaps) else "one way") if asked else "none",
        "sessions": [{"initiator": session.initiator, "address": session.address} for session in group.sessions],
    }


def _is_saved(volume: str, saved: Mapping[str, Any]) -> bool:
    return any(
        entry.get("plugin") == "user" and entry.get("name") == volume for entry in saved.get("storage_objects", [])
    )


def _problems(
    volume: str,
    found: Found,
    daemon: Mapping[str, Any] | None,
    answer: Mapping[str, Any],
    differing: Sequence[Difference],
) -> list[str]:
    attach = f"s3block lio attach {volume}"
    serve = f"systemctl start s3block@{volume}, or s3block serve {volume}"
    device = answer["device"]
    problems = []
    if daemon is None:
        waits = "" if device is None else ": its initiators wait"
        problems.append(f"no daemon serves it{waits}; {serve}")
    elif daemon["state"] != "ready":
        failure = f": {daemon['failure']}" if daemon.get("failure") else ""
        problems.append(f"its daemon is {daemon['state']}{failure}")
    if daemon is not None and daemon.get("door", "lio") != "lio":
        problems.append(f'its daemon serves it by the portal; set door = "lio" in [volume.{volume}] and serve it again')
    if answer["handler"] and answer["handler"].get("problem"):
        problems.append(f"its daemon says: {answer['handler']['problem']}")
    if not found.loaded:
        return [*problems, f"the kernel's target is not loaded; {attach}"]
    if device is None:
        return [*problems, f"it is not attached; {attach}"]
    if not device["enabled"] or answer["uio"] is None:
        problems.append(f"its device is not enabled; {attach}")
    if daemon is not None and daemon.get("size_bytes") not in (None, device["size_bytes"]):
        sizes = f"{shown_size(daemon['size_bytes'])}, its device {shown_size(device['size_bytes'])}"
        problems.append(f"it has {sizes}; {attach}")
    if device["waits_for_handler"]:
        problems.append(f"who changes its device would wait for a handler that may be dead; {attach}")
    if device["blocked"]:
        problems.append(f"its device answers BUSY to everything (block_dev); {attach}")
    if not answer["targets"]:
        problems.append(f"no target offers it; {attach}")
    for target in answer["targets"]:
        if not target["open"]:
            problems.append(f"target {target['iqn']} is closed; {attach}")
        elif not target["portals"]:
            problems.append(f"target {target['iqn']} listens nowhere; {attach}")
        elif not target["anybody"] and not target["initiators"]:
            problems.append(f"nobody may log in to target {target['iqn']}; {attach}")
    if not answer["saved"]:
        problems.append(f"it is not in the saved configuration: gone after a boot; {attach}")
    problems += [f"{difference.text}; {attach} --replace" for difference in differing]
    return problems
