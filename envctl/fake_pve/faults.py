"""Faults to order: which request goes wrong, how, and how often. Values; no I/O."""

import re
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["answer", "after", "later", "drop", "slow", "task"]


@dataclass
class Fault:
    """The next `times` requests of `method` whose path matches `path` go wrong.

    `answer`: nothing is done, and `status` and `message` are answered. `after`: it is done, and answered so all the same.
    `later`: it is answered so at once, and done `delay_s` afterwards (a 596 while the work goes on). `drop`: it is done, and
    the connection breaks off in the answer. `slow`: it is answered in order, `delay_s` late. `task`: the task begins, and
    fails with `message`.
    """

    path: str
    kind: FaultKind = "answer"
    method: str = "*"
    status: int = 596
    message: str = "Connection timed out"
    delay_s: float = 0.0
    times: int = 1

    def hits(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("*", method) and re.search(self.path, path) is not None
