"""How a volume's TCMU device is named, by who makes it (`blockdev/lio`, targetcli) and who serves it (`handler.py`)."""

SUBTYPE = "bucketworks"
"""First component of a device's configuration string (`dev_config`): which handler it is for (tcmu-design.rst)."""


def device_config(volume: str) -> str:
    """The configuration string of the volume's device."""
    return f"{SUBTYPE}/{volume}"


def volume_of(uio_name: str) -> str | None:
    """The volume a UIO device is for, from its name `tcm-user/HBA/DEVICE/CONFIG`; None if it is another handler's."""
    parts = uio_name.strip().split("/", 4)
    if len(parts) != 5 or parts[0] != "tcm-user" or parts[3] != SUBTYPE:
        return None
    return parts[4]
