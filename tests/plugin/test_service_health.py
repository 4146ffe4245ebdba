"""When a storage counts as active: after three misses it does not, at once when it was refused, again after one answer."""

from plugin.service.health import MISSES, Health, active, begun, has_failed, was_well

PROBE_S = 30.0


def test_nothing_is_known_yet() -> None:
    assert active(Health(), 1000.0, PROBE_S) == (False, "the store has not answered yet")


def test_misses_are_borne_up_to_three() -> None:
    health = was_well(1000.0)
    for number in range(1, MISSES + 1):
        moment = 1000.0 + number * PROBE_S
        health = has_failed(begun(health, moment), moment, "connection refused", for_good=False)
        assert active(health, moment, PROBE_S)[0] is (number < MISSES)
    assert active(health, 1100.0, PROBE_S)[1] == "connection refused"
    assert active(was_well(1200.0), 1200.0, PROBE_S) == (True, "")


def test_a_refusal_counts_at_once() -> None:
    health = has_failed(was_well(1000.0), 1010.0, "403", for_good=True)
    assert active(health, 1010.0, PROBE_S) == (False, "403")


def test_a_probe_that_hangs_is_many_misses() -> None:
    health = begun(was_well(1000.0), 1030.0)
    assert active(health, 1031.0, PROBE_S)[0] is True
    assert active(health, 1030.0 + MISSES * PROBE_S, PROBE_S) == (False, "the store has not answered for 90 s")


def test_a_keeper_that_is_silent_is_no_good_news() -> None:
    assert active(was_well(1000.0), 1000.0 + 5 * PROBE_S, PROBE_S)[0] is False
