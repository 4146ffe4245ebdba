"""Read-ahead answers sequential streams and nothing else."""

from blockdev.engine.readahead import ReadAhead


def test_one_finished_frame_proves_nothing() -> None:
    assert ReadAhead(16).finished(5, 5) is None


def test_the_window_doubles_from_one_frame_to_the_maximum() -> None:
    ahead = ReadAhead(16)
    asked = [ahead.finished(frame, frame) for frame in range(40)]
    assert asked[:2] == [None, (2, 3)]
    frames = [frame for answer in asked if answer for frame in range(*answer)]
    assert frames == list(range(2, 2 + len(frames))), "each frame once, in order, without a gap"
    reach = [answer[1] - index - 1 for index, answer in enumerate(asked) if answer]
    assert max(reach) == 16
    assert reach == sorted(reach)
    late = [answer for answer in asked[20:] if answer]
    assert all(end - begin >= 8 for begin, end in late), "half a window in one message"


def test_a_read_over_several_frames_is_proof_enough() -> None:
    assert ReadAhead(16).finished(0, 3) == (4, 7)


def test_random_reads_cost_nothing() -> None:
    ahead = ReadAhead(16)
    assert [ahead.finished(frame, frame) for frame in (9, 3, 77, 12, 5, 100, 50)] == [None] * 7


def test_streams_do_not_disturb_each_other() -> None:
    ahead = ReadAhead(8)
    for step in range(4):
        for start in (0, 1000, 2000):
            ahead.finished(start + step, start + step)
    assert ahead.finished(1004, 1004) is not None


def test_the_number_of_streams_is_bounded() -> None:
    ahead = ReadAhead(8, streams_max=4)
    for start in range(0, 10_000, 100):
        ahead.finished(start, start)
    assert len(ahead._streams) <= 4
    assert ahead.finished(9901, 9901) is not None, "the newest stream is kept"


def test_off_means_off() -> None:
    ahead = ReadAhead(0)
    assert ahead.finished(0, 9) is None
    assert ahead.finished(10, 19) is None
