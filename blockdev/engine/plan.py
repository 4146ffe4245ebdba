"""What a commit carries: journal records become extents, patches and discards. Pure.

One rule: a commit covers a contiguous piece of the journal, so only what is overwritten *within* that piece may be
left out. The rules and the figures behind them: docs/design/0003-commit-and-fold.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blockdev.extents.format import ExtentValue
from blockdev.extents.intervals import Overlay, Run
from blockdev.journal.format import MORE, Kind, Record
from blockdev.units import Geometry

WHOLE_FRACTION = 4
"""An extent whose live sectors are all overwritten becomes an object when at least 1/4 of it is written."""

_ZEROS = bytes(4 << 20)

Source = memoryview | None
"""Bytes of the sectors, or None: they read as zeros."""


@dataclass(slots=True)
class Batch:
    """The net effect of some journal records. `discards`: whole extents, applied before `extents`."""

    begin: int
    end: int
    records: int = 0
    written_bytes: int = 0
    discards: Overlay[None] = field(default_factory=Overlay)
    extents: dict[int, Overlay[Source]] = field(default_factory=dict)

    def touches(self, extent: int) -> bool:
        """True when the batch changes anything in the extent."""
        return extent in self.extents or any(True for _ in self.discards.within(extent, extent + 1))


def gather(records: Iterable[tuple[Record, memoryview]], geometry: Geometry, begin: int, limit_bytes: int) -> Batch:
    """Coalesce records from journal position `begin` until about `limit_bytes` of data; `end` says where it stopped, which
    is never within a command of several records. ValueError when they end within one: nobody announces such a place."""
    batch = Batch(begin, begin)
    flags = 0
    for record, data in records:
        if record.kind == Kind.WRITE:
            _write(batch, geometry, record.lba, data)
            batch.written_bytes += len(data)
        else:
            _discard(batch, geometry, record.lba, record.sectors)
        batch.records += 1
        batch.end = record.end
        flags = record.flags
        if batch.written_bytes >= limit_bytes and not flags & MORE:
            break
    if flags & MORE:
        raise ValueError(f"position {batch.end} of the journal is in the middle of a command")
    return batch


def _discard(batch: Batch, geometry: Geometry, lba: int, count: int) -> None:
    size = geometry.sectors_per_extent
    first = -(-lba // size)
    end = lba + count
    # The last extent may reach beyond the volume; discarding up to the volume's end discards all of it.
    last = -(-end // size) if end >= geometry.sector_count else end // size
    if first < last:
        batch.discards.put(first, last, None)
        _forget(batch, first, last)
        _zero(batch, size, lba, first * size)
        _zero(batch, size, last * size, end)
    else:
        _zero(batch, size, lba, end)


def _forget(batch: Batch, first: int, last: int) -> None:
    if last - first > len(batch.extents):
        for extent in [extent for extent in batch.extents if first <= extent < last]:
            del batch.extents[extent]
    else:
        for extent in range(first, last):
            batch.extents.pop(extent, None)


def _overlay(batch: Batch, extent: int) -> Overlay[Source]:
    overlay = batch.extents.get(extent)
    if overlay is None:
        overlay = batch.extents[extent] = Overlay()
    return overlay


def _write(batch: Batch, geometry: Geometry, lba: int, data: memoryview) -> None:
    size = geometry.sectors_per_extent
    sector = geometry.sector_bytes
    end = lba + len(data) // sector
    at = lba
    while at < end:
        extent, start = divmod(at, size)
        stop = min(size, start + end - at)
        piece = data[(at - lba) * sector : (at - lba + stop - start) * sector]
        _overlay(batch, extent).put(start, stop, piece)
        at += stop - start


def _zero(batch: Batch, size: int, lba: int, end: int) -> None:
    at = lba
    while at < end:
        extent, start = divmod(at, size)
        stop = min(size, start + end - at)
        _overlay(batch, extent).put(start, stop, None)
        at += stop - start


def is_zero(view: memoryview) -> bool:
    """True when every byte is 0. Compares with memcmp: gigabytes a second."""
    size = len(view)
    return view[:64] == _ZEROS[: min(64, size)] and view == _ZEROS[:size]


@dataclass(frozen=True, slots=True)
class Piece:
    """A patch to be: sectors [start, end) of the extent; `parts` joined are its bytes, empty for zeros."""

    extent: int
    start: int
    end: int
    parts: tuple[memoryview, ...]


@dataclass(slots=True)
class CommitPlan:
    discards: list[tuple[int, int]]
    """(first extent, extents)"""
    wholes: list[int]
    """Extents that become objects; sectors not in the overlay are zeros."""
    pieces: list[Piece]


def decide(batch: Batch, geometry: Geometry, values: dict[int, ExtentValue]) -> CommitPlan:
    """Objects, patches or both. `values` is the committed map's view of every extent in the batch; whether a discard
    of the same batch hides it is looked at here."""
    plan = CommitPlan([(run.start, run.end - run.start) for run in batch.discards], [], [])
    size = geometry.sectors_per_extent
    for extent in sorted(batch.extents):
        overlay = batch.extents[extent]
        value = values[extent]
        discarded = any(True for _ in batch.discards.within(extent, extent + 1))
        written = sum(run.end - run.start for run in overlay if run.source is not None)
        if overlay.covered() == size or (
            written * WHOLE_FRACTION >= size and (discarded or _nothing_left(overlay, geometry, value))
        ):
            plan.wholes.append(extent)
        else:
            empty = discarded or (value.base is None and not value.patches)
            plan.pieces.extend(_pieces(extent, overlay, geometry, skip_zeros=empty))
    return plan


def _nothing_left(overlay: Overlay[Source], geometry: Geometry, value: ExtentValue) -> bool:
    """True when no live sector of the extent lies outside the overlay."""
    live: list[tuple[int, int]] = [(p.start, p.start + p.sectors) for p in value.patches if p.stored]
    if value.base is not None:
        step = geometry.sectors_per_frame
        live += [(i * step, (i + 1) * step) for i, code in enumerate(value.base.lengths) if code]
    return all(not any(True for _ in overlay.holes(start, end)) for start, end in live)


def _pieces(extent: int, overlay: Overlay[Source], geometry: Geometry, *, skip_zeros: bool) -> list[Piece]:
    """Runs that touch within a frame make one patch; patches never cross a frame; zeros merge across frames."""
    frame = geometry.sectors_per_frame
    sector = geometry.sector_bytes
    pieces: list[Piece] = []
    for run in overlay:
        start = run.start
        while start < run.end:
            end = min(run.end, (start // frame + 1) * frame)
            source = None
            if run.source is not None:
                source = run.source[(start - run.origin) * sector : (end - run.origin) * sector]
                if is_zero(source):
                    source = None
            last = pieces[-1] if pieces else None
            touches = last is not None and last.end == start
            if source is None:
                if touches and last is not None and not last.parts:
                    pieces[-1] = Piece(extent, last.start, end, ())
                else:
                    pieces.append(Piece(extent, start, end, ()))
            elif touches and last is not None and last.parts and last.start // frame == start // frame:
                pieces[-1] = Piece(extent, last.start, end, (*last.parts, source))
            else:
                pieces.append(Piece(extent, start, end, (source,)))
            start = end
    return [piece for piece in pieces if piece.parts or not skip_zeros]


def whole_contents(overlay: Overlay[Source], geometry: Geometry) -> list[memoryview | bytes | None]:
    """The extent's frames for `extent_object.encode`: raw bytes each, or None for zeros."""
    frame = geometry.sectors_per_frame
    sector = geometry.sector_bytes
    contents: list[memoryview | bytes | None] = []
    for index in range(geometry.frames_per_extent):
        first = index * frame
        runs: Sequence[Run[Source]] = list(overlay.within(first, first + frame))
        data = [run for run in runs if run.source is not None]
        if not data:
            contents.append(None)
            continue
        only = data[0]
        if len(data) == 1 and only.end - only.start == frame and only.source is not None:
            view = only.source[(only.start - only.origin) * sector : (only.end - only.origin) * sector]
            contents.append(None if is_zero(view) else view)
            continue
        buffer = bytearray(geometry.frame_bytes)
        for run in data:
            assert run.source is not None
            buffer[(run.start - first) * sector : (run.end - first) * sector] = run.source[
                (run.start - run.origin) * sector : (run.end - run.origin) * sector
            ]
        contents.append(None if is_zero(memoryview(buffer)) else memoryview(buffer))
    return contents
