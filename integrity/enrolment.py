"""Who may write in a ledger: requests to be enrolled, and the roster that the ledger's own log makes up.

    join    on a writer's host: keys are made there and never leave it; a request with their public halves comes out
    enrol   where the ledger key is: the request is checked and its writers get `enrol` records
    retire  "                      : a `retire` record with the last head; the name is never used again

One rule: a writer is whom the ledger's log names, with the key it names; a request counts only with a proof that who asks has
the key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from integrity.errors import LedgerError, Malformed
from integrity.keys import SlotKeys, check_possession, sign_possession, verifier_of
from integrity.layout import LEDGER_WRITER, check_writer, origin_of
from integrity.place import Ledger
from integrity.slots import slot_folder, writers_here
from integrity.tlog.note import parse_vkey
from integrity.verification.trust import Members
from integrity.writer import Writer

REQUEST_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Applicant:
    """A writer that asks to be enrolled: its name, the key of its epoch 0, and the note that shows that it has the key."""

    writer: str
    vkey: str
    proof: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a host hands to who has the ledger key. Nothing in it is secret."""

    origin: str
    writers: tuple[Applicant, ...]

    def encode(self) -> bytes:
        document = {"v": 1, "ledger": self.origin, "writers": [asdict(one) for one in self.writers]}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"


def parse_request(data: bytes) -> Request:
    """Malformed for anything but what `Request.encode` gives; the proofs are not checked yet."""
    try:
        if len(data) > REQUEST_BYTES_MAX:
            raise ValueError(f"it has {len(data):,} bytes")
        document = orjson.loads(data)
        if document["v"] != 1:
            raise ValueError(f"it is of version {document['v']!r}, and this program knows 1")
        writers = tuple(
            Applicant(check_writer(one["writer"]), str(one["vkey"]), str(one["proof"])) for one in document["writers"]
        )
        return Request(str(document["ledger"]), writers)
    except (ValueError, KeyError, TypeError) as error:
        raise Malformed(f"not a request to be enrolled: {error}", hint="make one with `s3integrity join`") from error


class Roster:
    """The ledger's log folded, as its writer keeps it: the members, and which bad heads have been recorded."""

    def __init__(self) -> None:
        self.members = Members()
        self.refused: dict[str, str] = {}
        """By writer: what was last recorded of a head that does not hold."""

    def apply(self, record: Mapping[str, Any]) -> None:
        if record["n"] < self.members.size:
            return
        if record["op"] == "error" and "writer" in record.get("detail", {}):
            self.refused[record["detail"]["writer"]] = record["detail"]["found"]
        self.members.apply(record["n"], record)

    def to_json(self) -> object:
        return {"members": self.members.facts(), "refused": self.refused}

    def load_json(self, document: Any) -> None:
        self.members = Members.from_facts(document["members"])
        self.refused = dict(document["refused"])


@dataclass(slots=True)
class Enrolled:
    """What came of a request: who is new, and who was enrolled with that key already."""

    new: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)


def make_slots(ledger: Ledger, count: int) -> list[str]:
    """See to it that this host has keys for `count` slots; the names of those that are new. Durable on return; what is there
    is left as it is, so a crash or a second call does no harm."""
    host = ledger.host
    made = []
    for number in range(1, count + 1):
        writer = check_writer(f"{host}.{number}")
        key = slot_folder(ledger, writer) / "key.json"
        if not key.exists():
            SlotKeys.create(key, origin_of(ledger.origin, writer), now=ledger.clock.time())
            made.append(writer)
    return made


def request_of(ledger: Ledger, writers: Sequence[str] = ()) -> Request:
    """The request of this host's slots (all, where none is named) that are in their first epoch; one that has changed its key
    was enrolled long ago. NotEnrolled for a slot that is not there."""
    applicants = []
    for writer in writers or writers_here(ledger):
        keys = SlotKeys.load(slot_folder(ledger, writer) / "key.json")
        if keys.epoch == 0:
            vkey = verifier_of(slot_folder(ledger, writer) / "key.json").vkey
            applicants.append(Applicant(writer, vkey, sign_possession(ledger.origin, writer, keys.signer)))
    return Request(ledger.origin, tuple(applicants))


def enrol(log: Writer, roster: Roster, origin: str, request: Request) -> Enrolled:
    """Record the request's writers in the ledger's own log, which the caller publishes; all or none. LedgerError for another
    ledger's request or a name that is taken; Rejected for a proof that does not hold."""
    if request.origin != origin:
        raise LedgerError(f"the request is for ledger {request.origin}, not for {origin}")
    told = Enrolled()
    events = []
    for one in request.writers:
        check_possession(one.proof, origin, one.writer, one.vkey)
        if one.writer == LEDGER_WRITER:
            raise LedgerError(f"{LEDGER_WRITER!r} is the name of the ledger's own log")
        if parse_vkey(one.vkey).name != origin_of(origin, one.writer):
            raise LedgerError(f"the key of {one.writer} is called {parse_vkey(one.vkey).name}")
        member = roster.members.by_name.get(one.writer)
        if member is None:
            events.append({"op": "enrol", "source": "ledger", "detail": {"writer": one.writer, "vkey": one.vkey}})
            told.new.append(one.writer)
        elif member.vkey == one.vkey and not member.retired:
            told.there.append(one.writer)
        else:
            why = "was retired" if member.retired else "is enrolled with another key"
            raise LedgerError(
                f"writer {one.writer} {why}, and names are not used again",
                hint="set `writer` in the configuration of that host to another name, remove its slots, and join again",
            )
    if len(set(told.new)) < len(told.new):
        raise LedgerError("the request names a writer twice")
    log.record_all(events)
    return told


def retire(log: Writer, roster: Roster, writer: str) -> bool:
    """Record that the writer is one no more, with its newest head; the caller seals before and publishes afterwards. False
    where it was retired before. LedgerError for a writer nobody knows."""
    member = roster.members.by_name.get(writer)
    if member is None:
        known = ", ".join(sorted(roster.members.by_name)) or "none"
        raise LedgerError(f"no writer {writer} in this ledger; there are: {known}")
    if member.retired:
        return False
    head = {"size": member.head.size, "root": member.head.root} if member.head else {"size": 0}
    log.record({"op": "retire", "source": "ledger", "detail": {"writer": writer, **head}})
    return True
