"""The kernel's target, as Debian's `rtslib-fb-targetctl` prepares it, and what must be gone at the end."""

from pathlib import Path

from tests.guest.inside.commands import load, run

CONFIGFS = Path("/sys/kernel/config")


def prepare() -> None:
    """Modules, configfs, and the folder for what the target keeps."""
    load("target_core_mod")
    if not (CONFIGFS / "target").exists():
        run("mount", "-t", "configfs", "configfs", CONFIGFS)
    # The folder cannot be changed once a backstore module is loaded.
    for folder in ("pr", "alua"):
        Path("/etc/rtslib-fb-target", folder).mkdir(parents=True, exist_ok=True)
    (CONFIGFS / "target/dbroot").write_text("/etc/rtslib-fb-target")
    load("target_core_user", "iscsi_target_mod")


def left_behind() -> list[str]:
    """Backstores and targets that are still there."""
    core = [
        str(place)
        for place in (CONFIGFS / "target/core").glob("user_*/*")
        if place.name not in ("hba_info", "hba_mode")
    ]
    return sorted(core + [str(place) for place in (CONFIGFS / "target/iscsi").glob("iqn.*")])
