"""What can go wrong in the agent, by who must act.

One rule: only `Fenced` stops the agent for good; everything else is told in the status and tried again at the next interval.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base: what happened, to what, and what to do."""


class Corrupt(AgentError):
    """Bytes of an object, of the cache or of the state are not what was written. The message names the object."""


class Unavailable(AgentError):
    """The console or the store did not answer. The outcome of the request is unknown."""


class Refused(AgentError):
    """The console answered with an error. `code` is its word for it, `status` the HTTP status."""

    def __init__(self, message: str, code: str, status: int, details: dict[str, object]) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.details = details


class Fenced(AgentError):
    """Another machine has this home now. This one must never write again."""


class NotRestored(AgentError):
    """The home is not yet here: backing up now would save an empty one over it."""


class Incomplete(AgentError):
    """Part of the home could not be looked at. What could be is saved; nobody may take that for the whole."""


class Moved(AgentError):
    """The tree changed under the scan in a way that makes its result useless. The next scan starts afresh."""
