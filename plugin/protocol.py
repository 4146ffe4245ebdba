"""What crosses the socket between Proxmox VE's Perl and the core: one JSON object a line. docs/protocol/pve-socket.md.

    -> {"v":1,"id":"7f","method":"list","storage":"s3","args":{"vmid":100},"deadline_ms":10000}
    <- {"id":"7f","log":"fetching debian.iso: 120 of 650 MiB"}
    <- {"id":"7f","result":{...}}   or   {"id":"7f","error":{"code":"denied","message":"...","hint":"...","retryable":false}}

One rule: pure, and one connection is one call: a forked worker of Proxmox VE keeps no state of ours. An answer comes before
the call's deadline, by which the core gives up by itself; a method of long duration says something each HEARTBEAT_S.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from plugin.configuration import in_properties
from plugin.errors import BadVolume, code_of, retryable

VERSION: Final = 1
LINE_BYTES_MAX: Final = 16 << 20
HEARTBEAT_S: Final = 10.0
SOCKET_NAME: Final = "pve.sock"


@dataclass(frozen=True, slots=True)
class Method:
    """`deadline_ms`: what a caller gives it who says nothing; 0: as long as it takes, with heartbeats. `arguments` and
    `result` are for the documents."""

    name: str
    deadline_ms: int
    about: str
    arguments: str = ""
    result: str = ""


METHODS: Final[tuple[Method, ...]] = (
    Method("ping", 2_000, "whether the core is there", "", "version, pid"),
    Method(
        "status", 2_000, "numbers as last seen; asks no store", "", "total, avail, used, active, reason, checked_at"
    ),
    Method("check", 20_000, "try a configuration against the store before it is kept", "config, secrets", ""),
    Method("activate", 5_000, "have the mount, without waiting for the store", "", "mounted, reason"),
    Method("deactivate", 20_000, "take the mount away; refused while files are open, or disks active", "", ""),
    Method(
        "list",
        10_000,
        "volumes, from a listing no older than ten seconds",
        "vmid, content",
        "volumes: volname, content, format, size, ctime, vmid, subtype, notes, protected",
    ),
    Method("path", 2_000, "where the volume is, or will be once fetched; asks no store", "volname", "path"),
    Method("fetch", 0, "a file of the local cache, whole and as the store has it", "volname", "path"),
    Method("size", 10_000, "of one volume", "volname", "size, format, ctime"),
    Method("attribute_get", 5_000, "notes or protected", "volname, name", "value"),
    Method("attribute_set", 10_000, "notes or protected", "volname, name, value", ""),
    Method("free", 30_000, "delete a volume in the bucket", "volname", ""),
    Method("thaw", 10_000, "ask for an archived object to be made readable", "volname, days", "state"),
    Method("config", 20_000, "the guest's configuration in a backup", "volname", "text"),
    Method("identity", 5_000, "what this storage is, wherever it is attached", "", "identity"),
    Method("usage", 5_000, "bytes, objects, requests, money this month", "", "see docs/plugin/service.md"),
    Method("warm", 0, "fetch volumes into the cache ahead of time", "volnames", "fetched"),
    Method("disk_alloc", 30_000, "make a disk", "vmid, name, size_bytes, format", "volname"),
    Method("disk_free", 30_000, "remove a disk", "volname", ""),
    Method("disk_list", 10_000, "disks", "vmid", "volumes"),
    Method("disk_size", 10_000, "of one disk", "volname", "size, used, parent"),
    Method("disk_resize", 30_000, "grow a disk", "volname, size_bytes", "size"),
    Method("disk_snapshot", 30_000, "keep a state", "volname, snap", ""),
    Method("disk_snapshot_delete", 30_000, "forget a state", "volname, snap", ""),
    Method("disk_rollback", 30_000, "go back to a state", "volname, snap", ""),
    Method("disk_snapshots", 10_000, "states that are kept", "volname", "snapshots: name, id, timestamp"),
    Method("disk_clone", 30_000, "a disk that begins as a state of another", "volname, snap, vmid", "volname"),
    Method("disk_base", 30_000, "make a disk a template", "volname", "volname"),
    Method("disk_rename", 30_000, "give a disk another owner", "volname, vmid, name", "volname"),
    Method("disk_activate", 55_000, "have it served on this node", "volname, snap, kernel", "path, url"),
    Method("disk_deactivate", 55_000, "carry it to the bucket and let it go", "volname", ""),
    Method("disk_path", 2_000, "where it is served", "volname, snap", "path, url"),
)
BY_NAME: Final = {method.name: method for method in METHODS}


@dataclass(frozen=True, slots=True)
class Request:
    id: str
    method: str
    storage: str
    args: dict[str, Any] = field(default_factory=dict)
    deadline_ms: int = 0
    """0: no limit."""


def decode_request(line: bytes | str) -> Request:
    """BadVolume (code `configuration`) for what is no request of this version."""
    try:
        told = json.loads(line)
    except ValueError as error:
        raise BadVolume(f"a request is one line of JSON: {error}") from error
    if not isinstance(told, dict) or told.get("v") != VERSION:
        raise BadVolume(
            f"this core speaks version {VERSION} of the protocol", hint="restart the services of Proxmox VE"
        )
    request_id, method, storage = told.get("id"), told.get("method"), told.get("storage", "")
    args, deadline = told.get("args", {}), told.get("deadline_ms")
    if not isinstance(request_id, str) or not isinstance(storage, str) or not isinstance(args, dict):
        raise BadVolume("a request has `id` and `storage` as text and `args` as an object")
    if method not in BY_NAME:
        raise BadVolume(f"there is no method {method!r}", hint="core and plugin are of two versions; restart both")
    if deadline is None:
        deadline = BY_NAME[method].deadline_ms
    if not isinstance(deadline, int) or isinstance(deadline, bool) or deadline < 0:
        raise BadVolume("deadline_ms is a whole number of milliseconds; 0 is no limit")
    return Request(request_id, method, storage, args, deadline)


def encode_request(request: Request) -> bytes:
    return _line(
        {
            "v": VERSION,
            "id": request.id,
            "method": request.method,
            "storage": request.storage,
            "args": request.args,
            "deadline_ms": request.deadline_ms,
        }
    )


def encode_log(request_id: str, text: str) -> bytes:
    return _line({"id": request_id, "log": _one_line(text)})


def encode_result(request_id: str, result: dict[str, Any]) -> bytes:
    return _line({"id": request_id, "result": result})


def encode_error(request_id: str, error: BaseException) -> bytes:
    """One line of text and the code; nothing of an error nobody foresaw but its kind."""
    code = code_of(error)
    hint = str(getattr(error, "hint", "") or "")
    message = str(error) or type(error).__name__
    if hint:
        message = message.removesuffix(f" ({hint})")
    if code == "bug":
        message = f"{type(error).__name__} in the core"
        hint = "journalctl -u bucketworks-pve has more; please report it"
    told = {
        "code": code,
        "message": in_properties(_one_line(message)),
        "hint": in_properties(_one_line(hint)),
        "retryable": retryable(error),
    }
    return _line({"id": request_id, "error": told})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
