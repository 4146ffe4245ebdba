"""A store that fails on purpose, for simulations, tests and drills. The fault model:

    fault         what happened to the request              what the caller hears
    REFUSED       never arrived                              Unavailable
    SLOW_DOWN     turned away by the server                  Unavailable with `retry_after` seconds
    LOST_REQUEST  never arrived, but who could tell          write: OutcomeUnknown   read: Unavailable
    LOST_REPLY    carried out, the answer was lost           write: OutcomeUnknown   read: Unavailable
    LATE          still under way: carried out before one    write: OutcomeUnknown   read: Unavailable
                  of the next calls, or at `settle`
    SHORT_BODY    cut off on the way. A write of a cut body  Unavailable
                  is refused by the server. A removal of
                  many keys: the first half is done          the others: Unavailable
    SLOW          carried out after a while                  the answer
    HANG          no answer for `hang_s`; arrived or not,    write: OutcomeUnknown   read: Unavailable
                  as the coin falls
    PARTITION     nothing passes from here on until `heal`,  Unavailable
                  or for some seconds
    FLIPPED_BIT   one bit of the object read is wrong        the answer, silently wrong

An answer that the store itself gives (NotFound, PreconditionFailed) is lost like any other: a conditional put
that was refused and whose reply was lost is OutcomeUnknown as well. Not modelled: a server that forgets what it
acknowledged, or answers from the past.

One rule: everything comes from the plan, the given randomness and the given clock, so a run of one thread
repeats exactly. One draw is made per call that could fail, whether it fails or not.
"""

import random as random_module
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import get_args

from s3core.clock import Clock
from s3core.content import byte_views
from s3core.errors import OutcomeUnknown, StoreError, Unavailable
from s3core.store import Body, Buffer, ObjectStore
from s3core.wrapper import READS, Call, Operation, StoreWrapper, T

_TRACE_CALLS = 10_000
_LASTING: frozenset[Operation] = frozenset({"put", "put_if_absent", "put_if_match", "delete", "delete_many", "copy"})
"""What can arrive late without anybody waiting for it; other writes are lost instead."""


class FaultKind(StrEnum):
    REFUSED = "refused"
    SLOW_DOWN = "slow_down"
    LOST_REQUEST = "lost_request"
    LOST_REPLY = "lost_reply"
    LATE = "late"
    SHORT_BODY = "short_body"
    SLOW = "slow"
    HANG = "hang"
    PARTITION = "partition"
    FLIPPED_BIT = "flipped_bit"


@dataclass(frozen=True, slots=True)
class Fault:
    """`seconds`: how long SLOW and HANG take, how long SLOW_DOWN asks to wait, how long PARTITION lasts
    (0: until healed). `calls`: after how many further calls LATE is carried out."""

    kind: FaultKind
    seconds: float = 0.0
    calls: int = 1


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which calls fail. `scripted` names them exactly: ("put_if_absent", 3) is the third of its kind since the
    store was made, ("any", 10) the tenth call of all; it outranks `rates`, the probability of each kind of fault
    per call, which apply to `operations` (all, when empty). The rest bounds what is drawn."""

    scripted: Mapping[tuple[str, int], Fault] = field(default_factory=dict)
    rates: Mapping[FaultKind, float] = field(default_factory=dict)
    operations: frozenset[Operation] = frozenset()
    slow_s_max: float = 2.0
    hang_s: float = 60.0
    slow_down_s: float = 1.0
    partition_s: float = 30.0
    late_calls_max: int = 20

    def __post_init__(self) -> None:
        unknown = {operation for operation, _ in self.scripted} - {"any", *get_args(Operation)}
        if unknown:
            raise ValueError(f"no such operation: {', '.join(sorted(unknown))}")
        if min(self.rates.values(), default=0.0) < 0 or sum(self.rates.values()) > 1:
            raise ValueError(f"rates must not be negative and at most 1 together: {dict(self.rates)}")

    @staticmethod
    def even(total: float, *kinds: FaultKind) -> Mapping[FaultKind, float]:
        """Rates that share `total` among `kinds` (all but FLIPPED_BIT and PARTITION, when none is named)."""
        chosen = kinds or tuple(kind for kind in FaultKind if kind not in (FaultKind.FLIPPED_BIT, FaultKind.PARTITION))
        return {kind: total / len(chosen) for kind in chosen}


@dataclass(frozen=True, slots=True)
class Event:
    """One call as the trace tells it; `fault` is None where the call went through."""

    number: int
    operation: Operation
    key: str
    fault: FaultKind | None


class SlowDown(Unavailable):
    """The server asks for a pause of `retry_after` seconds."""

    def __init__(self, message: str, *, key: str = "", retry_after: float) -> None:
        super().__init__(message, key=key)
        self.retry_after = retry_after


class FaultInjection:
    """What lets calls fail, of a store or of a bucket. `plan` may be exchanged at any time. `calls` counts what was
    asked, `trace` tells the last of it."""

    def __init__(self, plan: FaultPlan, random: random_module.Random, clock: Clock) -> None:
        self.plan = plan
        self.calls: Counter[str] = Counter()
        self.trace: deque[Event] = deque(maxlen=_TRACE_CALLS)
        self._random = random
        self._clock = clock
        # Guards everything above and below; requests are carried out outside of it.
        self._lock = threading.Lock()
        self._cut_until: float | None = None
        self._under_way: list[tuple[int, Callable[[], object]]] = []

    # Drills

    def partition(self, seconds: float = float("inf")) -> None:
        """Let nothing pass for `seconds`, or until `heal`."""
        self._cut_until = self._clock.monotonic() + seconds

    def heal(self) -> None:
        self._cut_until = None

    @property
    def partitioned(self) -> bool:
        return self._cut_until is not None and self._clock.monotonic() < self._cut_until

    def settle(self, *, all_arrive: bool = True) -> int:
        """Bring the requests still under way to their end, in the order they were sent: all are carried out,
        or, after a crash of their sender (`all_arrive=False`), each one or not as the coin falls. Returns how
        many were."""
        with self._lock:
            waiting, self._under_way = self._under_way, []
            arriving = [action for _, action in waiting if all_arrive or self._random.random() < 0.5]
        for action in arriving:
            _carry_out_unheard(action)
        return len(arriving)

    # Calls

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._suffer(call, self._begin(call), action)

    def _begin(self, call: Call) -> Fault | None:
        """Count the call, let late requests arrive, and choose what befalls this one."""
        with self._lock:
            self.calls[call.operation] += 1
            self.calls["any"] += 1
            number = self.calls["any"]
            arriving = [action for due, action in self._under_way if due <= number]
            self._under_way = [entry for entry in self._under_way if entry[0] > number]
            cut = self.partitioned
            fault = Fault(FaultKind.PARTITION) if cut else self._choose(call)
            self.trace.append(Event(number, call.operation, call.key, fault.kind if fault else None))
            if fault is not None and fault.kind is FaultKind.PARTITION and not cut:
                self.partition(fault.seconds or float("inf"))
        for action in arriving:
            _carry_out_unheard(action)
        return fault

    def _choose(self, call: Call) -> Fault | None:
        plan, operation = self.plan, call.operation
        scripted = plan.scripted.get((operation, self.calls[operation])) or plan.scripted.get(
            ("any", self.calls["any"])
        )
        if scripted is not None:
            return scripted
        if not plan.rates or (plan.operations and operation not in plan.operations):
            return None
        drawn = self._random.random()
        for kind, rate in plan.rates.items():
            if drawn < rate:
                return self._drawn(kind)
            drawn -= rate
        return None

    def _drawn(self, kind: FaultKind) -> Fault:
        plan = self.plan
        match kind:
            case FaultKind.SLOW:
                return Fault(kind, seconds=self._random.uniform(0, plan.slow_s_max))
            case FaultKind.LATE:
                return Fault(kind, calls=self._random.randint(1, plan.late_calls_max))
            case FaultKind.PARTITION:
                return Fault(kind, seconds=self._random.uniform(0, plan.partition_s))
            case _:
                return Fault(
                    kind, seconds={FaultKind.HANG: plan.hang_s, FaultKind.SLOW_DOWN: plan.slow_down_s}.get(kind, 0.0)
                )

    def _suffer(self, call: Call, fault: Fault | None, action: Callable[[], T]) -> T:
        """Carry out `action` as `fault` has it."""
        if fault is None:
            return action()
        match fault.kind:
            case FaultKind.REFUSED | FaultKind.PARTITION:
                raise Unavailable(f"injected: {fault.kind}", key=call.key)
            case FaultKind.SLOW_DOWN:
                raise SlowDown("injected: slow down", key=call.key, retry_after=fault.seconds)
            case FaultKind.LOST_REQUEST:
                raise _unheard(call, "the request was lost")
            case FaultKind.LOST_REPLY:
                _carry_out_unheard(action)
                raise _unheard(call, "the reply was lost")
            case FaultKind.LATE:
                if call.operation in _LASTING:
                    with self._lock:
                        self._under_way.append((self.calls["any"] + fault.calls, action))
                raise _unheard(call, "the request is late")
            case FaultKind.SHORT_BODY:
                raise Unavailable("injected: the body ended early", key=call.key)
            case FaultKind.SLOW:
                self._clock.sleep(fault.seconds)
                return action()
            case FaultKind.HANG:
                with self._lock:
                    arrived = self._random.random() < 0.5
                if arrived:
                    _carry_out_unheard(action)
                self._clock.sleep(fault.seconds)
                raise _unheard(call, f"no answer within {fault.seconds:g} s")
            case FaultKind.FLIPPED_BIT:
                return self._flipped(action())

    def _flipped(self, result: T) -> T:
        if isinstance(result, bytes) and result:
            return type(result)(self._one_bit_off(result))
        if not isinstance(result, Body) or not result.data:
            return result
        return type(result)(self._one_bit_off(result.data), result.etag)

    def _one_bit_off(self, content: bytes) -> bytes:
        with self._lock:
            bit = self._random.randrange(len(content) * 8)
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        return bytes(data)


class FaultyStore(FaultInjection, StoreWrapper):
    """See `FaultInjection`."""

    def __init__(self, inner: ObjectStore, plan: FaultPlan, random: random_module.Random, clock: Clock) -> None:
        StoreWrapper.__init__(self, inner)
        FaultInjection.__init__(self, plan, random, clock)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        return super().put(key, kept_body(data), metadata=metadata)

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        return super().put_if_absent(key, kept_body(data), metadata=metadata)

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        return super().put_if_match(key, kept_body(data), etag, metadata=metadata)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        call = Call("delete_many", keys[0])
        try:
            fault = self._begin(call)
            if fault is None or fault.kind is not FaultKind.SHORT_BODY:
                return self._suffer(call, fault, lambda: self.inner.delete_many(keys))
        except StoreError as error:
            return dict.fromkeys(keys, error)
        half = len(keys) // 2
        cut_off = {key: Unavailable("injected: the request was cut off", key=key) for key in keys[half:]}
        return self.inner.delete_many(keys[:half]) | cut_off


def kept_body(data: Buffer | Sequence[Buffer]) -> bytes:
    """The body by value: a late request must not send what the caller's buffer holds by then."""
    return data if isinstance(data, bytes) else b"".join(byte_views(data))


def _carry_out_unheard(action: Callable[[], object]) -> None:
    try:
        action()
    except StoreError:
        # This answer is what gets lost: nobody may hear that the store refused.
        return


def _unheard(call: Call, why: str) -> StoreError:
    kind = Unavailable if call.operation in READS else OutcomeUnknown
    return kind(f"injected: {why}", key=call.key)
