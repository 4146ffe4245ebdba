"""User space devices as an administrator makes them by hand in configfs, with waiting for the handler as the kernel has it."""

from pathlib import Path

from tests.guest.inside.commands import hung, load, run, wait_until

CORE = Path("/sys/kernel/config/target/core")
HBA = CORE / "user_7"


def prepare() -> None:
    """The modules, and configfs."""
    load("target_core_mod", "target_core_user")
    if not CORE.is_dir():
        run("mount", "-t", "configfs", "configfs", "/sys/kernel/config")


def make(name: str, config: str, size: int) -> str:
    """A device, enabled: the handler has answered. Its name as HBA/NAME. OSError with the handler's word; nothing is left."""
    device = HBA / name
    device.mkdir(parents=True)
    try:
        (device / "control").write_text(f"dev_config={config},dev_size={size},hw_block_size=512")
        (device / "enable").write_text("1")
    except OSError:
        device.rmdir()
        raise
    return f"{HBA.name}/{name}"


def remove(name: str) -> None:
    (HBA / name).rmdir()
    if not [child for child in HBA.iterdir() if child.is_dir()]:
        HBA.rmdir()


def set_attribute(name: str, attribute: str, value: str) -> None:
    (HBA / name / "attrib" / attribute).write_text(value)


def wait_for_writer() -> None:
    """Until somebody sleeps in the kernel, waiting for a handler."""
    wait_until(lambda: "tcmu" in hung(), "a writer that waits for a handler")
