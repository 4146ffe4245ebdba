"""Login: the negotiation table and the state machine from the first byte to full feature phase.

One rule: what a key means stands in `KEYS` (kind, default, range, our value, where it may appear); code, tests and
docs/protocol/iscsi.md are drawn from it. RFC 7143 sections 6 and 13. A login is a value machine: `Login.step` takes one
request's header fields and text and returns one reply; it knows no socket and no clock.

    stage SECURITY (0)     AuthMethod, then CHAP_* until `chap.done`   -> OPERATIONAL or FULL FEATURE
    stage OPERATIONAL (1)  the table                                   -> FULL FEATURE (3)

What the table cannot say: InitiatorName comes in the first request; TargetName too, unless SessionType is Discovery; our
own MaxRecvDataSegmentLength is declared once, with our first operational reply; FirstBurstLength may not
exceed MaxBurstLength, whichever order they come in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from blockdev.iscsi.chap import ChapTarget, Credentials
from blockdev.iscsi.errors import LoginRefused, LoginStatus, PeerError
from blockdev.iscsi.text import Gathered, number


class Kind(Enum):
    """How the result of a key comes about (RFC 7143 6.2)."""

    LIST = auto()  # the first of the offer that we know
    MINIMUM = auto()
    MAXIMUM = auto()
    AND = auto()
    OR = auto()
    DECLARE = auto()  # each side states its own


class Where(Enum):
    LOGIN = auto()  # leading login only
    ANY = auto()  # also in full feature phase


@dataclass(frozen=True, slots=True)
class Key:
    """One row. `default` holds when nobody speaks; `ours` is our side of the negotiation; numbers lie in
    `low`..`high`. `irrelevant_in_discovery`: answered "Irrelevant" there (RFC 7143 13)."""

    kind: Kind
    default: str
    ours: str
    low: int = 0
    high: int = 0
    where: Where = Where.LOGIN
    irrelevant_in_discovery: bool = False


_TEXT = Key(Kind.DECLARE, "", "")

KEYS: dict[str, Key] = {
    "HeaderDigest": Key(Kind.LIST, "None", "None,CRC32C"),
    "DataDigest": Key(Kind.LIST, "None", "None,CRC32C"),
    "MaxConnections": Key(Kind.MINIMUM, "1", "1", 1, 65535, irrelevant_in_discovery=True),
    "InitialR2T": Key(Kind.OR, "Yes", "No", irrelevant_in_discovery=True),
    "ImmediateData": Key(Kind.AND, "Yes", "Yes", irrelevant_in_discovery=True),
    "MaxRecvDataSegmentLength": Key(Kind.DECLARE, "8192", "262144", 512, 16777215, Where.ANY),
    "MaxBurstLength": Key(Kind.MINIMUM, "262144", "262144", 512, 16777215, irrelevant_in_discovery=True),
    "FirstBurstLength": Key(Kind.MINIMUM, "65536", "262144", 512, 16777215, irrelevant_in_discovery=True),
    "DefaultTime2Wait": Key(Kind.MAXIMUM, "2", "2", 0, 3600),
    "DefaultTime2Retain": Key(Kind.MINIMUM, "20", "0", 0, 3600),
    "MaxOutstandingR2T": Key(Kind.MINIMUM, "1", "8", 1, 65535, irrelevant_in_discovery=True),
    "DataPDUInOrder": Key(Kind.OR, "Yes", "Yes", irrelevant_in_discovery=True),
    "DataSequenceInOrder": Key(Kind.OR, "Yes", "Yes", irrelevant_in_discovery=True),
    "ErrorRecoveryLevel": Key(Kind.MINIMUM, "0", "0", 0, 2),
    "TaskReporting": Key(Kind.LIST, "RFC3720", "RFC3720"),
    "iSCSIProtocolLevel": Key(Kind.MINIMUM, "1", "1", 0, 31),
    # RFC 3720's markers, obsolete since RFC 7143 13.25; old initiators still say No.
    "IFMarker": Key(Kind.AND, "No", "No"),
    "OFMarker": Key(Kind.AND, "No", "No"),
    "InitiatorName": _TEXT,
    "InitiatorAlias": Key(Kind.DECLARE, "", "", where=Where.ANY),
    "TargetName": _TEXT,
    "SessionType": Key(Kind.DECLARE, "Normal", ""),
    "AuthMethod": Key(Kind.LIST, "None", ""),  # our list depends on the target: see `Login._security`
}

NAME_BYTES_MAX = 223
"""RFC 7143 4.2.7.2."""

STAGE_SECURITY, STAGE_OPERATIONAL, STAGE_FULL_FEATURE = 0, 1, 3


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was agreed. Byte counts unless the name says otherwise; `send_segment_max` is what the initiator takes in one
    PDU, `receive_segment_max` what we do."""

    header_digest: bool = False
    data_digest: bool = False
    initial_r2t: bool = True
    immediate_data: bool = True
    send_segment_max: int = 8192
    receive_segment_max: int = 262144
    max_burst: int = 262144
    first_burst: int = 65536
    max_outstanding_r2t: int = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who logs in to what. `target` is empty in a discovery session; `portal_group` is the tag of the portal that was
    come to, and with the target's name makes the target port."""

    initiator: str
    target: str
    discovery: bool
    isid: int
    tsih: int
    cid: int
    portal_group: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A login request, as far as the negotiation cares."""

    transit: bool
    more: bool
    current_stage: int
    next_stage: int
    version_min: int
    isid: int
    tsih: int
    cid: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    transit: bool
    current_stage: int
    next_stage: int
    pairs: list[tuple[str, str]]


class Rules(Protocol):
    """What the login asks of the target side; `nodes.Nodes` is the real one. Each may raise LoginRefused."""

    def credentials(self, initiator: str, target: str, *, discovery: bool) -> Credentials | None:
        """The CHAP credentials this login must show; None if none are asked."""
        ...

    def admit(self, identity: Identity) -> None:
        """The initiator may have this session."""
        ...


def negotiate(key: str, offer: str, *, ours: str | None = None) -> str:
    """The result of an offer for a key of the table, "Reject" where the offer makes no sense. Pure."""
    row = KEYS[key]
    mine = row.ours if ours is None else ours
    if row.kind is Kind.LIST:
        known = mine.split(",")
        return next((value for value in offer.split(",") if value in known), "Reject")
    if row.kind in (Kind.AND, Kind.OR):
        if offer not in ("Yes", "No"):
            return "Reject"
        yes = (offer == "Yes", mine == "Yes")
        return "Yes" if (all(yes) if row.kind is Kind.AND else any(yes)) else "No"
    try:
        value = number(key, offer)
    except PeerError:
        return "Reject"
    if not row.low <= value <= row.high:
        return "Reject"
    if row.kind is Kind.DECLARE:
        return str(value)
    return str((min if row.kind is Kind.MINIMUM else max)(value, int(mine)))


class Login:
    """One connection's login. Owned by the connection. After `complete`, `identity` and `parameters` hold."""

    def __init__(self, rules: Rules, random_bytes: Callable[[int], bytes], portal_group: int = 1) -> None:
        self.complete = False
        self.discovery = False
        self._rules = rules
        self._portal_group = portal_group
        self._random_bytes = random_bytes
        self._stage: int | None = None
        self._text = Gathered()
        self._first: Request | None = None
        self._initiator = ""
        self._target = ""
        self._chap: ChapTarget | None = None
        self._authenticated = False
        self._method = ""
        self._agreed: dict[str, str] = {}
        self._declared = False
        self._admitted = False

    @property
    def identity(self) -> Identity:
        first = self._first
        assert first is not None
        return Identity(
            self._initiator, self._target, self.discovery, first.isid, first.tsih, first.cid, self._portal_group
        )

    @property
    def parameters(self) -> Parameters:
        values = {name: row.default for name, row in KEYS.items()} | self._agreed
        burst = int(values["MaxBurstLength"])
        return Parameters(
            header_digest=values["HeaderDigest"] == "CRC32C",
            data_digest=values["DataDigest"] == "CRC32C",
            initial_r2t=values["InitialR2T"] == "Yes",
            immediate_data=values["ImmediateData"] == "Yes",
            send_segment_max=int(values["MaxRecvDataSegmentLength"]),
            receive_segment_max=int(KEYS["MaxRecvDataSegmentLength"].ours),
            max_burst=burst,
            first_burst=min(int(values["FirstBurstLength"]), burst),
            max_outstanding_r2t=int(values["MaxOutstandingR2T"]),
        )

    def step(self, request: Request) -> Reply | None:
        """One request. None: the text goes on (C bit), answer with an empty reply. Raises LoginRefused, PeerError."""
        self._check_header(request)
        self._text.add(request.text)
        if request.more:
            if request.transit:
                raise LoginRefused(LoginStatus.INITIATOR_ERROR, "login with both the T and the C bit")
            return None
        keys = self._text.take()
        pairs: list[tuple[str, str]] = []
        if self._stage is None:
            self._name(request, keys)
        self._stage = request.current_stage
        if self._stage == STAGE_SECURITY:
            pairs += self._security(keys)
        else:
            self._need_no_chap()
        pairs += self._operational(keys)
        if not self._admitted and self._authenticated:
            # Only now: an initiator that has not authenticated learns nothing about the targets it might see.
            self._rules.admit(self.identity)
            self._admitted = True
            if not self.discovery:
                pairs.append(("TargetPortalGroupTag", str(self._portal_group)))
        transit = request.transit and self._may_leave(request)
        if transit:
            self._stage = request.next_stage
            self.complete = request.next_stage == STAGE_FULL_FEATURE
        return Reply(transit, request.current_stage, request.next_stage if transit else 0, pairs)

    # ---- inside

    def _check_header(self, request: Request) -> None:
        if request.version_min > 0:
            raise LoginRefused(LoginStatus.UNSUPPORTED_VERSION, f"login needs version {request.version_min}, we are 0")
        if request.current_stage not in (STAGE_SECURITY, STAGE_OPERATIONAL):
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"login in stage {request.current_stage}")
        if request.transit and not request.current_stage < request.next_stage != 2:
            raise LoginRefused(
                LoginStatus.INITIATOR_ERROR, f"login from stage {request.current_stage} to {request.next_stage}"
            )
        if self._first is None:
            self._first = request
        elif (request.isid, request.tsih, request.cid) != (self._first.isid, self._first.tsih, self._first.cid):
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "ISID, TSIH or CID changed during login")
        if self._stage is not None and request.current_stage != self._stage:
            raise LoginRefused(
                LoginStatus.INITIATOR_ERROR, f"login jumped from stage {self._stage} to {request.current_stage}"
            )

    def _name(self, request: Request, keys: dict[str, str]) -> None:
        """The first request says who, what kind of session, and to which target (RFC 7143 6.3)."""
        kind = keys.pop("SessionType", "Normal")
        if kind not in ("Normal", "Discovery"):
            raise LoginRefused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"SessionType={kind[:64]}")
        self.discovery = kind == "Discovery"
        self._initiator = _name(keys.pop("InitiatorName", ""))
        if not self._initiator:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "login without InitiatorName")
        self._target = _name(keys.pop("TargetName", ""))
        if self.discovery:
            self._target = ""
        elif not self._target:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, f"{self._initiator}: login without TargetName")
        credentials = self._rules.credentials(self._initiator, self._target, discovery=self.discovery)
        if credentials is None:
            self._authenticated = True
        else:
            self._chap = ChapTarget(credentials, self._random_bytes)

    def _security(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        offer = keys.pop("AuthMethod", None)
        if offer is not None:
            if self._method:
                raise LoginRefused(LoginStatus.INITIATOR_ERROR, "AuthMethod negotiated twice")
            ours = "CHAP" if self._chap else "None"
            self._method = negotiate("AuthMethod", offer, ours=ours)
            if self._method == "Reject":
                raise LoginRefused(
                    LoginStatus.AUTHENTICATION_FAILURE,
                    f"{self._initiator}: AuthMethod={offer[:64]}, but this target asks for {ours}",
                )
            pairs.append(("AuthMethod", self._method))
        if self._chap is not None and self._method == "CHAP" and any(key.startswith("CHAP_") for key in keys):
            pairs += self._chap.step(keys)
            self._authenticated = self._chap.done
        return pairs

    def _need_no_chap(self) -> None:
        if not self._authenticated:
            raise LoginRefused(
                LoginStatus.AUTHENTICATION_FAILURE, f"{self._initiator}: skipped the authentication that is required"
            )

    def _may_leave(self, request: Request) -> bool:
        """Whether the stage may be left now; CHAP that never began is an error, CHAP under way holds the initiator."""
        if self._authenticated:
            return True
        if self._method != "CHAP":
            self._need_no_chap()
        return False

    def _operational(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        """Answers every other key, in the order they came, and declares what is ours to declare."""
        pairs: list[tuple[str, str]] = []
        # CHAP_* and AuthMethod outside their place, and keys nobody defined, get the answer of RFC 7143 6.2.
        for key, value in keys.items():
            answer = self._answer(key, value)
            if answer is not None:
                pairs.append((key, answer))
        if self._stage == STAGE_OPERATIONAL and not self._declared:
            self._declared = True
            pairs.append(("MaxRecvDataSegmentLength", KEYS["MaxRecvDataSegmentLength"].ours))
        return pairs

    def _answer(self, key: str, value: str) -> str | None:
        row = KEYS.get(key)
        if row is None or key == "AuthMethod":
            return "NotUnderstood"
        if key in self._agreed:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"{key} negotiated twice")
        if row is _TEXT or key == "SessionType":
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"{key} after the first login request")
        if value in ("Reject", "Irrelevant", "NotUnderstood"):
            return None
        if row.kind is Kind.DECLARE and row.low == 0:
            return None
        if self.discovery and row.irrelevant_in_discovery:
            return "Irrelevant"
        result = negotiate(key, value)
        if result == "Reject":
            return result
        self._agreed[key] = result
        return None if row.kind is Kind.DECLARE else result


def _name(given: str) -> str:
    """An iSCSI name as names are compared: in lower case (RFC 7143 4.2.7.2). It ends up in logs and in TransportIDs, so
    nothing but 223 bytes of one printable word will do."""
    if len(given.encode()) > NAME_BYTES_MAX or not given.isprintable() or any(map(str.isspace, given)):
        raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"{given[:64]!r} is not an iSCSI name")
    return given.lower()


def negotiate_later(parameters: Parameters, keys: dict[str, str]) -> tuple[Parameters, list[tuple[str, str]]]:
    """Keys in a Text Request of full feature phase: only those of `Where.ANY` may change anything."""
    pairs: list[tuple[str, str]] = []
    for key, value in keys.items():
        row = KEYS.get(key)
        if row is None:
            pairs.append((key, "NotUnderstood"))
        elif row.where is not Where.ANY:
            pairs.append((key, "Reject"))
        elif key == "MaxRecvDataSegmentLength":
            result = negotiate(key, value)
            if result == "Reject":
                pairs.append((key, result))
            else:
                parameters = replace(parameters, send_segment_max=int(result))
    return parameters, pairs
