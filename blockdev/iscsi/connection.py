"""One connection as a state machine without a socket: bytes in, buffers out (RFC 7143 sections 4 to 7, 11).

One rule: a PDU is parsed where it was received. The rim asks `buffers()` where the next bytes go, calls `received(n)`,
sends what `take()` returns, and calls `go_on()` while that says there is more to parse.

    state       | what may come                         | ends by
    LOGIN       | Login requests, 64 KiB at most        | full feature phase; refusal; deadline
    FULL        | everything but Login                  | logout, a peer's error, the rim
    CLOSING     | nothing is parsed any more            | the rim closes when all is sent

Errors: `PeerError` never leaves this object; it becomes a Reject or a Login response, `failure` says it in words, and the
state is CLOSING. Anything else that escapes is a bug of ours (or of the target), and the rim ends this connection
only. Next: `login.py`, `session.py`.
"""

import time
from collections.abc import Callable
from enum import Enum, auto

from blockdev.iscsi.digest import matches
from blockdev.iscsi.errors import DataDigestError, LoginRefused, LoginStatus, PeerError
from blockdev.iscsi.exchange import Exchange
from blockdev.iscsi.login import STAGE_FULL_FEATURE, Login, Reply, Request
from blockdev.iscsi.nexus import POOL_SLACK, BufferPool
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.outbox import Outbox
from blockdev.iscsi.pdu import (
    BHS_BYTES,
    CONTINUE,
    DIGEST_BYTES,
    FINAL,
    LENGTHS,
    OPCODE_MASK,
    AsyncEvent,
    Opcode,
    Reason,
    pack,
    unpack,
)
from blockdev.iscsi.session import Session
from blockdev.iscsi.text import encode
from blockdev.target import Buffer

LOGIN_RECEIVE_BYTES = 16 * 1024
"""The receive buffer before login: one PDU with 8192 bytes of text, the RFC's default, fits."""
LOGIN_SEGMENT_MAX = 8192
RECEIVE_BYTES = 1024 * 1024
DIRECT_BYTES_MIN = 16 * 1024
"""An incomplete segment at least this long is received straight into its task's buffer."""
OVERFLOW_BYTES = 16 * 1024
"""So much is received behind a Data-Out that is received in place: what comes there and is not whole is copied."""
OUTBOX_BYTES_HIGH = 1024 * 1024
"""Parsing pauses here until the rim has taken the outbox: reads that the socket has no room for would be copied."""

_lengths = LENGTHS.unpack_from
_EMPTY = memoryview(b"")


class State(Enum):
    LOGIN = auto()
    FULL = auto()
    CLOSING = auto()


class _Incoming:
    """A PDU whose data segment is being received in place. `left` shrinks; pad and data digest lie behind the data."""

    __slots__ = ("data", "head", "left", "length", "owned", "tail")

    def __init__(
        self, head: bytes, data: memoryview, length: int, tail: int, have: int, owned: bytearray | None
    ) -> None:
        self.head = head
        self.data = data
        self.length = length
        self.tail = tail
        self.left = data[have : length + tail]
        self.owned = owned


class Connection:
    """`random_bytes` is given; `addresses` are what SendTargets tells ("host:port,tag"), `portal_group` the tag of the
    portal that was come to; `notify` is called when there is something to `take` (or the state became
    CLOSING) outside of a call of the rim's; `clock` measures commands, in nanoseconds. One thread."""

    def __init__(
        self,
        nodes: Nodes,
        *,
        random_bytes: Callable[[int], bytes],
        pool: BufferPool,
        addresses: list[str],
        notify: Callable[[], None],
        portal_group: int = 1,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.state = State.LOGIN
        self.failure = ""
        """Why the peer (or we) ended the connection, for the log; empty after a logout."""
        self.session: Session | None = None
        self.outbox = Outbox()
        self._nodes = nodes
        self._pool = pool
        self._addresses = addresses
        self._notify = notify
        self._clock = clock
        self._login = Login(nodes, random_bytes, portal_group)
        self._exchange: Exchange | None = None
        self._rx = bytearray(LOGIN_RECEIVE_BYTES)
        self._view = memoryview(self._rx)
        self._start = 0
        self._end = 0
        self._incoming: _Incoming | None = None
        self._paused = False
        self._outbox_high = OUTBOX_BYTES_HIGH
        self._stat_sn = 1
        self._header_extra = 0
        self._data_extra = 0
        self._segment_max = LOGIN_SEGMENT_MAX

    # ---- what the rim calls

    @property
    def who(self) -> str:
        """The peer as far as it is known, for the log."""
        if self.session is not None:
            identity = self.session.identity
            return f"{identity.initiator} -> {identity.target or 'discovery'}"
        return "login"

    def buffers(self) -> list[memoryview]:
        """Where the next bytes go, in order. Never empty, and never without room."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._rx) or (self._start and len(self._rx) - self._end < BHS_BYTES):
            self._move_tail()
        incoming = self._incoming
        if incoming is None:
            return [self._view[self._end :]]
        # Behind a Data-Out comes the next one, mostly, which is to be received in place as well; commands stay where they are.
        most = OVERFLOW_BYTES if incoming.owned is None else RECEIVE_BYTES
        return [incoming.left, self._view[self._end : self._end + most]]

    def received(self, count: int) -> None:
        """`count` bytes have come into `buffers()`."""
        if self.state is State.CLOSING:
            self._start = self._end = 0
            return
        incoming = self._incoming
        if incoming is not None:
            took = min(count, len(incoming.left))
            incoming.left = incoming.left[took:]
            count -= took
            self._end += count
            if incoming.left:
                return
        else:
            self._end += count
        session = self.session
        if session is not None:
            clock = self._clock
            session.began = clock()
        self._parse()

    def go_on(self) -> bool:
        """Parse what was left when the outbox was full; call it after `take`. False if there was nothing to do: wait for
        more bytes."""
        if not self._paused or self.state is State.CLOSING:
            return False
        self._parse()
        return True

    def receive(self, data: Buffer) -> None:
        """`buffers`, a copy and `received`, for bytes that are already here (tests, simulations); never pauses."""
        view = memoryview(data).cast("B")
        self._outbox_high = 1 << 62
        while view:
            taken = 0
            for room in self.buffers():
                size = min(len(room), len(view))
                room[:size] = view[:size]
                view = view[size:]
                taken += size
            self.received(taken)
            if self.state is State.CLOSING:
                break
        self._outbox_high = OUTBOX_BYTES_HIGH

    def take(self) -> list[Buffer]:
        """What is to be sent, in order. Lent buffers among it must be sent or copied within this turn."""
        return self.outbox.take()

    def release(self) -> None:
        """The time that `outbox.hold_seconds` asked for is over: what was held back comes into the outbox."""
        if self.session is not None and not self.session.ended:
            self.session.release()

    def lost(self) -> None:
        """The connection is gone, or closed: tasks end, and the nexus is lost."""
        self.state = State.CLOSING
        self.outbox.take()
        if self.session is not None:
            self.session.close()

    def expire(self) -> None:
        """The deadline has passed that a login has, and a discovery session."""
        if self.state is State.LOGIN:
            self._fail("no login in time")
        elif self.session is not None and self.session.identity.discovery:
            self._fail("a discovery session that does not end")

    def ask_to_log_out(self, seconds: int) -> None:
        """Tell the initiator that we are stopping (asynchronous message, RFC 7143 11.9). Without a session the
        connection just closes."""
        if self.session is None or self.state is not State.FULL:
            self.state = State.CLOSING
            return
        self.session.put(
            Opcode.ASYNC_MESSAGE, itt=0xFFFFFFFF, event=AsyncEvent.REQUEST_LOGOUT << 24, parameters=seconds
        )

    # ---- parsing

    def _move_tail(self) -> None:
        """Bring the unparsed rest to the front. Nothing staged refers to it: `settle` ran when parsing stopped."""
        size = self._end - self._start
        self._view[:size] = self._view[self._start : self._end]
        self._start, self._end = 0, size

    def _parse(self) -> None:
        session = self.session
        if session is not None:
            session.receiving = True
        try:
            self._parse_all()
        except DataDigestError as error:
            if self.session is not None:
                self.session.reject(Reason.DATA_DIGEST_ERROR, error.header)
            self._fail(str(error))
        except PeerError as error:
            self._fail(str(error))
        finally:
            session = self.session
            if session is not None:
                if not session.ended:
                    session.settle()
                    session.measure()
                session.receiving = False

    def _parse_all(self) -> None:
        self._paused = False
        if self._incoming is not None:
            self._arrived(self._incoming)
        rx, view, outbox = self._rx, self._view, self.outbox
        session = self.session
        header_extra, data_extra = self._header_extra, self._data_extra
        pos, end = self._start, self._end
        while end - pos >= BHS_BYTES:
            if outbox.size >= self._outbox_high:
                self._paused = True
                break
            (length,) = _lengths(rx, pos + 4)
            data_at = pos + BHS_BYTES + header_extra
            if length > self._segment_max:
                data_at += length >> 24 << 2
                length &= 0xFFFFFF
                if length > self._segment_max:
                    raise PeerError(f"a data segment of {length} bytes; {self._segment_max} were agreed")
            tail = (-length & 3) + data_extra if length else 0
            after = data_at + length + tail
            if after > end:
                self._start = pos
                if length >= DIRECT_BYTES_MIN and data_at <= end:
                    self._receive_in_place(pos, data_at, length, tail)
                    return
                self._make_room(after - pos)
                return
            if header_extra and not matches(view[pos : data_at - DIGEST_BYTES], view[data_at - DIGEST_BYTES : data_at]):
                raise PeerError("header digest does not match")
            data = view[data_at : data_at + length] if length else _EMPTY
            if data_extra and length and not matches(view[data_at : after - 4], view[after - 4 : after]):
                raise DataDigestError(bytes(rx[pos : pos + BHS_BYTES]))
            if session is not None and rx[pos] == 0x01 and session.receive(rx, pos, data):
                pos = after
                if session.held:
                    self._release_held(session)
                continue
            self._start = after
            self._dispatch(rx, pos, data)
            pos = after
            if self.state is State.CLOSING:
                return
            if self.session is not session or self._rx is not rx:
                # The login is over: a larger buffer, other limits.
                session, rx, view, pos, end = self.session, self._rx, self._view, self._start, self._end
                header_extra, data_extra = self._header_extra, self._data_extra
        self._start = pos

    def _make_room(self, size: int) -> None:
        """The PDU of `size` bytes at `_start` must fit in the buffer from there on."""
        if size > len(self._rx):
            raise PeerError(f"a PDU of {size} bytes; the receive buffer has {len(self._rx)}")
        if self._start + size > len(self._rx):
            # Staged writes may lie before it; they are settled before the tail moves.
            if self.session is not None:
                self.session.settle()
            self._move_tail()

    def _receive_in_place(self, pos: int, data_at: int, length: int, tail: int) -> None:
        """The rest of this segment comes straight into the buffer it is to stay in."""
        session = self.session
        head = bytes(self._view[pos:data_at])
        if self._header_extra and not matches(head[:-DIGEST_BYTES], head[-DIGEST_BYTES:]):
            raise PeerError("header digest does not match")
        opcode = head[0] & OPCODE_MASK
        owned: bytearray | None = None
        room: memoryview | None = None
        if session is not None and opcode == Opcode.DATA_OUT:
            room = session.room(head, length)
        elif session is not None and opcode == Opcode.SCSI_COMMAND:
            owned = self._pool.take(length)
            room = memoryview(owned)
        if room is None:
            self._make_room(data_at - pos + length + tail)
            return
        assert tail <= POOL_SLACK
        have = self._end - data_at
        room[:have] = self._view[data_at : self._end]
        self._incoming = _Incoming(head, room, length, tail, have, owned)
        self._start = self._end = 0

    def _arrived(self, incoming: _Incoming) -> None:
        self._incoming = None
        session = self.session
        assert session is not None
        length, data = incoming.length, incoming.data
        if self._data_extra:
            after = length + incoming.tail
            if not matches(data[: after - 4], data[after - 4 : after]):
                raise DataDigestError(incoming.head[:BHS_BYTES])
        if incoming.head[0] & OPCODE_MASK == Opcode.DATA_OUT:
            session.data_out(incoming.head, 0, None, length)
        elif incoming.head[0] != Opcode.SCSI_COMMAND or not session.receive(
            incoming.head, 0, data[:length], incoming.owned
        ):
            session.command_out_of_turn(incoming.head, 0, data[:length])
        self._release_held(session)

    def _dispatch(self, rx: bytearray | bytes, at: int, data: memoryview) -> None:
        opcode = rx[at] & OPCODE_MASK
        session = self.session
        if session is None:
            if opcode != Opcode.LOGIN:
                raise PeerError(f"opcode {opcode:#04x} before login")
            self._log_in(bytes(rx[at : at + BHS_BYTES]), data)
        elif opcode == Opcode.DATA_OUT:
            session.data_out(rx, at, data, len(data))
        elif opcode == Opcode.SCSI_COMMAND:
            session.command_out_of_turn(rx, at, data)
        elif opcode == Opcode.LOGIN:
            raise PeerError("login request in full feature phase")
        else:
            header = bytes(rx[at : at + BHS_BYTES])
            if opcode == Opcode.SNACK or session.numbered(header, 0, data):
                self._other(header, data)
            self._release_held(session)

    def _other(self, header: bytes, data: memoryview) -> None:
        session, exchange = self.session, self._exchange
        assert session is not None
        assert exchange is not None
        try:
            Opcode(header[0] & OPCODE_MASK)
        except ValueError:
            session.reject(Reason.COMMAND_NOT_SUPPORTED, header)
            return
        try:
            exchange.receive(header, data)
        except PeerError:
            session.reject(Reason.PROTOCOL_ERROR, header)
            raise

    def _release_held(self, session: Session) -> None:
        while session.held and self.state is State.FULL:
            kept = session.next_held()
            if kept is None:
                return
            header, data = kept
            if header[0] != Opcode.SCSI_COMMAND or not session.receive(header, 0, data):
                self._dispatch(header, 0, data)

    # ---- login

    def _log_in(self, header: bytes, data: memoryview) -> None:
        fields = unpack(header)
        flags = fields["flags"]
        request = Request(
            transit=bool(flags & FINAL),
            more=bool(flags & CONTINUE),
            current_stage=flags >> 2 & 3,
            next_stage=flags & 3,
            version_min=fields["version_min"],
            isid=fields["isid_tsih"] >> 16,
            tsih=fields["isid_tsih"] & 0xFFFF,
            cid=fields["cid"] >> 16,
            text=bytes(data),
        )
        try:
            reply = self._login.step(request)
            if reply is not None and self._login.complete:
                self._open(fields)
        except LoginRefused as error:
            self._answer_login(fields, None, error.status)
            raise
        except PeerError:
            self._answer_login(fields, None, LoginStatus.INITIATOR_ERROR)
            raise
        if reply is None:
            reply = Reply(False, request.current_stage, 0, [])
        self._answer_login(fields, reply, LoginStatus.SUCCESS)
        if self.session is not None:
            self.session.stat_sn = self._stat_sn
            parameters = self._login.parameters
            # Digests hold from the first PDU of full feature phase on (RFC 7143 13.1).
            self.outbox.header_digest = parameters.header_digest
            self.outbox.data_digest = parameters.data_digest

    def _open(self, fields: dict[str, int]) -> None:
        """Full feature phase begins."""
        login = self._login
        parameters = login.parameters
        self.session = Session(
            self._nodes,
            login.identity,
            parameters,
            self.outbox,
            self._pool,
            cmd_sn=fields["cmd_sn"],
            stat_sn=self._stat_sn,
            notify=self._notify,
            drop=self._dropped,
            clock=self._clock,
        )
        self.session.receiving = True
        self.session.began = self._clock()
        self._exchange = Exchange(self.session, self._addresses, self._finish)
        self.state = State.FULL
        self._header_extra = DIGEST_BYTES if parameters.header_digest else 0
        self._data_extra = DIGEST_BYTES if parameters.data_digest else 0
        self._segment_max = parameters.receive_segment_max
        rest = bytes(self._view[self._start : self._end])
        self._rx = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._rx)
        self._rx[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _answer_login(self, fields: dict[str, int], reply: Reply | None, status: LoginStatus) -> None:
        flags, text = 0, b""
        if reply is not None:
            flags = (FINAL if reply.transit else 0) | reply.current_stage << 2 | reply.next_stage
            text = encode(reply.pairs)
            assert len(text) <= LOGIN_SEGMENT_MAX
        tsih = fields["isid_tsih"] & 0xFFFF
        if self.session is not None and flags & FINAL and flags & 3 == STAGE_FULL_FEATURE:
            tsih = self.session.tsih
        exp_cmd_sn = fields["cmd_sn"]
        header = pack(
            Opcode.LOGIN_RESPONSE,
            flags,
            length=len(text),
            isid_tsih=fields["isid_tsih"] & ~0xFFFF | tsih,
            itt=fields["itt"],
            stat_sn=self._stat_sn if status is LoginStatus.SUCCESS else 0,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=self.session.max_cmd_sn if self.session is not None else exp_cmd_sn,
            status_word=status << 16,
        )
        if status is LoginStatus.SUCCESS:
            self._stat_sn += 1
        self.outbox.put(header, (text,), len(text))

    # ---- the end

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.state = State.CLOSING

    def _finish(self) -> None:
        """After a logout, or a cold reset: what is in the outbox still goes out."""
        self.state = State.CLOSING

    def _dropped(self, reason: str) -> None:
        """Another session, or the operator, ends this one."""
        self._fail(reason)
        if self.session is not None:
            self.session.close()
        self._notify()
