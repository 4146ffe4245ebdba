"""What can go wrong between us and one initiator, by who must act.

One rule: these end (at most) one connection. A peer's mistake is a `PeerError`, with the words that go to the log; a
login that is refused is a `LoginRefused`, with the status the initiator is told; the portal's own trouble is a
`PortalError`, for the operator.
"""

from enum import IntEnum

from blockdev.errors import BlockError


class PeerError(Exception):
    """The initiator broke the protocol in a way that error recovery level 0 answers by dropping the connection
    (RFC 7143 7.1.4.1, session recovery). The text names the field and its value."""


class DataDigestError(PeerError):
    """A data segment that is not what was sent. The PDU counts as never received: it is rejected, which the RFC demands
    (7.8), and the connection ends, which is how error recovery level 0 has the initiator repeat what it held."""

    def __init__(self, header: bytes) -> None:
        super().__init__("data digest does not match")
        self.header = header


class SequenceError(PeerError):
    """A Data-Out that is not the next one of its sequence: something was lost on the way. The command ends with CHECK
    CONDITION, and the session goes on (RFC 7143 7.8)."""


class LoginStatus(IntEnum):
    """Status-Class and Status-Detail of a Login Response (RFC 7143 11.13.5), as one number."""

    SUCCESS = 0x0000
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class LoginRefused(PeerError):
    """The login ends with `status`; the connection is closed once the answer is out."""

    def __init__(self, status: LoginStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PortalError(BlockError):
    """The portal cannot do what it was asked (an address in use, a name that does not resolve)."""
