"""What is asked and answered about environments, jobs and orphans. Values alone.

One rule: an answer holds everything a page shows, so that a page, the REST API and the command never compute anything of
their own. Moments are Unix seconds, sizes are in the unit at the end of the name. An environment is named by its id, or by its
name among one's own; operators see those of everybody, by id or as `owner/name`.
"""

from typing import Literal

from pydantic import Field

from envctl.states import EnvironmentState, JobKind, JobState
from envctl.verbs.verb import Answer, Request

# What is asked.


class Schedule(Request):
    """When it starts and stops by itself: days and a moment (`MON-FRI 08:00`, `MON,WED 18:30`, `* 20:00`), empty: never."""

    start: str = Field(default="", max_length=64, description="days and a moment")
    stop: str = Field(default="", max_length=64, description="days and a moment")
    timezone: str = Field(default="UTC", max_length=64, description="a name such as Europe/Berlin (IANA)")


class CreateEnvironment(Request):
    name: str = Field(description="a-z, 0-9 and '-'; it becomes the host name")
    template: str = Field(description="name or id of a template")
    cores: int | None = Field(default=None, ge=1, description="empty: the template's")
    memory_mib: int | None = Field(default=None, ge=64, description="empty: the template's")
    disk_gib: int | None = Field(default=None, ge=1, description="empty: the template's")
    directories: list[str] | None = Field(
        default=None, max_length=32, description="paths that are saved; empty: the template's"
    )
    idle_stop_s: int | None = Field(
        default=None, ge=0, description="stopped when idle for this; 0: never; empty: the default"
    )
    schedule: Schedule | None = Field(default=None, description="when it starts and stops by itself")
    expires_at: float | None = Field(
        default=None, description="stopped then and deleted after the grace; the home is kept"
    )
    from_environment: str | None = Field(default=None, description="its home comes from a backup of this one")
    from_snapshot: int | None = Field(default=None, ge=1, description="number of that backup; empty: the newest")
    owner: str | None = Field(
        default=None, description="name of the user it is for; empty: who asks (others: operators alone)"
    )


class ListEnvironments(Request):
    everybody: bool = Field(default=False, description="those of all users (operators)")
    deleted: bool = Field(default=False, description="deleted ones too, while their home is kept")
    state: EnvironmentState | None = Field(default=None, description="in this state alone")
    owner: str | None = Field(default=None, description="of this user (operators)")
    search: str | None = Field(default=None, max_length=64, description="part of the name")


class OneEnvironment(Request):
    environment: str = Field(description="id, or name among one's own, or OWNER/NAME")


class StopEnvironment(OneEnvironment):
    accept_loss: bool = Field(default=False, description="go on where the last minutes cannot be saved")
    force: bool = Field(default=False, description="power off where the machine does not shut down")


class RestartEnvironment(StopEnvironment):
    pass


class ResetEnvironment(StopEnvironment):
    snapshot: int | None = Field(default=None, ge=1, description="the home as this backup has it; empty: the newest")


class DeleteEnvironment(StopEnvironment):
    pass


class ResizeEnvironment(OneEnvironment):
    cores: int | None = Field(default=None, ge=1, description="empty: as now")
    memory_mib: int | None = Field(default=None, ge=64, description="empty: as now")
    disk_gib: int | None = Field(default=None, ge=1, description="disks only grow")


class ExtendEnvironment(OneEnvironment):
    expires_at: float | None = Field(description="the new end; null: never (operators)")


class FreezeEnvironment(OneEnvironment):
    reason: str = Field(default="", max_length=200, description="shown to its owner")


class UpdateEnvironment(OneEnvironment):
    """What is not named stays as it is."""

    idle_stop_s: int | None = Field(default=None, ge=0, description="0: never")
    schedule: Schedule | None = Field(default=None, description="when it starts and stops by itself")


class ListJobs(Request):
    environment: str | None = Field(default=None, description="of this one alone")
    state: JobState | None = Field(default=None, description="in this state alone")
    everybody: bool = Field(default=False, description="of all users (operators)")
    limit: int = Field(default=100, ge=1, le=1000, description="at most so many, the newest first")


class OneJob(Request):
    job: str = Field(description="id of the job")


class RetryJob(OneJob):
    accept_loss: bool = Field(default=False, description="go on where the last minutes cannot be saved")
    force: bool = Field(default=False, description="power off where the machine does not shut down")


class JobLog(OneJob):
    after: int = Field(default=0, ge=0, description="lines with a greater number")
    limit: int = Field(default=500, ge=1, le=5000, description="at most so many")


class OneOrphan(Request):
    machine: str = Field(description="as `admin orphans` shows it")


class AdoptOrphan(OneOrphan):
    environment: str = Field(description="the environment that gets the machine; it must have none")


# What is answered.


class Offer(Answer):
    """A verb for a button: whether it is possible now, and if not, why."""

    verb: str
    title: str
    possible: bool
    reason: str = ""
    destructive: bool = False
    """Ask before: what runs stops, or the machine is thrown away."""


class JobView(Answer):
    id: str
    environment_id: str
    environment_name: str
    owner_name: str
    kind: JobKind
    state: JobState
    step: str | None
    step_number: int
    """1 to `step_count`; 0 while it waits for its turn."""
    step_count: int
    attempt: int
    error: str | None
    cancel_asked: bool
    created_by: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    steps: list["StepView"] = Field(default_factory=list)
    """In `job.show` alone."""
    may_retry: bool = False
    may_cancel: bool = False


class StepView(Answer):
    name: str
    state: Literal["waiting", "running", "done", "failed"]
    attempt: int = 0
    task: str | None = None
    started_at: float | None = None
    ended_at: float | None = None


class Line(Answer):
    id: int
    job_id: str | None
    at: float
    level: str
    text: str


class LogView(Answer):
    lines: list[Line]
    last_id: int
    over: bool
    """Nothing more comes for this job."""


class EnvironmentView(Answer):
    id: str
    name: str
    owner_id: str
    owner_name: str
    state: EnvironmentState
    failed_step: str | None
    failed_reason: str | None
    template_id: str
    template_name: str
    template_title: str
    driver: str
    node: str | None
    vmid: int | None
    address: str | None
    login_user: str
    running: bool
    cores: int
    memory_mib: int
    disk_gib: int
    directories: list[str]
    generation: int
    created_at: float
    ready_at: float | None
    stopped_at: float | None
    deleted_at: float | None
    delete_after: float | None
    """When the home of a deleted environment is deleted too."""
    expires_at: float | None
    frozen: bool
    finding: str | None
    idle_stop_s: int
    """What holds for it; 0: never."""
    idle_stop_at: float | None
    """When it is stopped if nobody uses it until then."""
    last_activity_at: float | None
    schedule: Schedule
    next_start_at: float | None
    next_stop_at: float | None
    last_backup_at: float | None
    last_backup_number: int | None
    last_backup_error: str | None
    next_backup_at: float | None
    rpo_s: float | None
    """How old the last good backup is now: what would be lost if the machine were lost now."""
    rpo_badge: Literal["good", "late", "none", "stopped"]
    """`good`: at most one and a half intervals old; `none`: there is no backup; `stopped`: the machine is off."""
    backup_interval_s: float
    stored_bytes: int
    agent_version: str
    agent_seen_at: float | None
    agent_status: dict[str, object]
    source_environment_id: str | None
    source_snapshot: int | None
    job: JobView | None
    """The one under way; else, where the environment failed, the one that failed."""
    offers: list[Offer]

    def offer(self, verb: str) -> Offer | None:
        return next((offer for offer in self.offers if offer.verb == verb), None)


class EnvironmentAnswer(Answer):
    environment: EnvironmentView
    job: JobView | None = None
    """What was begun."""


class OpenView(Answer):
    """How to get in."""

    environment: EnvironmentView
    address: str
    ssh_command: str
    ssh_config: str
    """Lines for `~/.ssh/config`."""
    console_url: str
    """Page with screen and terminal."""


class JobAnswer(Answer):
    job: JobView


class OrphanView(Answer):
    machine: str
    driver: str
    name: str
    tag: str
    first_seen_at: float
    seen_at: float
    kept: bool
    destroyed_after: float | None
    """None: it is kept."""
    environment_id: str | None
    """Of its tag, where there is such a row."""


class NodeView(Answer):
    name: str
    driver: str
    online: bool
    cores: int
    memory_bytes: int
    memory_used_bytes: int
    storages: list[dict[str, object]]
    environments: int
    """Of ours that are on it."""
    running: int
    at: float


class ReconcileAnswer(Answer):
    machines: int
    orphans: int
    missing: int
    findings: list[str]
    errors: list[str]
    """Hypervisors that did not answer: nothing was concluded from their silence."""
