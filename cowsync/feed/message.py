"""One line of a feed: which objects of which buckets it names.

One rule: a notification is a hint, never a fact. The names of bucket and object are taken out of it, and when it was sent;
what happened, sizes, ETags, versions and sequencers are not: whoever wants to know asks the source.

Envelopes and encodings are `s3core.notifications`'.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from s3core.notifications import NotANotification, is_bridged, names_in, records_of


@dataclass(frozen=True, slots=True)
class Hint:
    """`keys` are one key, or two where it cannot be told whether it was encoded. `sent` is Unix seconds, None where the
    record tells no time."""

    bucket: str
    keys: tuple[str, ...]
    sent: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What a line holds. `wrong` says why something in it could not be understood, "" where all was."""

    hints: tuple[Hint, ...] = ()
    wrong: str = ""


def message_of(line: bytes) -> Message:
    """Any bytes lead to an answer. Of a line with several records those that can be understood count."""
    try:
        documents = list(records_of(line))
    except NotANotification as error:
        return Message((), str(error))
    hints: list[Hint] = []
    wrong = ""
    for document in documents:
        try:
            hints.append(_hint(document))
        except NotANotification as error:
            wrong = wrong or str(error)
    return Message(tuple(hints), wrong)


def _hint(record: dict[str, Any]) -> Hint:
    bucket, keys = names_in(record)
    return Hint(bucket, keys, _seconds(record.get("time" if is_bridged(record) else "eventTime")))


def _seconds(moment: object) -> float | None:
    if not isinstance(moment, str):
        return None
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
