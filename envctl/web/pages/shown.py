"""How values are written on pages: moments, sizes, states, how old the last good backup is. Pure; `now` is an argument.

One rule: a colour never says anything alone; each tone comes with words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from envctl.states import BUSY, EnvironmentState
from envctl.verbs.environment_models import EnvironmentView
from s3core.quantities import shown_size

Tone = Literal["ok", "warn", "bad", "info", "plain"]

RPO_BAD: Final = 6.0
"""Intervals without a good backup until the badge no longer warns but alarms."""

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


def rpo(environment: EnvironmentView, now: float) -> Badge:
    """How much work would be lost if the machine were lost now; what the answer of the verb says, as words."""
    good_at = environment.last_backup_at
    if good_at is None:
        lost = environment.state is EnvironmentState.READY
        return Badge("No backup yet", "warn" if lost else "plain", "Nothing of this home is saved yet.")
    saved = f"Saved {ago(good_at, now)}"
    if environment.rpo_badge == "stopped":
        return Badge(saved, "plain", f"The machine is off; its home was last saved {exact(good_at)}.")
    age = now - good_at
    about = f"Last good backup {exact(good_at)}. If the machine were lost now, the last {duration(age)} of work would be lost."
    if environment.rpo_badge == "good":
        return Badge(saved, "ok", about)
    if age < environment.backup_interval_s * RPO_BAD:
        return Badge(f"Backup late: {ago(good_at, now)}", "warn", about)
    return Badge(f"Not saved for {duration(age)}", "bad", about)


def sentence(text: str) -> str:
    """Messages of errors begin in lower case and have no full stop; on a page they are sentences. A name or an address that
    they begin with stays as it is."""
    text = str(text).strip()
    if not text:
        return text
    first = text[0].upper() if text.split()[0].rstrip(",;").isalpha() else text[0]
    return first + text[1:] + ("" if text[-1] in ".!?:" else ".")


def plain(value: object) -> object:
    """A number as people type it: 300, not 300.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def rounded(value: object) -> object:
    """A figure that an agent told, with two digits at most behind the point; what is none stays as it was told."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S")


def local(moment: float) -> str:
    """For an `<input type=datetime-local>` that is labelled UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M")


def moment_of(text: str) -> float:
    """The other way; ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M").replace(tzinfo=UTC).timestamp()


def percent(used: float, total: float) -> int:
    """0 to 100, for a `<meter>`."""
    return 0 if total <= 0 else max(0, min(100, round(100 * used / total)))
