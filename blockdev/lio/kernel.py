"""The rim: kernel modules, configfs, and every step of a plan by rtslib.

One rule: nothing is decided here. A step does what it says, or raises Refused with what LIO said; what was done before stays
(see `plan`). rtslib is an extra that not every host needs, so it is imported when it is used.
"""

import contextlib
import errno
import fcntl
import logging
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockdev.errors import LocalDiskFailed, Refused
from blockdev.lio import plan, saved
from blockdev.lio.found import CONFIGFS, Found, look
from blockdev.lio.plan import Step
from blockdev.lio.wanted import PORTAL_GROUP, Chap

log = logging.getLogger(__name__)

MODULES = ("target_core_mod", "target_core_user", "iscsi_target_mod")
DEVICES = Path("/dev")
LOCK = Path("/run/bucketworks-lio.lock")
MODPROBE_PATIENCE_S = 60.0

MISSING = (
    "install it: `pip install bucketworks[lio]`, or the Debian packages python3-rtslib-fb and python3-configshell-fb"
)


class Kernel:
    """LIO of this host. All of it needs root."""

    def __init__(self, configfs: Path = CONFIGFS, folder: Path | None = None) -> None:
        self._configfs = configfs
        self._folder = folder if folder is not None else saved.folder()
        self._rts: Any = None

    @property
    def saved_path(self) -> Path:
        return self._folder / saved.NAME

    def look(self) -> Found:
        return look(self._configfs)

    def handled(self, volume: str) -> bool:
        """Whether some process has the volume's device open: a UIO file of TCMU has one user at a time."""
        for uio in self.look().uio:
            if uio.volume != volume:
                continue
            try:
                os.close(os.open(DEVICES / uio.name, os.O_RDWR | os.O_CLOEXEC))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return True
                log.debug("/dev/%s: %s", uio.name, error)
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of ours out: rtslib numbers devices by what it sees, and the saved file has one writer."""
        with LOCK.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def prepare(self) -> None:
        """Modules loaded, configfs mounted, folders there. Idempotent. Raises Refused, LocalDiskFailed."""
        if os.geteuid() != 0:
            raise Refused("only root may change the kernel's target", hint="run it with sudo")
        self._rtslib().tcm.bs_cache.clear()  # of an earlier command in the same shell
        for module in MODULES:
            load(module)
        if not (self._configfs / "target").is_dir():
            _run(["mount", "-t", "configfs", "configfs", str(self._configfs)], "cannot mount configfs")
        if not (self._configfs / "target").is_dir():
            raise Refused(f"{self._configfs}/target is not there although target_core_mod is loaded", hint=_host_hint())
        with contextlib.suppress(FileExistsError):
            (self._configfs / "target/iscsi").mkdir()
        self._prepare_database()

    def _prepare_database(self) -> None:
        """The folder where LIO keeps reservations over power loss must be there, or PERSISTENT RESERVE OUT with APTPL fails.
        The kernel takes another one only while it has no device."""
        setting = self._configfs / "target/dbroot"
        if setting.exists():
            now = Path(setting.read_text().strip())
            if now != self._folder:
                self._make_folder(self._folder)
                with contextlib.suppress(OSError):  # it has devices already: it goes on with the folder it has
                    setting.write_text(f"{self._folder}\n")
                now = Path(setting.read_text().strip())
            database = now
        else:
            database = Path("/var/target")
        for name in ("pr", "alua"):
            self._make_folder(database / name)
        # rtslib would set its own preference whenever it looks, or fail where that folder is missing.
        self._rts.RTSRoot._preferred_dbroot = str(database)

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalDiskFailed(f"{path}: cannot be made: {error.strerror}") from error

    def _rtslib(self) -> Any:
        if self._rts is None:
            try:
                import rtslib_fb
            except ImportError as error:
                raise Refused(f"the kernel's target needs rtslib-fb: {error}", hint=MISSING) from error
            self._rts = rtslib_fb
        return self._rts

    # --- steps -------------------------------------------------------------------------------------------------------

    def perform(self, step: Step) -> bool:
        """Do it; False: there was nothing to do. Raises Refused with what LIO said."""
        rts = self._rtslib()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._perform(step) is not False
        except (rts.RTSLibError, OSError) as error:
            if isinstance(step, plan.MakePortal):
                raise Refused(
                    f"cannot {step}: {error}",
                    hint="the address must be one of this host's, and free: a portal of s3block may have it",
                ) from error
            raise Refused(
                f"cannot {step}: {error}", hint="see the last lines of `dmesg`; the same command goes on"
            ) from error

    def _perform(self, step: Step) -> bool | None:
        rts = self._rts
        match step:
            case plan.MakeDevice(wanted):
                rts.UserBackedStorageObject(
                    wanted.volume,
                    config=wanted.config,
                    size=wanted.size_bytes,
                    wwn=wanted.serial,
                    hw_max_sectors=wanted.hw_max_sectors,
                    control=wanted.control,
                )
            case plan.RemoveDevice(device):
                rts.UserBackedStorageObject(device).delete()
            case plan.SetDevice(device, attribute, value):
                found = rts.UserBackedStorageObject(device)
                if attribute == "alua_support" and not (Path(found.path) / "attrib" / attribute).exists():
                    return False  # a kernel before 5.10 never asks its own ALUA groups about such a device
                found.set_attribute(attribute, value)
            case plan.SetSerial(device, serial):
                rts.UserBackedStorageObject(device).wwn = serial
            case plan.EndCommands(device):
                action = Path(rts.UserBackedStorageObject(device).path) / "action"
                (action / "block_dev").write_text("1")
                (action / "reset_ring").write_text("1")
            case plan.Unblock(device):
                (Path(rts.UserBackedStorageObject(device).path) / "action/block_dev").write_text("0")
            case plan.MakeTarget(iqn):
                rts.TPG(rts.Target(rts.FabricModule("iscsi"), iqn), PORTAL_GROUP)
            case plan.RemoveTarget(iqn):
                rts.Target(rts.FabricModule("iscsi"), iqn, mode="lookup").delete()
            case plan.SetGroup(iqn, attribute, value):
                self._group(iqn).set_attribute(attribute, value)
            case plan.SetChap(iqn, initiator, chap):
                group = self._group(iqn)
                self._set_chap(rts.NodeACL(group, initiator, mode="lookup") if initiator else group, chap)
            case plan.SetDiscovery(chap):
                fabric = rts.FabricModule("iscsi")
                fabric.discovery_userid = chap.user
                fabric.discovery_password = chap.secret
                fabric.discovery_mutual_userid = chap.mutual_user
                fabric.discovery_mutual_password = chap.mutual_secret
                fabric.discovery_enable_auth = True
            case plan.MakeLun(iqn, lun, device):
                rts.LUN(self._group(iqn), lun, rts.UserBackedStorageObject(device))
            case plan.RemoveLun(iqn, tag, lun):
                rts.LUN(self._group(iqn, tag), lun).delete()
            case plan.MakeAcl(iqn, initiator):
                rts.NodeACL(self._group(iqn), initiator)
            case plan.RemoveAcl(iqn, initiator):
                rts.NodeACL(self._group(iqn), initiator, mode="lookup").delete()
            case plan.MapLun(iqn, initiator, lun):
                rts.MappedLUN(rts.NodeACL(self._group(iqn), initiator, mode="lookup"), lun, lun)
            case plan.UnmapLun(iqn, tag, initiator, lun):
                rts.MappedLUN(rts.NodeACL(self._group(iqn, tag), initiator, mode="lookup"), lun).delete()
            case plan.MakePortal(iqn, portal):
                rts.NetworkPortal(self._group(iqn), portal.configfs_host, portal.port)
            case plan.RemovePortal(iqn, portal):
                rts.NetworkPortal(self._group(iqn), portal.configfs_host, portal.port, mode="lookup").delete()
            case plan.Enable(iqn, enabled):
                self._group(iqn).enable = enabled
            case plan.Save(volume, iqns, discovery):
                now = rts.RTSRoot().dump()
                document = saved.merged(saved.read(self.saved_path), now, volume, iqns, discovery=discovery)
                return saved.write(self.saved_path, document)
        return None

    def _group(self, iqn: str, tag: int = PORTAL_GROUP) -> Any:
        rts = self._rts
        return rts.TPG(rts.Target(rts.FabricModule("iscsi"), iqn, mode="lookup"), tag, mode="lookup")

    def _set_chap(self, owner: Any, chap: Chap) -> None:
        """Names before secrets, so that no secret is ever good for another's name."""
        owner.chap_userid = chap.user
        owner.chap_password = chap.secret
        owner.chap_mutual_userid = chap.mutual_user
        owner.chap_mutual_password = chap.mutual_secret


def load(module: str) -> None:
    """The kernel module, loaded. Raises Refused."""
    if Path("/sys/module", module).is_dir():
        return
    _run(["modprobe", module], f"cannot load the kernel module {module}")
    if not Path("/sys/module", module).is_dir():
        raise Refused(f"the kernel module {module} is not there after modprobe", hint=_host_hint())


def _run(command: list[str], failed: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MODPROBE_PATIENCE_S, check=False)
    except FileNotFoundError as error:
        raise Refused(f"{failed}: there is no command {command[0]}", hint="install kmod and mount") from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{failed}: {command[0]} does not end", hint="see the last lines of `dmesg`") from error
    if done.returncode:
        raise Refused(f"{failed}: {done.stderr.strip() or done.stdout.strip()}", hint=_host_hint())


def _host_hint() -> str:
    if any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")):
        return "this is a container: LIO is the host's; run it there, or serve the volume by the portal"
    return "take a kernel with LIO (Debian: linux-image-amd64; Ubuntu: linux-modules-extra), or serve it by the portal"
