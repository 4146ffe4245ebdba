"""The `disk_*` methods of the core's socket: arguments in, result out.

One rule: a method is `(context, args) -> result`, runs on a thread of its own and ends by the call's deadline.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from plugin.configuration import Storage
from plugin.disks.place import place_of
from plugin.disks.serving import activations
from plugin.disks.verbs import Disks
from plugin.errors import BadVolume, Busy
from s3core.settings import Config

MARGIN_S: Final = 0.5
"""What a method leaves of its time to the answer."""
NO_LIMIT_S: Final = 3600.0


class DiskContext(Protocol):
    """What a call brings. `deadline`: on the monotonic clock, None for no limit; `root`: what stands before /etc/pve."""

    @property
    def storage(self) -> Storage: ...
    @property
    def config(self) -> Config: ...
    @property
    def root(self) -> Path: ...
    @property
    def deadline(self) -> float | None: ...


Method = Callable[[DiskContext, Mapping[str, Any]], dict[str, Any]]


def disks_of(context: DiskContext) -> Disks:
    """The verbs, for the storage of a call."""
    storage = context.storage
    return Disks(place_of(storage, context.config, context.root), quota_bytes=storage.quota_bytes)


def _until(context: DiskContext) -> float:
    return context.deadline - MARGIN_S if context.deadline is not None else time.monotonic() + NO_LIMIT_S


def _text(args: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = args.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadVolume(f"the argument {name} is missing or no text")
    return str(value)


def _number(args: Mapping[str, Any], name: str) -> int:
    try:
        return int(_text(args, name))
    except ValueError as error:
        raise BadVolume(f"the argument {name} is no whole number") from error


def _alloc(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    name, format = _text(args, "name", ""), _text(args, "format", "raw")
    vmid, size_bytes = _number(args, "vmid"), _number(args, "size_bytes")
    return {"volname": disks_of(context).alloc(vmid, name, size_bytes, format, until=_until(context))}


def _free(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    disks_of(context).free(_text(args, "volname"), until=_until(context))
    return {}


def _list(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    vmid = _number(args, "vmid") if args.get("vmid") is not None else None
    return {"volumes": disks_of(context).listing(vmid, until=_until(context))}


def _size(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    return disks_of(context).size(_text(args, "volname"), until=_until(context))


def _resize(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    size = disks_of(context).resize(_text(args, "volname"), _number(args, "size_bytes"), until=_until(context))
    return {"size": size}


def _snapshot(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    disks_of(context).snapshot(_text(args, "volname"), _text(args, "snap"), until=_until(context))
    return {}


def _snapshot_delete(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    disks_of(context).snapshot_delete(_text(args, "volname"), _text(args, "snap"), until=_until(context))
    return {}


def _rollback(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    disks_of(context).rollback(_text(args, "volname"), _text(args, "snap"), until=_until(context))
    return {}


def _snapshots(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"snapshots": disks_of(context).snapshots(_text(args, "volname"), until=_until(context))}


def _clone(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    volname, snap, vmid = _text(args, "volname"), _text(args, "snap", ""), _number(args, "vmid")
    return {"volname": disks_of(context).clone(volname, snap, vmid, until=_until(context))}


def _base(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"volname": disks_of(context).base(_text(args, "volname"), until=_until(context))}


def _rename(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    volname, name, vmid = _text(args, "volname"), _text(args, "name", ""), _number(args, "vmid")
    return {"volname": disks_of(context).rename(volname, vmid, name, until=_until(context))}


def _activate(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    volname, snap, kernel = _text(args, "volname"), _text(args, "snap", ""), bool(args.get("kernel"))
    return disks_of(context).activate(volname, snap, kernel_device=kernel, until=_until(context))


def _deactivate(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    disks_of(context).deactivate(_text(args, "volname"), _text(args, "snap", ""), until=_until(context))
    return {}


def _path(context: DiskContext, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": disks_of(context).url(_text(args, "volname"), _text(args, "snap", "")), "path": ""}


METHODS: Final[Mapping[str, Method]] = {
    "disk_alloc": _alloc,
    "disk_free": _free,
    "disk_list": _list,
    "disk_size": _size,
    "disk_resize": _resize,
    "disk_snapshot": _snapshot,
    "disk_snapshot_delete": _snapshot_delete,
    "disk_rollback": _rollback,
    "disk_snapshots": _snapshots,
    "disk_clone": _clone,
    "disk_base": _base,
    "disk_rename": _rename,
    "disk_activate": _activate,
    "disk_deactivate": _deactivate,
    "disk_path": _path,
}


def status(context: DiskContext) -> dict[str, Any]:
    """The `status` of a storage of disks; asks no store."""
    return disks_of(context).status()


def require_idle(storage: Storage, config: Config) -> None:
    """Busy where disks of the storage are active on this node: without its configuration nobody could let them go, and what
    their journals hold would stay here."""
    found = sorted(one.name for _, one in activations(Path(config.pve.run_dir) / "disks") if one.storage == storage.id)
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise Busy(
            f"{len(found)} disks of storage {storage.id} are active on this node: {shown}",
            hint="stop or migrate their guests first",
        )


def sweep(storage: Storage, config: Config, root: Path) -> list[str]:
    """What the core does at its beginning and from time to time: go on with deletions. May take long."""
    return Disks(place_of(storage, config, root)).sweep()
