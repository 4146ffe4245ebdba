"""PERSISTENT RESERVE OUT, one after the other, and answered when what it changed is kept as long as was asked for.

One rule: memory is never ahead of the bucket. A command is tried on a draft; where the draft's kept state differs from what
is kept, it is kept first, and only then adopted: unit attentions, aborted tasks and the answer come after. Until then all
commands are judged by the state before.

What is kept (SPC-4 5.12.5, persist through power loss): with APTPL=1 registrations and reservation, with APTPL=0 nothing. So a
switch to APTPL=0 is answered when nothing is kept any more.

If keeping fails, nobody knows which state is kept. The draft is dropped, the initiator is told of the failure, memory stays at
what was promised last, and the next command is kept whatever it changes, which settles it. A host that dies with a command
under way leaves the old state or the new one; neither was promised.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from blockdev.errors import CorruptFormat
from blockdev.scsi.operation import Buffer, Response, Status
from blockdev.scsi.reservations import Reservations
from blockdev.scsi.sense import BUSY, response_for
from blockdev.target import BlockTarget

Done = Callable[[Response], None]

WAITING_MAX = 256
"""Commands that wait for one that is being kept; the others are told BUSY."""

_UNKNOWN: Any = object()


class Keeper:
    """Of one logical unit's reservations. `target` None: a front end before this one does reservations (LIO does), nothing is
    kept and APTPL is refused."""

    def __init__(self, live: Reservations, target: BlockTarget | None) -> None:
        """Takes over what is kept. Raises CorruptFormat if that does not hold together."""
        self._live = live
        self._target = target
        self._kept: Any = target.kept_reservations if target is not None else None
        self._waiting: deque[tuple[Callable[[Reservations], Response], Done]] = deque()
        self._keeping = False
        live.can_keep = target is not None
        if self._kept is not None:
            try:
                live.restore(self._kept)
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptFormat(f"the persistent reservations do not hold together: {error}", what="log") from error

    @property
    def busy(self) -> bool:
        """Whether a change is under way."""
        return self._keeping

    def out(self, nexus: str, action: int, scope_and_type: int, data: Buffer, done: Done) -> None:
        """Carry out PERSISTENT RESERVE OUT, now or when those before it are done."""
        if len(self._waiting) >= WAITING_MAX:
            done(BUSY)
            return
        given = bytes(data)
        self._waiting.append((lambda draft: draft.out(nexus, action, scope_and_type, given), done))
        self._work()

    def _work(self) -> None:
        while self._waiting and not self._keeping:
            request, done = self._waiting.popleft()
            effects: list[Callable[[], None]] = []
            draft = self._live.draft(effects)
            response = request(draft)
            if response.status is not Status.GOOD:
                done(response)
                continue
            state = draft.export() if draft.aptpl and draft.registrations else None
            if self._target is None or (self._kept is not _UNKNOWN and state == self._kept):
                self._adopt(draft, effects)
                done(response)
                continue
            self._keeping = True
            self._kept = _UNKNOWN
            self._target.keep_reservations(state, partial(self._is_kept, state, draft, effects, response, done))

    def _is_kept(
        self,
        state: dict[str, Any] | None,
        draft: Reservations,
        effects: list[Callable[[], None]],
        response: Response,
        done: Done,
        error: Exception | None,
    ) -> None:
        self._keeping = False
        if error is None:
            self._kept = state
            self._adopt(draft, effects)
            done(response)
        else:
            done(response_for(error))
        self._work()

    def _adopt(self, draft: Reservations, effects: list[Callable[[], None]]) -> None:
        self._live.adopt(draft)
        for effect in effects:
            effect()
