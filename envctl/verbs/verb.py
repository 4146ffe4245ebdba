"""What a verb is: a name, where the REST API has it, who may, and the function that does it. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from envctl.calling import Caller, Context, Role

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Request(BaseModel):
    """Base of what verbs take. Fields whose names stand in the verb's path come from there, those of a GET from the query, the
    others from the JSON body; the command makes an argument of each in the path and an option of each other. Each field
    has a description: it is the option's help and the API's documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """Base of what verbs give."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Request):
    """A verb that needs to be told nothing."""


class Done(Answer):
    """Done; there is nothing to tell."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is bytes: a file, an archive. Read once, in pieces."""

    pieces: Iterator[bytes]
    filename: str
    media_type: str = "application/octet-stream"
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be asked."""

    name: str
    """`noun.verb`, as the command has it: `s3-envctl noun verb`."""
    method: Method
    path: str
    """Below /api/v1, with `{field}` for fields of the request."""
    scope: str
    """What a token needs (`envctl.accounts.scopes`)."""
    function: Callable[[Context, Caller, Any], Answer | list[Any] | Stream]
    request: type[Request]
    answer: Any
    """An Answer class, `list[...]` of one, or Stream."""
    summary: str
    """One line, in the imperative."""
    role: Role = "user"
    """The least role."""
    destructive: bool = False
    """The command asks before, unless --yes."""
