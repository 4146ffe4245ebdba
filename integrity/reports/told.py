"""One record in a person's words.

One rule: what comes back is plain text with every character visible (`visible`); whoever puts it into a table, a line or a
page quotes it for that place.
"""

from collections.abc import Mapping
from typing import Any, Final

from s3core.console import clean
from s3core.quantities import shown_size

OUTCOMES: Final[Mapping[str, str]] = {
    "intent": "begun",
    "done": "done",
    "not-done": "not done",
    "unknown": "unknown",
    "observed": "seen",
}
"""What a phase says to a person."""


_CONTROL: Final = ("what", "event", "volume", "mirror", "snapshot")


def visible(text: str) -> str:
    """`text` with control characters, line ends and marks that turn the direction of writing spelled out."""
    return clean(text).replace("\n", "\\n")


def actor(record: Mapping[str, Any]) -> str:
    """Who it was, in a few words: `backup@pve1`, `AKEXAMPLE from 192.0.2.1`, "" where the record does not say."""
    who = record.get("who", {})
    name = next((str(who[part]) for part in ("name", "principal", "user", "access_key") if who.get(part)), "")
    if who.get("host"):
        name = f"{name}@{who['host']}" if name else str(who["host"])
    elif who.get("ip"):
        name = f"{name} from {who['ip']}" if name else str(who["ip"])
    return visible(name)


def place(record: Mapping[str, Any]) -> str:
    """`bucket/key`, as much of it as there is."""
    return visible("/".join(str(record[part]) for part in ("bucket", "key") if record.get(part)))


def outcome(record: Mapping[str, Any]) -> str:
    """How it ended, with the store's code where it did not end well."""
    said = OUTCOMES.get(record["phase"], str(record["phase"]))
    code = record.get("error", {}).get("code")
    return visible(f"{said}: {code}" if code else said)


def number(record: Mapping[str, Any]) -> str:
    """Where the record lies: `pve1.1#42`."""
    return f"{record['writer']}#{record['n']}"


def extra(record: Mapping[str, Any]) -> str:
    """What was done, of a control-plane event; size and version, where they are known."""
    detail = record.get("detail", {}) if record["op"] == "control" else {}
    words = [visible(detail[name]) for name in _CONTROL if isinstance(detail.get(name), str)]
    parts = [" ".join(words)] if words else []
    parts += [shown_size(record["size"])] if "size" in record else []
    if record.get("version"):
        parts.append(f"version {visible(str(record['version']))}")
    return ", ".join(parts)


def row(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a table of records."""
    return {
        "when": str(record["at"])[:19].replace("T", " "),
        "who": actor(record) or str(record["source"]),
        "what": str(record["op"]),
        "key": place(record),
        "outcome": outcome(record),
        "extra": extra(record),
        "record": number(record),
    }
