"""How values are written on pages: moments, sizes, states, how old the last good backup is. Pure; `now` is an argument.

One rule: a colour never says anything alone; each tone comes with words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from envctl.states import BUSY, EnvironmentState
from s3core.quantities import shown_size

Tone = Literal["ok", "warn", "bad", "info", "plain"]

RPO_LATE: Final = 2.0
"""Intervals without a good backup until the badge warns; one may be under way."""
RPO_BAD: Final = 6.0

_STEPS: Final = ((86400.0 * 365, "y"), (86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))

_STATES: Final[Mapping[str, tuple[str, Tone]]] = {
    EnvironmentState.REQUESTED: ("Waiting", "info"),
    EnvironmentState.CLONING: ("Cloning", "info"),
    EnvironmentState.CONFIGURING: ("Configuring", "info"),
    EnvironmentState.BOOTING: ("Booting", "info"),
    EnvironmentState.RESTORING: ("Restoring home", "info"),
    EnvironmentState.READY: ("Ready", "ok"),
    EnvironmentState.STOPPING: ("Stopping", "info"),
    EnvironmentState.STOPPED: ("Stopped", "plain"),
    EnvironmentState.DELETING: ("Deleting", "info"),
    EnvironmentState.DELETED: ("Deleted, home kept", "warn"),
    EnvironmentState.PURGED: ("Purged", "plain"),
    EnvironmentState.FAILED: ("Failed", "bad"),
    "queued": ("Queued", "info"),
    "running": ("Running", "info"),
    "succeeded": ("Succeeded", "ok"),
    "cancelled": ("Cancelled", "plain"),
}


@dataclass(frozen=True, slots=True)
class Badge:
    text: str
    tone: Tone
    about: str = ""
    """One sentence: what it means."""


def duration(seconds: float) -> str:
    """The largest unit, and the next below while that says something: `45 s`, `3 min`, `2 h 5 min`, `4 d 3 h`."""
    rest = max(0.0, seconds)
    for index, (length, unit) in enumerate(_STEPS):
        if rest >= length or unit == "s":
            whole = int(rest // length)
            small = index + 1
            if unit in ("h", "d", "y") and whole < 10 and small < len(_STEPS):
                part = int((rest - whole * length) // _STEPS[small][0])
                if part:
                    return f"{whole} {unit} {part} {_STEPS[small][1]}"
            return f"{whole} {unit}"
    raise AssertionError("the last step takes everything")


def ago(moment: float, now: float) -> str:
    """`3 min ago`, `in 2 h`, `now`."""
    if abs(now - moment) < 1.0:
        return "now"
    return f"{duration(now - moment)} ago" if moment < now else f"in {duration(moment - now)}"


def exact(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_time(moment: float) -> str:
    """For the `datetime` of a `<time>`."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def size(count: float | None) -> str:
    return "unknown" if count is None else shown_size(int(count))


def memory(mib: int) -> str:
    """Memory of machines is chosen in MiB and read in GiB."""
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def count(number: int, one: str, many: str = "") -> str:
    """`1 file`, `12,034 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def state(name: str) -> Badge:
    text, tone = _STATES.get(name, (name, "plain"))
    return Badge(text, tone)


def is_busy(name: str) -> bool:
    return name in BUSY or name in ("queued", "running")


def rpo(environment_state: str, last_good_at: float | None, interval_s: float, now: float, *, error: str | None = None) -> Badge:
    """How much work would be lost if the machine were lost now."""
    if environment_state in (EnvironmentState.DELETED, EnvironmentState.PURGED, EnvironmentState.STOPPED):
        if last_good_at is None:
            return Badge("No backup", "warn", "Nothing of this home was ever saved.")
        return Badge("Saved", "plain", f"The home was last saved {ago(last_good_at, now)}; the machine does not run.")
    if last_good_at is None:
        if environment_state == EnvironmentState.READY:
            return Badge("No backup yet", "warn", "Nothing of this home is saved yet. The first backup follows the first start.")
        return Badge("No backup yet", "plain", "The first backup follows the first start.")
    age = now - last_good_at
    lost = f"If the machine were lost now, the last {duration(age)} of work would be lost."
    if environment_state != EnvironmentState.READY and age >= interval_s * RPO_LATE:
        return Badge(f"Saved {ago(last_good_at, now)}", "plain", f"The home was last saved {ago(last_good_at, now)}.")
    if age < interval_s * RPO_LATE and not error:
        return Badge(f"Saved {ago(last_good_at, now)}", "ok", lost)
    if age < interval_s * RPO_BAD:
        return Badge(f"Backup late: {ago(last_good_at, now)}", "warn", lost)
    return Badge(f"Not saved for {duration(age)}", "bad", lost)


def percent(used: float, total: float) -> int:
    """0 to 100, for a `<meter>`."""
    return 0 if total <= 0 else max(0, min(100, round(100 * used / total)))
