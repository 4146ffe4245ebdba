"""What changed between two states of a volume: byte ranges, from the two maps and, where these differ, from content.

One rule: nothing that differs is left out. Frames whose place in both maps is the same hold the same bytes, since objects
never change; all others are candidates, and may turn out equal (a fold moves data without changing it).
"""

from collections.abc import Callable, Iterator
from itertools import islice

from blockdev.extents.format import EMPTY, ExtentValue
from blockdev.offline import OfflineVolume
from blockdev.units import BLOCK_BYTES, Geometry

WINDOW_BYTES = 8 << 20
"""Content of each side that is compared at once."""

Range = tuple[int, int]
"""(first byte, bytes)"""


def differences(
    old: OfflineVolume,
    new: OfflineVolume,
    *,
    fast: bool = False,
    done: Callable[[int], None] = lambda frames: None,
) -> Iterator[Range]:
    """The byte ranges in which two states of one volume differ, ascending, apart from each other. Exact to 4 KiB; with
    `fast` no data is read and the ranges are whole frames that may differ. Where one state is shorter, it counts as zeros
    up to the end of the other. `done` hears how many candidate frames were compared. Raises ValueError (two volumes),
    CorruptFormat, store errors."""
    if old.volume != new.volume:
        raise ValueError(f"{old.volume.name} and {new.volume.name} are two volumes, not two states of one")
    end = max(old.size_bytes, new.size_bytes)
    found = _whole_frames(candidates(old, new), old.volume.geometry) if fast else _compared(old, new, done)
    return _merged(found, end)


def candidates(old: OfflineVolume, new: OfflineVolume) -> Iterator[int]:
    """Frames (numbers over the whole volume) that may differ, ascending: their place differs between the two maps, or
    they lie where only one of the states reaches."""
    geometry = old.volume.geometry
    per = geometry.frames_per_extent
    shared = min(old.size_bytes, new.size_bytes) // geometry.frame_bytes
    if old.size_bytes == new.size_bytes:
        shared = -(-old.size_bytes // geometry.frame_bytes)
    for extent, before, after in _values(old, new):
        if before != after or (extent + 1) * per > shared:
            for index in range(per):
                frame = extent * per + index
                if frame >= shared or _place(before, index, geometry) != _place(after, index, geometry):
                    yield frame


def _values(old: OfflineVolume, new: OfflineVolume) -> Iterator[tuple[int, ExtentValue, ExtentValue]]:
    """(extent, value before, value after), of all extents that either maps."""
    left, right = old.extents(), new.extents()
    ours, theirs = next(left, None), next(right, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours[0] < theirs[0]):
            assert ours is not None
            yield ours[0], ours[1], EMPTY
            ours = next(left, None)
        elif ours is None or theirs[0] < ours[0]:
            yield theirs[0], EMPTY, theirs[1]
            theirs = next(right, None)
        else:
            yield ours[0], ours[1], theirs[1]
            ours, theirs = next(left, None), next(right, None)


def _place(value: ExtentValue, index: int, geometry: Geometry) -> tuple[object, ...]:
    """Where a frame's content comes from: equal places hold equal bytes."""
    start = index * geometry.sectors_per_frame
    end = start + geometry.sectors_per_frame
    over = [patch for patch in value.patches if patch.start < end and patch.start + patch.sectors > start]
    patches = tuple(
        (
            max(patch.start, start),
            min(patch.start + patch.sectors, end),
            (patch.gen, patch.epoch, patch.n, patch.offset) if patch.stored else None,
        )
        for patch in over
    )
    covered = sum(last - first for first, last, _ in patches)
    base = value.base
    under = (base.gen, base.epoch) if base is not None and base.lengths[index] else None
    return (None if covered == geometry.sectors_per_frame else under, patches)


def _whole_frames(frames: Iterator[int], geometry: Geometry) -> Iterator[Range]:
    for frame in frames:
        yield frame * geometry.frame_bytes, geometry.frame_bytes


def _compared(old: OfflineVolume, new: OfflineVolume, done: Callable[[int], None]) -> Iterator[Range]:
    frame_bytes = old.volume.geometry.frame_bytes
    source = candidates(old, new)
    while batch := list(islice(source, max(1, WINDOW_BYTES // frame_bytes))):
        before, after = old.frames(batch), new.frames(batch)
        for frame in batch:
            ours = _shown(before[frame], frame, old.size_bytes, frame_bytes)
            theirs = _shown(after[frame], frame, new.size_bytes, frame_bytes)
            if ours != theirs:
                for at in range(0, frame_bytes, BLOCK_BYTES):
                    if ours[at : at + BLOCK_BYTES] != theirs[at : at + BLOCK_BYTES]:
                        yield frame * frame_bytes + at, BLOCK_BYTES
        done(len(batch))


def _shown(data: bytes | bytearray | None, frame: int, size_bytes: int, frame_bytes: int) -> bytes:
    """A frame as far as it lies within the volume, zeros behind that."""
    if data is None:
        return bytes(frame_bytes)
    shown = max(0, min(frame_bytes, size_bytes - frame * frame_bytes))
    return bytes(data) if shown == frame_bytes else bytes(data[:shown]) + bytes(frame_bytes - shown)


def _merged(ranges: Iterator[Range], end: int) -> Iterator[Range]:
    """Neighbouring ranges as one, none beyond `end`."""
    first = last = 0
    for at, length in ranges:
        stop = min(at + length, end)
        if at >= end:
            break
        if at > last:
            if last > first:
                yield first, last - first
            first = at
        last = stop
    if last > first:
        yield first, last - first
