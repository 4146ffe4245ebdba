"""Read-ahead answers sequential streams and nothing else."""

from pathlib import Path

import pytest

from blockdev.daemon import requests_ahead
from blockdev.engine.readahead import ACTIVE_ENDS, ReadAhead
from s3core.settings import load_config

ROOM = 1 << 20


def follow(ahead: ReadAhead, begin: int, end: int, step: int = 1, room: int = ROOM) -> list[tuple[int, int, int]]:
    """Read [begin, end) in order; (where the reader stood, asked from, to)."""
    asked = []
    for first in range(begin, end, step):
        wanted = ahead.finished(first, first + step - 1, room)
        if wanted is not None:
            asked.append((first + step, *wanted))
    return asked


def test_one_finished_frame_proves_nothing() -> None:
    assert ReadAhead(16).finished(5, 5, ROOM) is None


def test_the_window_doubles_from_one_frame_to_the_maximum() -> None:
    ahead = ReadAhead(16, piece_frames=16)
    asked = [ahead.finished(frame, frame, ROOM) for frame in range(40)]
    assert asked[:2] == [None, (2, 3)]
    frames = [frame for answer in asked if answer for frame in range(*answer)]
    assert frames == list(range(2, 2 + len(frames))), "each frame once, in order, without a gap"
    reach = [answer[1] - index - 1 for index, answer in enumerate(asked) if answer]
    assert max(reach) == 16
    assert reach == sorted(reach)
    late = [answer for answer in asked[20:] if answer]
    assert all(end - begin >= 8 for begin, end in late), "half a window in one message"


def test_a_read_over_several_frames_is_proof_enough() -> None:
    assert ReadAhead(16).finished(0, 3, ROOM) == (4, 7)


def test_random_reads_cost_nothing() -> None:
    ahead = ReadAhead(16)
    assert [ahead.finished(frame, frame, ROOM) for frame in (9, 3, 77, 12, 5, 100, 50)] == [None] * 7


def test_streams_do_not_disturb_each_other() -> None:
    ahead = ReadAhead(8)
    for step in range(4):
        for start in (0, 1000, 2000):
            ahead.finished(start + step, start + step, ROOM)
    assert ahead.finished(1004, 1004, ROOM) is not None


def test_the_number_of_streams_is_bounded() -> None:
    ahead = ReadAhead(8, streams_max=4)
    for start in range(0, 10_000, 100):
        ahead.finished(start, start, ROOM)
    assert len(ahead._streams) <= 4
    assert ahead.finished(9901, 9901, ROOM) is not None, "the newest stream is kept"


def test_off_means_off() -> None:
    ahead = ReadAhead(0)
    assert ahead.finished(0, 9, ROOM) is None
    assert ahead.finished(10, 19, ROOM) is None


def test_a_long_stream_is_followed_at_the_distance_that_it_has_come() -> None:
    asked = follow(ReadAhead(16, 512, piece_frames=16), 0, 4096)
    assert [begin for _, begin, _ in asked] == [1 + 1, *(end for _, _, end in asked[:-1])], "no gap, nothing twice"
    for place, _, end in asked:
        assert end - place <= max(16, place), "never further ahead than it has read"
        assert end - place <= 512
    full = [(place, begin, end) for place, begin, end in asked if place >= 544]
    assert all(end - place > 512 - 2 * 16 for place, _, end in full), "as far ahead as it may be, at every moment"
    assert all(begin % 16 == end % 16 == 0 and end - begin == 16 for _, begin, end in full), "whole pieces"


def test_large_reads_grow_the_window_as_small_ones_do() -> None:
    asked = follow(ReadAhead(16, 512, piece_frames=16), 0, 4096, step=16)
    assert asked[:3] == [(16, 16, 31), (32, 32, 64), (48, 64, 96)]
    assert asked[-1] == (4096, 4096 + 496, 4096 + 512)


def test_no_more_is_asked_than_there_is_room_for_and_the_rest_comes_later() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    follow(ahead, 0, 1024, step=16)
    assert follow(ahead, 1024, 1088, step=16, room=0) == []
    assert follow(ahead, 1088, 1104, step=16, room=32) == [(1104, 1536, 1568)]
    assert follow(ahead, 1104, 1120, step=16) == [(1120, 1568, 1632)]


def test_a_reader_that_overtakes_what_was_asked_for_is_led_again() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    follow(ahead, 0, 1024, step=16)
    follow(ahead, 1024, 2048, step=16, room=0)
    assert follow(ahead, 2048, 2064, step=16) == [(2064, 2064, 2576)]


def test_long_streams_share_and_one_that_stopped_gives_its_part_back() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    reach: dict[int, int] = {}
    for step in range(0, 2048, 16):
        for begin in (0, 100_000, 200_000, 300_000):
            for place, _, end in follow(ahead, begin + step, begin + step + 16, step=16):
                reach[begin] = end - place
    assert reach == dict.fromkeys(reach, 512 // 4)
    assert len(reach) == 4
    alone = follow(ahead, 2048, 2048 + 16 * (ACTIVE_ENDS + 1), step=16)
    place, _, end = alone[-1]
    assert end - place == 512


def test_streams_that_prove_nothing_take_no_part() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    for step in range(0, 2048, 16):
        ahead.finished(500_000 + 7 * step, 500_000 + 7 * step, ROOM)
        asked = follow(ahead, step, step + 16, step=16)
    (place, _, end) = asked[-1]
    assert end - place == 512


def test_a_stream_that_begins_anew_elsewhere_begins_small() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    follow(ahead, 0, 4096, step=16)
    assert ahead.finished(9000, 9000, ROOM) is None
    assert ahead.finished(9001, 9001, ROOM) == (9002, 9003)


def test_one_huge_read_is_no_long_stream() -> None:
    ahead = ReadAhead(16, 512, piece_frames=16)
    assert ahead.finished(0, 255, ROOM) == (256, 272)


@pytest.mark.parametrize(("concurrency", "ahead"), [(1, 1), (6, 3), (32, 16), (200, 16)])
def test_reads_that_wait_keep_half_of_the_places(tmp_path: Path, concurrency: int, ahead: int) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[endpoint.e]\nurl = "http://127.0.0.1:1"\nregion = "r"\nconcurrency = {concurrency}\n')
    assert requests_ahead(load_config(path), "s3://e/bucket/v") == ahead
    assert requests_ahead(load_config(path), f"file://{tmp_path}") == 16
