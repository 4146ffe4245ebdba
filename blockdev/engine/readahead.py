"""Which frames to fetch before they are asked for. Pure.

One rule: only a stream that has proved sequential costs anything. A stream proves itself by finishing a frame right
after the one before it, or by one read that spans whole frames; its window then doubles from one frame to a first maximum.
A longer stream is followed at the distance that it has come: never further ahead than it has read. So it costs at most
twice its bytes, and the window doubles with each window consumed, until it spans the way to the store.

Told of frame ends only, so a hot 4 KiB read seldom comes here. Nothing is asked for but in answer to a read: a stream that
stops asks no more at once.
"""

from dataclasses import dataclass

STREAMS_MAX = 32
ACTIVE_ENDS = 4 * STREAMS_MAX
"""A stream that was not heard of for so many frame ends, of all streams together, takes no part of what they share."""


@dataclass(slots=True)
class _Stream:
    window: int
    """Frames to stay ahead while it is short; 0 until proven."""
    ahead: int
    """First frame not asked for yet."""
    run: int
    """Frames read in order so far."""
    seen: int
    """When it was last heard of, in frame ends."""


class ReadAhead:
    """State of one volume's streams. `window_frames` 0 turns read-ahead off; else it is as far ahead as a stream may be that
    is no longer than that. Longer ones share `stream_frames_max`, each having `window_frames` in any case. Pieces end at
    multiples of `piece_frames` where the window has room for two."""

    def __init__(
        self,
        window_frames: int,
        stream_frames_max: int = 0,
        *,
        piece_frames: int = 1,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        self._window = window_frames
        self._shared = stream_frames_max
        self._piece = piece_frames
        self._streams_max = streams_max
        self._streams: dict[int, _Stream] = {}
        self._ends = 0

    def finished(self, first: int, last: int, room: int) -> tuple[int, int] | None:
        """A read has reached the end of frame `last`, having begun in frame `first`. The frames [begin, end) to fetch
        now, `room` at most, or None."""
        if not self._window:
            return None
        self._ends += 1
        streams = self._streams
        count = last + 1 - first
        stream = streams.pop(first, None)
        if stream is None:
            if len(streams) >= self._streams_max:
                del streams[next(iter(streams))]
            # More than one frame at once is as good a proof as two frames in a row; it is no more than that.
            window = min(count - 1, self._window)
            stream = _Stream(window, ahead=last + 1, run=min(count, self._window), seen=self._ends)
        else:
            stream.window = min(max(1, 2 * stream.window), self._window)
            stream.run += count
            stream.seen = self._ends
        streams[last + 1] = stream
        window = stream.window
        if stream.run > self._window:
            window = max(window, min(stream.run, self._share()))
        begin, end = max(stream.ahead, last + 1), last + 1 + window
        end = min(end, begin + room)
        if window >= 2 * self._piece:
            end -= end % self._piece
        # Half a window at a time while it is small: one message for several frames.
        if end - begin < max(1, min(window // 2, self._piece)):
            return None
        stream.ahead = end
        return begin, end

    def _share(self) -> int:
        """Of what the long streams share, each one's part."""
        since = self._ends - ACTIVE_ENDS
        long = sum(1 for stream in self._streams.values() if stream.run > self._window and stream.seen > since)
        return self._shared // long
