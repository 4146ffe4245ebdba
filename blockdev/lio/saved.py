"""The saved configuration: the file from which `targetctl restore` (the boot service) and targetcli make LIO anew.

One rule: only the entries of one volume change. The rest stays as it is in the file, whatever the kernel has at the moment:
another's targets may be half restored, or changed for a try.

The file is rtslib's (JSON: storage_objects, targets, fabric_modules). It is written beside itself, synced and renamed: a
crash leaves the old one or the new one. It holds CHAP secrets, so its mode is 0600.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blockdev.errors import LocalDiskFailed, Refused

Document = dict[str, Any]

FOLDERS = (Path("/etc/rtslib-fb-target"), Path("/etc/target"))
"""Debian's and Ubuntu's rtslib keeps it in the first, everybody else's in the second."""
NAME = "saveconfig.json"


def folder(among: Iterable[Path] = FOLDERS) -> Path:
    """Where this host's targetcli keeps it: the first that is there, else the last."""
    path = Path()
    for path in among:
        if path.is_dir():
            return path
    return path


def merged(saved: Document, now: Document, volume: str, iqns: Iterable[str], *, discovery: bool = False) -> Document:
    """`saved` with the entries of the volume and of its targets as they are in `now` (rtslib's dump), or without them where
    `now` has none. `discovery`: what it asks for as well."""

    def device(entry: Mapping[str, Any]) -> bool:
        return entry.get("plugin") == "user" and entry.get("name") == volume

    path = f"/backstores/user/{volume}"

    def target(entry: Mapping[str, Any]) -> bool:
        if entry.get("fabric") != "iscsi":
            return False
        luns = [lun.get("storage_object") for group in entry.get("tpgs", []) for lun in group.get("luns", [])]
        return entry.get("wwn") in wanted or path in luns

    def fabric(entry: Mapping[str, Any]) -> bool:
        return discovery and entry.get("name") == "iscsi"

    wanted = frozenset(iqns)
    return saved | {
        "storage_objects": _replaced(saved, now, "storage_objects", device),
        "targets": _replaced(saved, now, "targets", target),
        "fabric_modules": _replaced(saved, now, "fabric_modules", fabric),
    }


def _replaced(saved: Document, now: Document, kind: str, concerns: Any) -> list[Any]:
    kept = [entry for entry in saved.get(kind, []) if not concerns(entry)]
    return kept + [entry for entry in now.get(kind, []) if concerns(entry)]


def read(path: Path) -> Document:
    """The saved configuration; an empty one where there is none. Raises Refused for a file that is no such thing."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"storage_objects": [], "targets": [], "fabric_modules": []}
    except ValueError as error:
        raise Refused(
            f"{path} is not a saved configuration: {error}", hint="targetcli saveconfig writes it anew"
        ) from error
    if not isinstance(document, dict):
        raise Refused(f"{path} is not a saved configuration", hint="targetcli saveconfig writes it anew")
    return document


def write(path: Path, document: Document) -> bool:
    """Replace the file; False: it has that content already. Durable on return. Raises LocalDiskFailed."""
    text = json.dumps(document, sort_keys=True, indent=2) + "\n"
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.s3block")
        beside.unlink(missing_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise LocalDiskFailed(f"{path}: cannot save the configuration: {error.strerror or error}") from error
    return True
