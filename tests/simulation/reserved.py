"""What the persistent reservations of a simulated volume may be, as far as anybody was told.

One rule: states are numbers that grow. What was answered is kept until a newer one is; what was asked and not answered may be
kept or not, and whoever attaches next decides which.
"""

from tests.simulation.model import Violation


class Reserved:
    def __init__(self) -> None:
        self._kept: int | None = None
        self._asked: list[int] = []
        self._newest = 0

    def ask(self) -> int:
        self._newest += 1
        self._asked.append(self._newest)
        return self._newest

    def answered(self, number: int) -> None:
        if number in self._asked:
            self._asked = [asked for asked in self._asked if asked > number]
            self._kept = number
        elif self._kept is None or self._kept < number:
            raise Violation(f"reservations {number} were reported to be kept, and an attach before found {self._kept}")

    def found(self, state: object) -> None:
        """At an attach."""
        number = state["number"] if isinstance(state, dict) else None
        if number != self._kept and number not in self._asked:
            raise Violation(f"reservations {number} are kept; they were to be {self._kept} or one of {self._asked}")
        self._kept, self._asked = number, []
