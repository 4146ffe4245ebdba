"""The command line of QEMU for a machine. Pure.

One rule: every word that somebody else chose (names, paths, addresses, options of templates) is one value of one option: a
comma in it is doubled, as QEMU's option parser wants it, and words that begin options are chosen here alone.

Options of a template (`OPTIONS`) are an administrator's. Without `kernel` the machine boots from its disk.
"""

from dataclasses import dataclass
from typing import Final

from envctl.drivers.qemu.machine import Machine
from envctl.seed import SERIAL_PREFIX

OPTIONS: Final = {
    "kernel": "path of a kernel that is booted directly, without firmware",
    "initrd": "path of its initial RAM disk",
    "append": "its command line",
    "firmware": "path of firmware in place of SeaBIOS, such as OVMF.fd",
    "disk": "how the disk is attached: virtio (the default) or nvme",
    "network": "user (the default without a bridge), bridge (the default with one) or none",
    "machine": "QEMU's machine type; q35",
    "cpu": "QEMU's processor model; max",
    "full": "yes: the image is copied in place of a layer over it",
}
DISK_ID: Final = "disk0"


@dataclass(frozen=True, slots=True)
class Places:
    """Paths of one machine's files. Sockets: 107 bytes at most (`sockaddr_un`)."""

    folder: str

    @property
    def disk(self) -> str:
        return f"{self.folder}/disk.qcow2"

    @property
    def pid_file(self) -> str:
        return f"{self.folder}/pid"

    @property
    def monitor(self) -> str:
        return f"{self.folder}/qmp"

    @property
    def screen(self) -> str:
        return f"{self.folder}/vnc"

    @property
    def serial(self) -> str:
        return f"{self.folder}/serial"


SOCKET_NAME_BYTES: Final = len("/serial")
SOCKET_PATH_BYTES_MAX: Final = 107


def qemu_command(machine: Machine, places: Places, *, program: str, accelerator: str, bridge: str) -> list[str]:
    """ValueError for an option that is none.

    `accelerator`: `kvm` or `tcg`. The process holds a lock on the pid file for as long as it lives. It does not detach itself:
    a process that may start no other (`spawn=deny`) could not."""
    options = machine.options
    network = options.get("network") or ("bridge" if bridge else "user")
    disk = options.get("disk") or "virtio"
    if network not in ("user", "bridge", "none"):
        raise ValueError(f"network {network!r} is none of: user, bridge, none")
    if disk not in ("virtio", "nvme"):
        raise ValueError(f"disk {disk!r} is none of: virtio, nvme")
    if network == "bridge" and not bridge:
        raise ValueError("network `bridge` needs the driver's setting `bridge`")
    words = [program, "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-pidfile", places.pid_file]
    words += ["-name", _value(machine.name) + ",debug-threads=on"]
    words += ["-machine", _value(options.get("machine") or "q35") + f",accel={accelerator}"]
    words += ["-cpu", _value(options.get("cpu") or "max")]
    words += ["-smp", str(machine.cores), "-m", str(machine.memory_mib)]
    serial = SERIAL_PREFIX + machine.seed_url if machine.seed_url else machine.tag
    words += ["-smbios", f"type=1,uuid={_value(machine.uuid)},serial={_value(serial)}"]
    if options.get("kernel"):
        words += ["-kernel", options["kernel"]]
        words += ["-initrd", options["initrd"]] if options.get("initrd") else []
        words += ["-append", options["append"]] if options.get("append") else []
    elif options.get("firmware"):
        words += ["-bios", options["firmware"]]
    # `unmap`: what the guest gives back (fstrim) leaves the layer too.
    words += [
        "-drive",
        f"if=none,id={DISK_ID},file={_value(places.disk)},format=qcow2,discard=unmap,detect-zeroes=unmap",
    ]
    words += ["-device", f"nvme,drive={DISK_ID},serial=disk0" if disk == "nvme" else f"virtio-blk-pci,drive={DISK_ID}"]
    if network != "none":
        # Restricted processes start no helper, and a bridge is reached by one.
        way = "user,id=net0" if network == "user" else f"bridge,id=net0,br={_value(bridge)}"
        words += ["-netdev", way, "-device", f"virtio-net-pci,netdev=net0,romfile=,mac={mac_of(machine.uuid)}"]
    if network != "bridge":
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"]
    words += ["-device", "VGA,vgamem_mb=16", "-vnc", f"unix:{_value(places.screen)}"]
    for name, path in (("qmp", places.monitor), ("serial", places.serial)):
        words += ["-chardev", f"socket,id={name},path={_value(path)},server=on,wait=off"]
    return [*words, "-mon", "chardev=qmp,mode=control", "-serial", "chardev:serial"]


def mac_of(uuid: str) -> str:
    """A locally administered address that follows from the machine's UUID, so that it stays over restarts."""
    digits = uuid.replace("-", "")[-6:].rjust(6, "0")
    return "52:54:00:" + ":".join(digits[place : place + 2] for place in (0, 2, 4))


def _value(text: str) -> str:
    return text.replace(",", ",,")
