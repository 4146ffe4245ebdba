"""What Proxmox VE does with disks, on the volumes of one place.

One rule: each verb is a few steps in an order that a crash may cut anywhere; the docstrings say what that leaves and who
repairs it. Data is never copied, so each is as quick for a large disk as for a small one. `until` is on the monotonic clock,
and nothing waits for a store longer (DeadlineOver).
"""

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from plugin.disks import commands, kernel, names, peers, serving
from plugin.disks.commands import CommandFailed
from plugin.disks.place import DiskPlace
from plugin.disks.records import Disk, Facts, Records
from plugin.disks.serving import Activation
from plugin.errors import BadVolume, DeadlineOver, Exists, NotServed, PluginError, Refused
from s3core.build import build_store

log = logging.getLogger(__name__)

T = TypeVar("T")

MIB: Final = 1 << 20
BLOCK_BYTES: Final = 4096
DELETE_WAIT_S: Final = 20.0
DELETE_PATIENCE_S: Final = 6 * 3600.0
LEAVING_PATIENCE_S: Final = 5.0
REFRESH_S: Final = 60.0
TOTAL_BYTES: Final = 1 << 50
"""What an object store is told to hold where no quota says otherwise."""


class Disks:
    """`quota_bytes`: what the status tells as total; 0: none. Raises, throughout: PluginError, store errors, ConfigError."""

    def __init__(self, place: DiskPlace, *, quota_bytes: int = 0) -> None:
        self.place = place
        self._quota_bytes = quota_bytes

    # --- making and removing -------------------------------------------------------------------------------------

    def alloc(self, vmid: int, name: str, size_bytes: int, format: str, *, until: float) -> str:
        """Make a disk; its name. Sizes are rounded up to 4096 bytes, 1 MiB at least.

        Volume, facts, name: a crash before the name leaves a volume that `unnamed` finds."""
        if format not in ("raw", ""):
            raise BadVolume(f"disks in a bucket are raw, not {format}")
        size_bytes = max(MIB, -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        chosen = self._new_name(vmid, name, until)
        volume = names.birth_name(chosen, secrets.token_hex(4))
        self._s3block(["create", self._url(volume), "--size", str(size_bytes)], until=until, key=True)
        return self._named(Disk(chosen, volume, created=time.time()), size_bytes, until).name

    def free(self, volname: str, *, until: float) -> None:
        """Remove a disk: refused while it is in use or while linked clones read it. On return its name is gone; its data
        goes in the same call where that is quick, else behind it, and whoever is stopped there goes on (`sweep`)."""
        disk = self._find(volname, until)
        with self._records(until) as records:
            disks = within(until, records.disks)
        self._require_no_clones(disk, disks)
        for _, view in list(serving.activations(self.place.run_dir.parent)):
            if view.volume.startswith(f"{disk.volume}{names.VIEW}"):
                self._deactivate(view.volume, until)
        self._let_go(disk, until)
        with self._records(until) as records:
            within(until, lambda: records.doom(disk))
        done = threading.Event()

        def delete() -> None:
            try:
                self._bury(disk.volume)
            except Exception:
                log.exception("disk %s: its data is not removed yet; it will be tried again", disk.name)
            finally:
                done.set()

        threading.Thread(target=delete, name=f"delete {disk.volume}", daemon=True).start()
        done.wait(max(0.0, min(DELETE_WAIT_S, until - time.monotonic() - 1)))

    def _require_no_clones(self, disk: Disk, disks: list[Disk]) -> None:
        children = [one.name for one in disks if one.base == disk.volume]
        if children:
            raise Refused(f"{disk.name} is read by {', '.join(children)}", hint="remove these linked clones first")

    def sweep(self) -> list[str]:
        """Go on with deletions that somebody began, on any node; which volumes are gone now. May take long."""
        with self._records(time.monotonic() + DELETE_PATIENCE_S) as records:
            doomed = records.doomed()
        gone = []
        for volume in doomed:
            try:
                self._bury(volume)
                gone.append(volume)
            except PluginError as error:
                log.warning("volume %s cannot be removed: %s", volume, error)
        return gone

    def unnamed(self, *, until: float) -> list[str]:
        """Volumes that no disk is, that nobody deletes and that are no views: what stopped creations left. To be looked at
        by a person: a creation that is going on looks the same."""
        found: list[str] = [one["name"] for one in self._s3block(["list", self.place.store_url], until=until)]
        with self._records(until) as records:
            named = {disk.volume for disk in within(until, records.disks)} | set(within(until, records.doomed))
        return sorted(name for name in found if name not in named and name.partition(names.VIEW)[0] not in named)

    def _bury(self, volume: str) -> None:
        until = time.monotonic() + DELETE_PATIENCE_S
        # Its last writer, should it live, is fenced off: what it would lose is being removed.
        try:
            self._remove(volume, until)
        except CommandFailed as error:
            # Views that a backup left when it was killed; nothing else refers to them.
            views = set(re.findall(re.escape(volume + names.VIEW) + r"[0-9a-f]{8}", str(error)))
            if not views:
                raise
            for view in views:
                self._remove(view, until)
            self._remove(volume, until)
        with self._records(until) as records:
            records.buried(volume)
        directory = self.place.state_dir
        for suffix in (".toml", ".log", ".log.1", ".lock", ".run"):
            (directory / f"{volume}{suffix}").unlink(missing_ok=True)

    def _remove(self, volume: str, until: float) -> None:
        """Also when it is gone already."""
        with _tolerated("not-found"):
            self._s3block(["delete", self._url(volume), "--yes", "--force", "--local"], until=until)

    # --- telling -------------------------------------------------------------------------------------------------

    def listing(self, vmid: int | None, *, until: float) -> list[dict[str, Any]]:
        """Every disk, from the store as it is now. `size` and `used` are as last seen (`size` tells them exactly)."""
        with self._records(until) as records:
            disks = within(until, records.disks)
            facts = within(until, lambda: records.facts(disk.volume for disk in disks))
        called = {disk.volume: disk.name for disk in disks}
        told = []
        for disk in disks:
            seen = facts.get(disk.volume, Facts(0))
            told.append(
                {
                    "volname": _volname(disk, called),
                    "content": "images",
                    "format": "raw",
                    "size": seen.size_bytes,
                    "used": seen.allocated_bytes,
                    "vmid": names.parse(disk.name).vmid,
                    "parent": called.get(disk.base, "") if disk.base else "",
                    "ctime": int(disk.created),
                }
            )
        self._remember(sum(seen.allocated_bytes or 0 for seen in facts.values()), "")
        return told if vmid is None else [item for item in told if names.parse(str(item["volname"])).vmid == vmid]

    def size(self, volname: str, *, until: float) -> dict[str, Any]:
        """From the process that serves it here, else from the bucket."""
        disk = self._find(volname, until)
        here = self._look(disk.volume)
        if here is not None and here.size_bytes is not None:
            facts = Facts(here.size_bytes, here.allocated_bytes)
        else:
            info = self._s3block(["info", self._url(disk.volume)], until=until)
            facts = Facts(int(info["size_bytes"]), int(info["mapped_bytes"]))
        parent = ""
        with self._records(until) as records:
            within(until, lambda: records.note(disk.volume, facts))
            if disk.base:
                called = {one.volume: one.name for one in within(until, records.disks)}
                parent = called.get(disk.base, "")
        return {"size": facts.size_bytes, "used": facts.allocated_bytes, "format": "raw", "parent": parent}

    def status(self) -> dict[str, Any]:
        """Numbers as last seen, without asking the store; they are looked for again when they are old."""
        try:
            told: dict[str, Any] = json.loads(self._status_path.read_bytes())
        except (FileNotFoundError, ValueError):
            told = {"used": 0, "checked_at": 0.0, "reason": "never seen yet"}
        if time.time() - told["checked_at"] > REFRESH_S:
            threading.Thread(target=self._refresh, name=f"status of {self.place.storage}", daemon=True).start()
        total = self._quota_bytes or told["used"] + TOTAL_BYTES
        return {
            "total": total,
            "avail": max(0, total - told["used"]),
            "used": told["used"],
            "active": not told["reason"],
            "reason": told["reason"],
            "checked_at": told["checked_at"],
        }

    def _refresh(self) -> None:
        try:
            self.listing(None, until=time.monotonic() + REFRESH_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the status has to tell
            log.warning("storage %s: %s", self.place.storage, error)
            with contextlib.suppress(OSError, ValueError):
                used = json.loads(self._status_path.read_bytes())["used"] if self._status_path.exists() else 0
                self._remember(used, str(error))

    @property
    def _status_path(self) -> Path:
        return self.place.state_dir / "status.json"

    def _remember(self, used: int, reason: str) -> None:
        self.place.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = self._status_path.with_name(f".status.{os.getpid()}.{threading.get_ident()}")
        aside.write_text(json.dumps({"used": used, "reason": reason, "checked_at": time.time()}))
        os.replace(aside, self._status_path)

    # --- size and states -----------------------------------------------------------------------------------------

    def resize(self, volname: str, size_bytes: int, *, until: float) -> int:
        """Make it larger, served or not; its initiators are told. One record of the volume's log; a crash after it leaves
        facts that `size` puts right."""
        disk = self._find(volname, until)
        size_bytes = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        told = self._s3block(["resize", self._url(disk.volume), str(size_bytes)], until=until, key=True)
        with self._records(until) as records:
            within(until, lambda: records.note(disk.volume, Facts(int(told["size_bytes"]))))
        activation = self._activation(disk.volume)
        if activation is not None and activation.kernel:
            kernel.rescan(self.place.portal(), activation.target, until=until)
        return int(told["size_bytes"])

    def snapshot(self, volname: str, snap: str, *, until: float) -> None:
        """Everything acknowledged before is in it, and in the bucket. One record of the log."""
        disk = self._find(volname, until)
        self._s3block(["snapshot", "create", self._url(disk.volume), snap], until=until, key=True)

    def snapshot_delete(self, volname: str, snap: str, *, until: float) -> None:
        """Also when it is gone already. A view of it that a backup left is removed first."""
        disk = self._find(volname, until)
        words = ["snapshot", "delete", self._url(disk.volume), snap]
        view = names.snapshot_view_name(disk.volume, snap)
        try:
            self._s3block(words, until=until, key=True)
        except CommandFailed as error:
            if "there is no snapshot" in str(error):
                return
            if view not in str(error):
                raise
            self._let_go(replace(disk, volume=view), until)
            self._s3block(["delete", self._url(view), "--yes", "--force", "--local"], until=until)
            self._s3block(words, until=until, key=True)

    def rollback(self, volname: str, snap: str, *, until: float) -> None:
        """What was written since is given up. Refused while an initiator uses it. Two records of the log (the state before
        is kept until the second): a crash between them leaves a snapshot `before-rollback-…` more."""
        disk = self._find(volname, until)
        self._let_go(disk, until)
        told = self._s3block(["rollback", self._url(disk.volume), snap, "--yes", "--no-keep"], until=until, key=True)
        with self._records(until) as records:
            within(until, lambda: records.note(disk.volume, Facts(int(told["size_bytes"]))))

    def snapshots(self, volname: str, *, until: float) -> list[dict[str, Any]]:
        """The oldest first, without what is ours."""
        disk = self._find(volname, until)
        found = self._s3block(["snapshot", "list", self._url(disk.volume)], until=until)
        return [
            {"name": one["name"], "id": one["digest"], "timestamp": int(one["created"])}
            for one in found
            if one["name"] != names.BASE_SNAPSHOT and not one["name"].startswith("before-rollback-")
        ]

    # --- clones and names ----------------------------------------------------------------------------------------

    def clone(self, volname: str, snap: str, vmid: int, *, until: float) -> str:
        """A linked clone: of a template, or of a snapshot. Its snapshot stays until the clone is removed. As `alloc`."""
        disk = self._find(volname, until)
        is_base = names.parse(disk.name).is_base
        if not snap and not is_base:
            raise BadVolume(f"{disk.name} is no template, and no snapshot was named")
        chosen = self._new_name(vmid, "", until)
        volume = names.birth_name(chosen, secrets.token_hex(4))
        told = self._s3block(
            ["clone", self._url(disk.volume), snap or names.BASE_SNAPSHOT, volume], until=until, key=True
        )
        made = Disk(chosen, volume, base=disk.volume, created=time.time())
        made = self._named(made, int(told["size_bytes"]), until)
        return _volname(made, {disk.volume: disk.name})

    def base(self, volname: str, *, until: float) -> str:
        """Make it a template: a snapshot that clones begin as, and another name. A crash between the two leaves the
        snapshot, which the next attempt takes. Refused while linked clones of its snapshots are there: as clones of a
        template they would have another name than guests know them by."""
        disk = self._find(volname, until)
        new = names.base_name(disk.name)
        with self._records(until) as records:
            disks = within(until, records.disks)
        if not any(one.name == new for one in disks):
            self._require_no_clones(disk, disks)
        self._let_go(disk, until)
        try:
            self._s3block(["snapshot", "create", self._url(disk.volume), names.BASE_SNAPSHOT], until=until, key=True)
        except CommandFailed as error:
            if "already" not in str(error):
                raise
        return self._renamed(disk, new, until)

    def rename(self, volname: str, vmid: int, name: str, *, until: float) -> str:
        """Give it to another guest: a new name record, then the old one goes. A crash between them leaves both names; the
        same call finishes it, `listing` tells the new one, and the old one still leads to the disk. Refused while it is in
        use: what serves it is logged in to by its old name."""
        disk = self._find(volname, until)
        if names.parse(disk.name).is_base:
            raise Refused(f"{disk.name} is a template; its linked clones have its name in theirs")
        self._let_go(disk, until)
        with self._records(until) as records:
            begun = [one for one in within(until, lambda: records.named(disk.volume)) if one.renamed_from == disk.name]
            for one in begun:
                if names.parse(one.name).vmid == vmid and name in ("", one.name):
                    within(until, lambda: records.remove(disk.name))
                    return self._told_name(one, until)
                within(until, lambda one=one: records.remove(one.name))  # type: ignore[misc]  # a default has no type
        return self._renamed(disk, self._new_name(vmid, name, until), until)

    def _renamed(self, disk: Disk, new: str, until: float) -> str:
        made = replace(disk, name=new, renamed_from=disk.name)
        with self._records(until) as records:
            within(until, lambda: records.spare(disk.volume))
            within(until, lambda: records.add(made))
            within(until, lambda: records.remove(disk.name))
        return self._told_name(made, until)

    def _told_name(self, disk: Disk, until: float) -> str:
        if not disk.base:
            return disk.name
        with self._records(until) as records:
            return _volname(disk, {one.volume: one.name for one in within(until, records.disks)})

    def _new_name(self, vmid: int, name: str, until: float) -> str:
        with self._records(until) as records:
            taken = within(until, records.names)
        if not name:
            return names.free_name(vmid, taken)
        found = names.parse(name)
        if found.vmid != vmid:
            raise BadVolume(f"{name} is no name for a disk of guest {vmid}")
        if name in taken:
            raise Exists(f"there is a disk {name} already")
        return name

    def _named(self, disk: Disk, size_bytes: int, until: float) -> Disk:
        """The disk, once its volume is there. Somebody else's taking the name at this moment takes the volume back."""
        with self._records(until) as records:
            within(until, lambda: records.note(disk.volume, Facts(size_bytes, 0)))
            try:
                within(until, lambda: records.add(disk))
            except Exists:
                self._bury(disk.volume)
                raise
        return disk

    # --- serving -------------------------------------------------------------------------------------------------

    def target(self, volname: str, snap: str = "") -> str:
        return names.target_name(self.place.storage, volname, snap)

    def url(self, volname: str, snap: str = "") -> str:
        """For QEMU, the same on each node and at all times. Asks nobody."""
        return f"iscsi://{self.place.portal()}/{self.target(volname, snap)}/0"

    def activate(self, volname: str, snap: str, *, kernel_device: bool, until: float) -> dict[str, Any]:
        """Have it reachable at `url`, and for `kernel_device` as a block device at `path`: served here, or by the node that
        has it until that one lets it go. A crash leaves an activation, which the next call or login goes on with."""
        disk = self._find(volname, until)
        volume = self._view(disk, snap, until) if snap else disk.volume
        place = self.place
        path = self._activation_path(volume)
        before = self._activation(volume)
        target = self.target(volname, snap)
        self._forget_namesakes(target, volume, until)
        config = place.write_serve_config(volume, target, read_only=bool(snap) or names.parse(disk.name).is_base)
        Activation(
            storage=place.storage,
            name=disk.name,
            volume=volume,
            target=target,
            store_url=place.store_url,
            config=str(config),
            store_config=str(place.config_path),
            state_dir=str(place.volume_dir(volume)),
            log=str(place.state_dir / f"{volume}.log"),
            node=place.node,
            peer_host=place.peer_host,
            port=place.port,
            secret=str(place.secret),
            snapshot=snap,
            kernel=kernel_device or (before is not None and before.kernel),
        ).write(path)
        try:
            within(until, lambda: serving.route(path, until=until))
            self.ensure_gateway(until=until)
            device = kernel.login(place.portal(), target, until=until) if kernel_device else None
        except (DeadlineOver, FileNotFoundError):
            raise  # its process may be on its way
        except BaseException:
            if before is None and self._look(volume) is None:
                path.unlink(missing_ok=True)
            raise
        return {"url": self.url(volname, snap), "path": str(device) if device is not None else ""}

    def _forget_namesakes(self, target: str, volume: str, until: float) -> None:
        """A disk that had this name before, and that another node removed or renamed since, may still be active here: an
        initiator would be led to it, which is another guest's now. Refused while one is."""
        for _, other in list(serving.activations(self.place.run_dir.parent)):
            if other.target == target and other.volume != volume:
                self._deactivate(other.volume, until)

    def deactivate(self, volname: str, snap: str = "", *, until: float) -> None:
        """Let it go: nothing of it is on this node alone after that. Also when it is not active. Refused while an initiator
        of this node is logged in. Steps: kernel's logout, everything to the bucket, DETACH, hint, activation; a crash before
        the last leaves the activation, and the next deactivation goes on. Where the store takes nothing until the time is
        over, the disk goes on being served here."""
        try:
            disk = self._find(volname, until)
        except PluginError as error:
            if error.code != "not-found":
                raise
            return
        volume = names.snapshot_view_name(disk.volume, snap) if snap else disk.volume
        activation = self._activation(volume)
        if activation is not None and serving.crashed(activation):
            # Its journal may hold what the bucket lacks: only a process here can carry that.
            within(until, lambda: serving.route(self._activation_path(volume), until=until))
        self._deactivate(volume, until)
        if snap:
            self._remove(volume, until)

    def _deactivate(self, volume: str, until: float) -> None:
        activation = self._activation(volume)
        if activation is None:
            return
        path = self._activation_path(volume)
        if activation.kernel:
            kernel.logout(self.place.portal(), activation.target, until=until)
        self._until_left(path, activation, until)
        with serving.held(activation, until):
            here = self._look(volume)
            if serving.stop(activation, until=until):
                with self._records(until) as records:
                    if here is not None and here.size_bytes is not None:
                        facts = Facts(here.size_bytes, here.allocated_bytes)
                        within(until, lambda: records.note(volume, facts))
                    within(until, lambda: records.unserve(volume, self.place.node))
            path.unlink(missing_ok=True)

    def _until_left(self, path: Path, activation: Activation, until: float) -> None:
        """Wait a little for initiators of this node to be gone: a QEMU that was ended may not have closed its sockets."""
        patience = min(until, time.monotonic() + LEAVING_PATIENCE_S)
        while serving.initiators(path):
            if time.monotonic() > patience:
                raise Refused(f"disk {activation.name} is in use on this node", hint="stop the guest first")
            time.sleep(serving.POLL_S)

    def _let_go(self, disk: Disk, until: float) -> None:
        """Before what cannot be done under initiators. Refused while somebody uses it, here or on another node."""
        self._deactivate(disk.volume, until)
        with self._records(until) as records:
            there = within(until, lambda: records.serving(disk.volume))
        if there is None or there.node == self.place.node or not there.host:
            return
        try:
            secret = peers.read_secret(self.place.secret)
            said = peers.ask(there.host, there.port, secret, self.target(disk.name))
        except NotServed:
            return
        if said != "no":
            raise Refused(f"disk {disk.name} is active on node {there.node}", hint="stop the guest there first")

    def _view(self, disk: Disk, snap: str, until: float) -> str:
        """A passing clone through which the snapshot is read; made if it is not there."""
        view = names.snapshot_view_name(disk.volume, snap)
        try:
            self._s3block(["clone", self._url(disk.volume), snap, view], until=until, key=True)
        except CommandFailed as error:
            if "exists already" not in str(error):
                raise
        return view

    def ensure_gateway(self, *, until: float) -> None:
        """The gateway of this node, started if nobody listens at its address. Raises DeadlineOver, Refused."""
        place = self.place
        address = (place.local_host, place.port)
        if _listens(address):
            return
        unit = f"bucketworks-gateway@{place.port}.service"
        log_path = place.run_dir.parent / f"gateway-{place.port}.log"
        process: subprocess.Popen[bytes] | None = None
        if Path("/run/systemd/system").is_dir() and (
            subprocess.run(["systemctl", "cat", unit], check=False, capture_output=True).returncode == 0
        ):
            serving.start_unit(unit)
        else:
            log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            words = [str(place.run_dir.parent), str(place.secret), str(place.port), place.local_host, place.peer_host]
            with open(log_path, "ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "plugin.disks.gateway", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            serving.adopt(process)
        while not _listens(address):
            if process is not None and process.poll() is not None:
                raise Refused(f"the gateway cannot listen at {place.portal()}", hint=f"see {log_path}")
            if time.monotonic() > until:
                raise DeadlineOver(f"the gateway does not listen at {place.portal()} yet")
            time.sleep(serving.POLL_S)

    def _activation_path(self, volume: str) -> Path:
        return self.place.run_dir / f"{volume}.json"

    def _activation(self, volume: str) -> Activation | None:
        try:
            return Activation.read(self._activation_path(volume))
        except FileNotFoundError:
            return None

    def _look(self, volume: str) -> serving.Looked | None:
        return serving.look(self.place.volume_dir(volume))

    # --- the rim -------------------------------------------------------------------------------------------------

    def _find(self, volname: str, until: float) -> Disk:
        name = names.parse(volname).name
        with self._records(until) as records:
            return within(until, lambda: records.find(name))

    def _url(self, volume: str) -> str:
        return f"{self.place.store_url}/{volume}"

    def _s3block(self, words: list[str], *, until: float, key: bool = False) -> Any:
        more = ["--key", self.place.key_source] if key and self.place.key_source else []
        return commands.run(self.place.write_config(), [*words, *more], until=until)

    @contextmanager
    def _records(self, until: float) -> Iterator[Records]:
        store = build_store(self.place.store_url, config=self.place.config)
        try:
            yield Records(store)
        finally:
            store.close()


def within(until: float, work: Callable[[], T]) -> T:
    """The result of `work`, which runs on a thread of its own. Raises what it raises; DeadlineOver when it is not done in
    time: then it goes on behind us, and what it was doing may be done or not."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, name="disks", daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if failed:
        raise failed[0]
    if not done:
        raise DeadlineOver("the store did not answer in time", hint="is it reachable? Look before doing it again")
    return done[0]


@contextmanager
def _tolerated(code: str) -> Iterator[None]:
    try:
        yield
    except CommandFailed as error:
        if error.code != code:
            raise


def _volname(disk: Disk, called: dict[str, str]) -> str:
    """As Proxmox VE has it; `called`: names of disks by volume."""
    parent = called.get(disk.base, "") if disk.base else ""
    return f"{parent}/{disk.name}" if parent.startswith("base-") else disk.name


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=1.0):
            return True
    except OSError:
        return False
