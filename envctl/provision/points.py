"""Named moments of jobs, so that a test can end the process at each of them. The product puts no hook in.

One rule: a name is `<kind of job>.<step>.<moment>`; `MOMENTS` are all there are.
"""

from collections.abc import Callable
from typing import Final

MOMENTS: Final = ("before-act", "after-act", "after-row", "during-wait", "after-verify")
"""`before-act`: the step is in the database, nothing was asked for. `after-act`: the hypervisor (or the guest) was asked, and
no row says so. `after-row`: the task's name is written. `during-wait`: it was asked at least once whether it is over.
`after-verify`: what was wanted is so, and the step is not yet marked as done."""


def _nothing(name: str) -> None:
    return None


_hook: Callable[[str], None] = _nothing


def reached(name: str) -> None:
    """A moment is reached."""
    _hook(name)


def set_hook(hook: Callable[[str], None] | None) -> None:
    """For tests: `hook` is called at each moment, in the runner's event loop; None: nothing is."""
    global _hook
    _hook = hook or _nothing
