"""The steps of jobs by name."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from envctl.provision.steps.ending import destroy, forget, shutdown, stop, sweep
from envctl.provision.steps.guest import backup, boot, restore
from envctl.provision.steps.machine import clone, configure, resize, seed, start
from envctl.provision.steps.reserving import fence, reserve
from envctl.provision.work import Work
from envctl.states import StepName

Step = Callable[[Work], Awaitable[None]]

ACTS: Final[Mapping[StepName, Step]] = {
    StepName.RESERVE: reserve,
    StepName.FENCE: fence,
    StepName.CLONE: clone,
    StepName.CONFIGURE: configure,
    StepName.SEED: seed,
    StepName.START: start,
    StepName.BOOT: boot,
    StepName.RESTORE: restore,
    StepName.BACKUP: backup,
    StepName.SHUTDOWN: shutdown,
    StepName.STOP: stop,
    StepName.RESIZE: resize,
    StepName.DESTROY: destroy,
    StepName.FORGET: forget,
    StepName.SWEEP: sweep,
}
