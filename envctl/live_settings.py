"""Settings that an admin changes while the console runs: rows of the table `settings`, over the configuration file's.

One rule: every process sees a change within `SEEN_S`, and none restarts for it. What decides where things are (addresses,
directories, drivers) stands in the file alone.
"""

import threading
from typing import Any, Final, cast

from pydantic import ValidationError
from sqlalchemy import select

from envctl.database.access import Database
from envctl.database.models import Setting
from envctl.errors import EnvctlError, Invalid
from s3core.clock import Clock
from s3core.settings import EnvctlSettings

SEEN_S: Final = 2.0
KEPT: Final[tuple[str, ...]] = (
    "backup_interval_s",
    "retention_fine_s",
    "retention_hourly_s",
    "retention_daily_s",
    "retention_weekly_s",
    "keep_deleted_s",
    "idle_stop_s",
    "orphan_grace_s",
    "shutdown_s",
    "boot_s",
    "restore_s",
    "bandwidth_bytes_per_s",
    "require_totp",
    "session_idle_s",
    "session_s",
)
"""What may be set in the console, in the order of its page."""


class LiveSettings:
    """Stands for the file's EnvctlSettings, with what is kept in the database over them. Threads share it.

    While the database does not answer, what was seen last counts."""

    def __init__(self, file: EnvctlSettings, database: Database, clock: Clock) -> None:
        self._file, self._database, self._clock = file, database, clock
        self._lock = threading.Lock()
        self._seen_at = float("-inf")
        self._now = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current() if name in KEPT else self._file, name)

    def _current(self) -> EnvctlSettings:
        now = self._clock.monotonic()
        with self._lock:
            if now - self._seen_at < SEEN_S:
                return self._now
            # Set before the question: whoever comes meanwhile takes the old ones and does not ask too.
            self._seen_at = now
        try:
            with self._database.read() as session:
                rows = {row.key: row.value for row in session.scalars(select(Setting)) if row.key in KEPT}
            seen = self._file.model_copy(update={key: checked(key, value) for key, value in rows.items()})
        except EnvctlError:
            return self._now
        with self._lock:
            self._now = seen
        return seen

    def forget(self) -> None:
        """The next question looks into the database."""
        with self._lock:
            self._seen_at = float("-inf")


def live(file: EnvctlSettings, database: Database, clock: Clock) -> EnvctlSettings:
    """In the place of an EnvctlSettings: it has the same attributes."""
    return cast(EnvctlSettings, LiveSettings(file, database, clock))


def file_settings(settings: EnvctlSettings) -> EnvctlSettings:
    """What the configuration file says, whatever is kept over it."""
    return settings._file if isinstance(settings, LiveSettings) else settings


def checked(key: str, value: object) -> object:
    """`value` as the setting's type, from JSON or from text as in the file (`30 min`). Invalid."""
    try:
        made = EnvctlSettings.model_validate({key: _number(value)})
    except ValidationError as error:
        said = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        raise Invalid(f"{key}: {said}", details={"value": said}) from error
    return cast(object, getattr(made, key))


def _number(value: object) -> object:
    """The file has numbers and words apart; a form and a command line have words alone."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value.strip()
