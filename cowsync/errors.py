"""What can go wrong in cowsync beside the store's own answers, sorted by who must act."""


class Held(Exception):
    """The guard holds a plan: nothing was moved. `digest` is what an approval must name."""

    def __init__(self, message: str, *, digest: str, hint: str = "") -> None:
        super().__init__(message)
        self.digest = digest
        self.hint = hint


class Refused(Exception):
    """Things as they are forbid it: another run is going on, the state moved on, a listing is incomplete."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StateDamaged(Exception):
    """A segment, manifest or plan is not what its name says, or cannot be read; the message names it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Busy(Refused):
    """Another process works on the mirror on this host; later it will not."""


class Stopped(Exception):
    """Somebody asked for an orderly stop before the plan was there: nothing has changed."""


class ClusterUnavailable(Exception):
    """The cluster that was to do the work cannot be reached, has no worker, or went away. A scan has changed
    nothing then; of an apply all that was answered is in the journal."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
