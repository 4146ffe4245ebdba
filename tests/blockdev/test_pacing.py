"""How a filling journal slows its writers, as arithmetic and as a volume that is written without an end."""

from typing import NamedTuple

import pytest

from blockdev.engine.pacing import DRAIN_WINDOW_S, HOLD_S_MAX, HOLD_S_MIN, DrainMeter, Pacer, allowed_rate
from blockdev.units import GIB, KIB, MIB

RING = 1 * GIB


class Outcome(NamedTuple):
    fill: float
    taken: int
    longest_s: float
    full_at: float | None


def written_without_end(*, seconds: float, drain: float, receive: int, ring: int = RING, doors: int = 1) -> Outcome:
    """Initiators that send the next `receive` bytes as soon as the last were answered, 10 us each; a bucket that takes
    `drain` bytes a second, in commits of 8 MiB."""
    pacer = Pacer(ring)
    now, head, durable, longest, owed = 0.0, 0, 0, 0.0, 0.0
    pacer.drain.begin(now, 0)
    ready = [0.0] * doors
    last = 0.0
    while now < seconds:
        door = min(range(doors), key=ready.__getitem__)
        now = max(now, ready[door])
        owed += (now - last) * drain
        last = now
        if owed >= 8 * MIB and head - durable >= 8 * MIB:
            durable += 8 * MIB
            owed -= 8 * MIB
            pacer.drain.note(now, durable)
        owed = min(owed, 8 * MIB)
        if head + receive - durable > ring:
            return Outcome(1.0, head, longest, now)
        head += receive
        fill = (head - durable) / ring
        held = pacer.hold(receive, fill, now) if fill >= 0.5 else 0.0
        longest = max(longest, held)
        ready[door] = now + held + receive * 1e-9 + 10e-6
    return Outcome((head - durable) / ring, head, longest, None)


def test_the_rate_falls_from_generous_to_what_drains() -> None:
    rates = [allowed_rate(fill / 100, 1000.0, RING) for fill in range(50, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1000 + RING / 8
    assert rates[-1] == 1000
    assert allowed_rate(1.01, 0.0, RING) == 0


def test_the_drain_is_what_became_durable_lately() -> None:
    meter = DrainMeter()
    assert meter.rate(5) == 0
    meter.begin(100, 0)
    for second in range(1, 31):
        meter.note(100 + second, second * MIB)
    assert meter.rate(130) == pytest.approx(MIB)
    assert meter.rate(135) == pytest.approx(MIB / 2)
    assert meter.rate(140 + DRAIN_WINDOW_S) == 0


def test_the_quiet_time_before_a_backlog_does_not_count() -> None:
    meter = DrainMeter()
    meter.note(0, MIB)
    meter.begin(3600, MIB)
    meter.note(3602, 9 * MIB)
    assert meter.rate(3602) == pytest.approx(4 * MIB)


def test_an_intake_within_the_rate_is_not_held() -> None:
    pacer = Pacer(RING)
    now = 0.0
    for _ in range(1000):
        assert pacer.hold(4 * KIB, 0.6, now) == 0
        now += 0.001
    assert pacer.held_s == 0


def test_what_is_taken_at_once_is_paid_by_who_comes_next() -> None:
    pacer = Pacer(RING)
    assert pacer.hold(1 * MIB, 0.9, 0.0) == 0
    second = pacer.hold(1 * MIB, 0.9, 0.0)
    assert second == pytest.approx(MIB / allowed_rate(0.9, 0.0, RING))
    assert HOLD_S_MIN < second < HOLD_S_MAX


def test_no_answer_is_held_longer_than_the_cap() -> None:
    pacer = Pacer(RING)
    for fill in (0.99, 0.9999, 1.0):
        for _ in range(10):
            assert pacer.hold(64 * MIB, fill, 7.0) <= HOLD_S_MAX


def test_writers_settle_at_what_drains_and_are_never_told_busy() -> None:
    outcome = written_without_end(seconds=120, drain=20 * MIB, receive=128 * KIB)
    assert outcome.full_at is None
    assert outcome.taken == pytest.approx(120 * 20 * MIB + outcome.fill * RING, rel=0.02)
    assert outcome.longest_s < 0.5


def test_a_blackout_of_five_minutes_is_bridged_by_slowing_down() -> None:
    outcome = written_without_end(seconds=300, drain=0, receive=4 * KIB)
    assert outcome.full_at is None
    assert 0.98 < outcome.fill < 1
    assert outcome.longest_s <= HOLD_S_MAX


def test_many_initiators_share_one_rate() -> None:
    alone = written_without_end(seconds=60, drain=5 * MIB, receive=64 * KIB)
    many = written_without_end(seconds=60, drain=5 * MIB, receive=64 * KIB, doors=16)
    assert many.full_at is None
    assert many.fill == pytest.approx(alone.fill, abs=0.02)
