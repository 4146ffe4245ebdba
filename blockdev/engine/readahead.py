"""Which frames to fetch before they are asked for. Pure.

One rule: only a stream that has proved sequential costs anything. A stream proves itself by finishing a frame right
after the one before it, or by one read that spans whole frames; its window then doubles from one frame to the maximum.
Told of frame ends only, so a hot 4 KiB read seldom comes here.
"""

from dataclasses import dataclass

STREAMS_MAX = 32


@dataclass(slots=True)
class _Stream:
    window: int
    """Frames to stay ahead; 0 until proven."""
    ahead: int
    """First frame not asked for yet."""


class ReadAhead:
    """State of one volume's streams. `window_frames_max` 0 turns read-ahead off."""

    def __init__(self, window_frames_max: int, *, streams_max: int = STREAMS_MAX) -> None:
        self._window_max = window_frames_max
        self._streams_max = streams_max
        self._streams: dict[int, _Stream] = {}

    def finished(self, first: int, last: int) -> tuple[int, int] | None:
        """A read has reached the end of frame `last`, having begun in frame `first`. The frames [begin, end) to fetch
        now, or None."""
        if not self._window_max:
            return None
        streams = self._streams
        stream = streams.pop(first, None)
        if stream is None:
            if len(streams) >= self._streams_max:
                del streams[next(iter(streams))]
            # More than one frame at once is as good a proof as two frames in a row.
            stream = _Stream(window=last - first, ahead=last + 1)
        else:
            stream.window = max(1, 2 * stream.window)
        stream.window = min(stream.window, self._window_max)
        streams[last + 1] = stream
        begin, end = max(stream.ahead, last + 1), last + 1 + stream.window
        # Half a window at a time: one message for several frames.
        if end - begin < max(1, stream.window // 2):
            return None
        stream.ahead = end
        return begin, end
