"""The kernel's target as configfs shows it: what must be gone at the end."""

from pathlib import Path

CONFIGFS = Path("/sys/kernel/config")


def left_behind() -> list[str]:
    """Backstores and targets that are still there."""
    core = [
        str(place)
        for place in (CONFIGFS / "target/core").glob("user_*/*")
        if place.name not in ("hba_info", "hba_mode")
    ]
    return sorted(core + [str(place) for place in (CONFIGFS / "target/iscsi").glob("iqn.*")])
