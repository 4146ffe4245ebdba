"""The states of environments and jobs, and what may follow what. Pure.

    REQUESTED → CLONING → CONFIGURING → BOOTING → RESTORING → READY ⇄ STOPPING → STOPPED → DELETING → DELETED

and FAILED from any of them while a job runs; an environment that failed keeps the step and the reason, and offers Retry,
Stop and Delete. A job is what moves an environment; at most one that is not over belongs to an environment.
"""

from enum import StrEnum
from typing import Final


class EnvironmentState(StrEnum):
    REQUESTED = "requested"
    CLONING = "cloning"
    CONFIGURING = "configuring"
    BOOTING = "booting"
    RESTORING = "restoring"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETING = "deleting"
    DELETED = "deleted"
    """The machine is gone; the home is kept until `delete_after`, and `undelete` works until then."""
    PURGED = "purged"
    """The home is gone too. The row stays for the audit."""
    FAILED = "failed"


class JobKind(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    RESET = "reset"
    """The machine is thrown away and cloned anew; the home stays."""
    RESIZE = "resize"
    DELETE = "delete"
    UNDELETE = "undelete"
    PURGE = "purge"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepName(StrEnum):
    RESERVE = "reserve"
    """A VMID in a row of ours, before the hypervisor is asked."""
    FENCE = "fence"
    """The home's head gets the next generation: from here on no older machine can commit."""
    CLONE = "clone"
    CONFIGURE = "configure"
    SEED = "seed"
    START = "start"
    BOOT = "boot"
    """Until the agent has enrolled."""
    RESTORE = "restore"
    """Until the agent says that the home is there."""
    BACKUP = "backup"
    """The final one, before the machine is stopped."""
    SHUTDOWN = "shutdown"
    STOP = "stop"
    RESIZE = "resize"
    DESTROY = "destroy"
    FORGET = "forget"
    """Rows are brought in order: VMID free, guest identities revoked, times set."""
    SWEEP = "sweep"
    """The home's objects are deleted."""


STEPS: Final[dict[JobKind, tuple[StepName, ...]]] = {
    JobKind.CREATE: (
        StepName.RESERVE,
        StepName.FENCE,
        StepName.CLONE,
        StepName.CONFIGURE,
        StepName.SEED,
        StepName.START,
        StepName.BOOT,
        StepName.RESTORE,
    ),
    JobKind.START: (StepName.START, StepName.BOOT, StepName.RESTORE),
    JobKind.STOP: (StepName.BACKUP, StepName.SHUTDOWN),
    JobKind.RESTART: (StepName.BACKUP, StepName.SHUTDOWN, StepName.START, StepName.BOOT, StepName.RESTORE),
    JobKind.RESET: (
        StepName.BACKUP,
        StepName.SHUTDOWN,
        StepName.DESTROY,
        StepName.FORGET,
        StepName.RESERVE,
        StepName.FENCE,
        StepName.CLONE,
        StepName.CONFIGURE,
        StepName.SEED,
        StepName.START,
        StepName.BOOT,
        StepName.RESTORE,
    ),
    JobKind.RESIZE: (StepName.RESIZE,),
    JobKind.DELETE: (StepName.BACKUP, StepName.SHUTDOWN, StepName.DESTROY, StepName.FORGET),
    JobKind.UNDELETE: (
        StepName.RESERVE,
        StepName.FENCE,
        StepName.CLONE,
        StepName.CONFIGURE,
        StepName.SEED,
        StepName.START,
        StepName.BOOT,
        StepName.RESTORE,
    ),
    JobKind.PURGE: (StepName.DESTROY, StepName.FORGET, StepName.SWEEP),
}

BUSY: Final = frozenset(
    {
        EnvironmentState.REQUESTED,
        EnvironmentState.CLONING,
        EnvironmentState.CONFIGURING,
        EnvironmentState.BOOTING,
        EnvironmentState.RESTORING,
        EnvironmentState.STOPPING,
        EnvironmentState.DELETING,
    }
)
"""A job is under way, or waits for its turn."""

OVER: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

MAY_START: Final[dict[JobKind, frozenset[EnvironmentState]]] = {
    JobKind.CREATE: frozenset({EnvironmentState.REQUESTED, EnvironmentState.FAILED}),
    JobKind.START: frozenset({EnvironmentState.STOPPED, EnvironmentState.FAILED}),
    JobKind.STOP: frozenset({EnvironmentState.READY, EnvironmentState.FAILED}),
    JobKind.RESTART: frozenset({EnvironmentState.READY}),
    JobKind.RESET: frozenset({EnvironmentState.READY, EnvironmentState.STOPPED, EnvironmentState.FAILED}),
    JobKind.RESIZE: frozenset({EnvironmentState.STOPPED, EnvironmentState.READY}),
    JobKind.DELETE: frozenset({EnvironmentState.READY, EnvironmentState.STOPPED, EnvironmentState.FAILED}),
    JobKind.UNDELETE: frozenset({EnvironmentState.DELETED}),
    JobKind.PURGE: frozenset({EnvironmentState.DELETED}),
}
"""From which states a person or the schedule may start it. A retry goes on with the failed job itself."""
