"""Is this machine fit as a template? Its configuration, judged. Pure.

What a guest gets at its first boot is the SMBIOS serial number alone (`ds=nocloud;s=URL`). A cloud-init drive of Proxmox VE's
own would come first in cloud-init's order and hide it; it would also take rights that we do not ask for.
"""

import re
from collections.abc import Mapping

from envctl.drivers.port import DriverFinding
from envctl.drivers.pve.marks import boot_disk, disks, fields_of, is_cdrom, is_cloud_init, our_tag, storage_of, tags_of
from envctl.identifiers import TAG_PREFIX

_CD = re.compile(r"(?:ide|sata|scsi)\d+")


def judge(vmid: int, config: Mapping[str, object], *, shared: Mapping[str, bool], full: bool) -> list[DriverFinding]:
    """`shared`: which storages all nodes have. `full`: the template's clones are copies."""
    findings: list[DriverFinding] = []

    def add(severity: str, message: str, hint: str = "") -> None:
        assert severity in ("ok", "warning", "error")
        findings.append(DriverFinding(severity, message, hint))  # type: ignore[arg-type]  # asserted above

    if _number(config.get("template")) == 1:
        add("ok", f"{vmid} is a template")
    elif full:
        add("warning", f"{vmid} is a machine, not a template: it may change between two clones", f"qm template {vmid}")
    else:
        add(
            "error",
            f"{vmid} is a machine, not a template: linked clones need one",
            f"shut it down, then: qm template {vmid}",
        )

    for name, value in config.items():
        if _CD.fullmatch(name) and is_cloud_init(str(value)):
            add(
                "error",
                f"{name} is a cloud-init drive of Proxmox VE: it would hide the seed that the console gives",
                f"remove it: qm set {vmid} --delete {name}",
            )
        elif _CD.fullmatch(name) and is_cdrom(str(value)) and not str(value).startswith("none"):
            add(
                "warning",
                f"{name} holds an image ({value}): clones carry it too",
                f"qm set {vmid} --{name} none,media=cdrom",
            )
    custom = sorted(
        name for name in config if name.startswith(("ciuser", "cipassword", "cicustom", "sshkeys", "ipconfig"))
    )
    if custom:
        add(
            "warning",
            f"options for a cloud-init drive have no effect: {', '.join(custom)}",
            "remove them from the template",
        )

    agent = fields_of(str(config.get("agent", "0")))
    if agent.get("enabled", agent.get("", "0")) in ("1", "on", "yes", "true"):
        add("ok", "the QEMU guest agent is enabled")
    else:
        add(
            "warning",
            "the QEMU guest agent is off: the address of a machine is not known, and shutting down relies on ACPI alone",
            f"install qemu-guest-agent in it, then: qm set {vmid} --agent 1",
        )
    if str(config.get("acpi", "1")) in ("0", "no", "off", "false"):
        add(
            "error",
            "ACPI is off: a machine cannot be shut down in order, and its last minutes would be lost",
            f"qm set {vmid} --acpi 1",
        )
    if any(re.fullmatch(r"serial\d", name) and str(value) == "socket" for name, value in config.items()):
        add("ok", "a serial port is there for the terminal")
    else:
        add("warning", "no serial port: the terminal in the browser does not work", f"qm set {vmid} --serial0 socket")

    disk = boot_disk(config)
    if not disk:
        add("error", "it has no disk to boot from", "set the boot order to the disk of the system")
    elif not disk.startswith(("scsi", "virtio")):
        add("warning", f"its disk is {disk}: slow, and without discard", "attach it to a VirtIO SCSI controller")
    elif disk.startswith("scsi") and not str(config.get("scsihw", "lsi")).startswith("virtio-scsi"):
        add(
            "warning",
            f"its SCSI controller is {config.get('scsihw', 'lsi')}",
            f"qm set {vmid} --scsihw virtio-scsi-single",
        )
    local = sorted({storage_of(value) for value in disks(config).values() if not shared.get(storage_of(value), False)})
    if local:
        add("ok", f"disks are on storage of one node ({', '.join(local)}): clones stay on the template's node")
    if not any(re.fullmatch(r"net\d+", name) for name in config):
        add(
            "error",
            "it has no network card: a guest could not reach the console",
            f"qm set {vmid} --net0 virtio,bridge=vmbr0",
        )
    if our_tag(str(config.get("tags", ""))):
        add(
            "error",
            "it carries the tag of an environment: it was one, and clones would be taken for it",
            f"remove the tags that begin with {TAG_PREFIX!r}",
        )
    elif tags_of(str(config.get("tags", ""))):
        add("ok", "its tags are inherited by clones")
    if config.get("hookscript"):
        add("warning", f"hookscript {config['hookscript']} runs on the node for each clone")
    if any(re.fullmatch(r"(hostpci|usb|virtiofs)\d+", name) for name in config):
        add(
            "error",
            "it has devices of a node passed through: two clones cannot run at once",
            "remove hostpci, usb and virtiofs",
        )
    if config.get("lock"):
        add("error", f"it is locked ({config['lock']})", "wait until that is done")
    return findings


def _number(value: object) -> int:
    try:
        return int(str(value or 0))
    except ValueError:
        return 0
