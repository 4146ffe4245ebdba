"""A ledger's writer in memory, for tests of what is recorded."""

import threading
from collections.abc import Mapping
from typing import Any

from integrity.record import START, decode, encode, timestamp


class Kept:
    """`Records` in memory. `durable` is how many a crash would leave."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.records: list[dict[str, Any]] = []
        self.durable = 0
        self.full = False
        self.closed = 0

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        with self.lock:
            n = len(self.records)
            self.records.append(decode(encode(event, writer="here.1", n=n, at=timestamp(0), after=START)))
            if wait:
                self.durable = n + 1
            return n

    def close(self) -> None:
        self.durable = len(self.records)
        self.closed += 1

    def of(self, **members: object) -> list[dict[str, Any]]:
        return [one for one in self.records if all(one.get(name) == value for name, value in members.items())]
