"""What is asked and answered about backups. Values alone.

One rule: a path is text in one form (`envctl.homes.paths`): UTF-8 as it is; `%` and bytes that are no printable UTF-8 as
`%XX`; with or without a slash at its beginning. Moments are Unix seconds, sizes bytes.
"""

from typing import Literal

from pydantic import Field

from envctl.homes.reading import What
from envctl.verbs.verb import Answer, Request

PATH = "as `backup browse` shows it; % is written %25"
ENVIRONMENT = "id, or name among one's own, or OWNER/NAME"


class OneHome(Request):
    environment: str = Field(description=ENVIRONMENT, max_length=160)


class OneBackup(OneHome):
    number: int = Field(ge=1, description="number of the backup")


class ListBackups(OneHome):
    before: int | None = Field(default=None, ge=1, description="those with a lower number; for the next page")
    limit: int = Field(default=200, ge=1, le=2000, description="at most so many, newest first")
    pinned: bool = Field(default=False, description="only pinned ones")


class DiffBackups(OneBackup):
    older: int | None = Field(
        default=None, ge=0, description="compare with this backup; empty: the one before, 0: nothing"
    )
    path: str = Field(default="", max_length=12_300, description=f"only below this folder, {PATH}")
    after: str = Field(default="", max_length=12_300, description="go on after this path")
    limit: int = Field(default=500, ge=1, le=10_000, description="at most so many lines")


class BrowseBackup(OneBackup):
    path: str = Field(default="", max_length=12_300, description=f"a folder, {PATH}; empty: the root")
    after: str = Field(default="", max_length=1_000, description="go on after this name")
    limit: int = Field(default=500, ge=1, le=10_000, description="at most so many lines")


class GetFile(OneBackup):
    path: str = Field(min_length=1, max_length=12_300, description=f"a file, {PATH}")
    offset: int = Field(default=0, ge=0, description="first byte")
    length: int | None = Field(default=None, ge=0, description="so many bytes; empty: to the end")


class GetArchive(OneBackup):
    path: str = Field(default="", max_length=12_300, description=f"a file or a folder, {PATH}; empty: everything")
    form: Literal["zip", "tar"] = Field(default="zip", description="tar keeps owners, links and extended attributes")


class RestoreBackup(OneBackup):
    paths: list[str] = Field(
        default_factory=list, max_length=1000, description=f"files and folders, {PATH}; none: everything"
    )
    into: str = Field(
        default="",
        max_length=12_300,
        description="an empty folder in the machine to put them into; empty: where they were",
    )
    source: str = Field(
        default="", max_length=160, description="take them from a backup of this environment; empty: from the own"
    )


class PinBackup(OneBackup):
    note: str = Field(default="", max_length=200, description="why it is kept")


class BackupView(Answer):
    """A snapshot of a home."""

    number: int
    at: float
    generation: int
    kind: str
    """`timer`, `asked`, `final` or `safety` (before a restore in place)."""
    files: int
    bytes: int
    added: int
    changed: int
    removed: int
    new_bytes: int
    """Stored for it."""
    fuzzy: int
    """Files that changed while they were read; their last good content was kept."""
    pinned: bool
    note: str
    alert: str | None
    """What the mass-change guard said."""


class BackupList(Answer):
    """Newest first. `next_before`: what to ask for next; none: that was all."""

    environment_id: str
    environment_name: str
    backups: list[BackupView]
    next_before: int | None
    total: int
    pinned: int
    last_backup_at: float | None
    """When the home last was known to be that of the newest backup."""
    last_backup_error: str | None
    rpo_s: float | None
    """How old that is."""
    stored_bytes: int


class BackupDetail(Answer):
    environment_id: str
    environment_name: str
    backup: BackupView
    previous: int | None
    """The kept backup before it."""
    next: int | None
    fuzzy_paths: list[str]
    directories: list[str]
    """Where the home is, for the first page of a browser."""


class FileView(Answer):
    name: str
    path: str
    type: Literal["folder", "file", "link", "fifo"]
    size: int
    mode: str
    """As `ls -l` writes it."""
    owner: str
    group: str
    modified_at: float
    target: str
    """Of a symbolic link."""
    hard_link: str
    """The path that holds the content; empty: this one does."""
    fuzzy: bool


class FileList(Answer):
    environment_id: str
    environment_name: str
    number: int
    at: float
    path: str
    parents: list[str]
    """Paths of the folders above, from the root."""
    entries: list[FileView]
    next_after: str | None


class ChangeView(Answer):
    what: What
    path: str
    type: Literal["folder", "file", "link", "fifo"]
    size_before: int | None
    size_after: int | None
    modified_at: float | None
    content: bool
    """The bytes differ; else only owner, mode, times or attributes."""


class ChangeList(Answer):
    environment_id: str
    environment_name: str
    older: int
    newer: int
    path: str
    changes: list[ChangeView]
    next_after: str | None


class BackupAsked(Answer):
    """What was asked of the machine. `command`: see `backup progress`."""

    environment_id: str
    command: str
    message: str


class OneCommand(OneHome):
    command: str = Field(max_length=26, description="as `backup now` or `backup restore` gave it")


class CommandView(Answer):
    state: Literal["waiting", "taken", "done", "failed"]
    created_at: float
    ended_at: float | None
    number: int | None
    """Of the backup that was made, or restored."""
    message: str


class HealthView(Answer):
    environment_id: str
    environment_name: str
    owner_name: str
    state: str
    health: Literal["good", "late", "failing", "none", "off"]
    """`late`: the last good backup is older than one and a half intervals; `failing`: the last attempt failed; `none`: there
    is none; `off`: the machine is off."""
    last_backup_at: float | None
    last_backup_number: int | None
    last_backup_error: str | None
    rpo_s: float | None
    backups: int
    pinned: int
    alerts: int
    """Backups that the mass-change guard spoke at."""
    stored_bytes: int


class HealthList(Answer):
    """Worst first."""

    environments: list[HealthView]
    good: int
    late: int
    failing: int
    none: int
    off: int
    stored_bytes: int
