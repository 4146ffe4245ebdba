"""Attach and detach: look, decide, do.

One rule: nothing is done before everything that forbids it was looked for; what is done is told step by step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from blockdev.errors import Refused
from blockdev.lio.found import Found
from blockdev.lio.plan import Step, attach_steps, check_free, detach_steps, differences
from blockdev.lio.wanted import Wanted, check

Told = Callable[[Step], None]


class Machine(Protocol):
    """What these need of a host: `kernel.Kernel`, or a model of it."""

    def prepare(self) -> None: ...

    def locked(self) -> AbstractContextManager[None]: ...

    def look(self) -> Found: ...

    def handled(self, volume: str) -> bool: ...

    def perform(self, step: Step) -> bool: ...


def attach(wanted: Wanted, machine: Machine, *, replace: bool, told: Told = lambda step: None) -> int:
    """Have the kernel offer the volume, and have it do so after the next boot; the number of things that were changed.

    Idempotent, and the cure for what a crash of itself left. Without `replace`, Refused names everything that is there and
    is not as wanted (a size apart: it follows the volume), and nothing was done. Raises Refused, LocalDiskFailed."""
    check(wanted)
    machine.prepare()
    with machine.locked():
        found = machine.look()
        check_free(wanted, found)
        differing = differences(wanted, found)
        if differing and not replace:
            told_of = "; ".join(difference.text for difference in differing)
            raise Refused(f"volume {wanted.volume} is attached otherwise: {told_of}", hint="--replace changes that")
        return _performed(attach_steps(wanted, found), machine, told)


def detach(
    volume: str, machine: Machine, *, iqn: str, force: bool, served: bool, told: Told = lambda step: None
) -> int:
    """Take the volume out of the kernel and of the saved configuration; the number of things that were changed, 0 where it
    was not there. Idempotent, and the cure for what a crash left. Raises Refused while somebody is logged in."""
    machine.prepare()
    with machine.locked():
        # A daemon may have its control socket elsewhere (--state-dir): its ring must not be reset under it.
        served = served or machine.handled(volume)
        steps = detach_steps(volume, machine.look(), force=force, served=served, iqn=iqn)
        return _performed(steps, machine, told)


def _performed(steps: list[Step], machine: Machine, told: Told) -> int:
    changed = 0
    for step in steps:
        if machine.perform(step):
            changed += 1
            told(step)
    return changed
