"""Links, faults and their seeds, by a clock that only counts."""

from collections import Counter

from bench.conditions import MIB, Conditions, Fate, Faults, Link


def test_a_link_without_a_limit_takes_no_time() -> None:
    assert Link().take(7.0, 100 * MIB) == 7.0


def test_bodies_go_over_a_link_one_after_the_other() -> None:
    link = Link(100 * MIB)
    assert [round(link.take(0.0, 10 * MIB), 6) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert round(link.take(5.0, 10 * MIB), 6) == 5.1, "an idle link saves nothing up"


def test_all_connections_share_one_link_and_each_has_its_own() -> None:
    line = Conditions()
    line.set_bandwidth(100, 40)
    alone = line.own_link()
    now = 0.0
    for _ in range(40):
        now = line.arrived(alone, now, MIB)
    assert round(now, 6) == 1.0, "one connection has 40 MiB/s"
    line.set_bandwidth(100, 40)
    links = [line.own_link() for _ in range(8)]
    ends = [0.0] * len(links)
    for _ in range(25):
        ends = [line.arrived(link, end, MIB) for link, end in zip(links, ends, strict=True)]
    assert round(max(ends), 6) == 2.0, "eight share 100 MiB/s"
    assert line.delivered(line.own_link(), 0.0, 10 * MIB) == 0.25, "the other direction is free"


def test_pieces_are_some_milliseconds_of_the_slowest_link() -> None:
    line = Conditions()
    line.set_bandwidth(100, 10)
    assert line.piece_bytes() == int(10 * MIB * 0.005)
    line.set_bandwidth(1000, 0)
    assert line.piece_bytes() == 256 * 1024
    line.set_bandwidth(1, 0)
    assert line.piece_bytes() == 16 * 1024


def test_the_same_seed_gives_the_same_faults() -> None:
    fates = [
        [faults.fate("PUT") for _ in range(2000)] for faults in (Faults(share=0.2, seed=1), Faults(share=0.2, seed=1))
    ]
    assert fates[0] == fates[1]
    other = Faults(share=0.2, seed=2)
    assert [other.fate("PUT") for _ in range(2000)] != fates[0]
    assert 300 < fates[0].count(Fate.REFUSED) < 500
    assert set(fates[0]) == {Fate.DONE, Fate.REFUSED}


def test_what_is_lost_is_a_share_of_what_fails() -> None:
    plain, lossy = Faults(share=0.3, seed=3), Faults(share=0.3, seed=3, lost=1.0)
    before, after = [plain.fate("GET") for _ in range(2000)], [lossy.fate("GET") for _ in range(2000)]
    assert [fate is Fate.DONE for fate in before] == [fate is Fate.DONE for fate in after], "the same requests fail"
    counted = Counter(after)
    assert counted[Fate.REFUSED] == 0
    assert counted[Fate.LOST] > 200
    assert counted[Fate.CUT] > 200


def test_faults_may_meet_one_method_alone() -> None:
    faults = Faults(share=1.0, method="PUT")
    assert faults.fate("GET") is Fate.DONE
    assert faults.fate("PUT") is Fate.REFUSED
