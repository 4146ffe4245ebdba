"""The values behind the golden files, and how each format version writes and reads them.

One rule: a golden file, once committed, is kept for ever and never rewritten: it stands for volumes that exist. A new
format version gets new files beside the old ones. `python -m tests.formats.specimens` writes those that are missing.

A specimen that holds zstd output is compared by what it decodes to (another zstd may pack the same bytes otherwise);
every other one byte for byte.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import zstandard

from blockdev.extents import format as extent_map
from blockdev.extents import history, presence, seal
from blockdev.extents.format import Base, ExtentValue, Patch
from blockdev.extents.history import History, Snapshot
from blockdev.segments import container, extent_object, frames, key_slot, record, root, volume_file
from blockdev.segments.cipher import FrameCipher
from blockdev.segments.key_slot import Secret
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import BaseEntry, MoveEntry, PatchEntry, RangeEntry, Record, RecordKind
from blockdev.segments.root import ContainerUse, DeadObject, PageRef, Root
from blockdev.segments.volume_file import Origin, VolumeFile, encryption_of
from blockdev.units import KIB, MIB, Geometry
from cowsync.base import head, segment, snapshot
from cowsync.base.layers import SegmentRef
from cowsync.rows import REMOVED, Row, Rows
from cowsync.versions import row_key

GOLDEN = Path(__file__).parent / "golden"
VOLUME = UUID("6f1c2a5e-7f5b-4c57-9d0c-1c6d3f2b8a90")
LINEAGE = UUID("0d6b54f3-9a1e-4f55-8b43-4f2d7f0e1a11")
JOURNAL = UUID("b3a1c8f2-55d4-4e0b-a0c7-2f9e6d7c1b22")
GEOMETRY = Geometry(size_bytes=8 * MIB, sector_bytes=512, frame_bytes=16 * KIB, extent_bytes=128 * KIB)
TEXT = (b"The quick brown fox jumps over the lazy dog. " * 12)[:512]
FRAME = (TEXT * 32)[: GEOMETRY.frame_bytes]
CONTENTS = [None, FRAME, None, None, None, None, None, FRAME[::-1]]
TABLE_RAW = bytes([0, 255, 0, 0, 0, 0, 0, 255])

FENCE = Record(
    seq=1,
    epoch=1,
    kind=RecordKind.FENCE,
    nonce=bytes(range(16)),
    parent=record.NO_DIGEST,
    volume=VOLUME,
    lineage=LINEAGE,
    journal=JOURNAL,
    begin=4096,
    end=4096,
    time_us=1_700_000_000_000_000,
    size_bytes=8 * MIB,
    folds=[],
    moves=[],
    ranges=[],
    bases=[],
    patches=[],
)
DATA = Record(
    seq=9,
    epoch=2,
    kind=RecordKind.DATA,
    nonce=bytes(range(16, 32)),
    parent=bytes(range(32)),
    volume=VOLUME,
    lineage=LINEAGE,
    journal=JOURNAL,
    begin=4096,
    end=12288,
    time_us=1_700_000_000_250_000,
    size_bytes=8 * MIB,
    folds=[BaseEntry(5, 9, 2, 7, 0x1122334455667788, TABLE_RAW)],
    moves=[MoveEntry(PatchEntry(6, 16, 8, 64, 544, ContainerRef(9, 2, 0)), ContainerRef(3, 1, 1), 4096)],
    ranges=[RangeEntry(32, 16)],
    bases=[BaseEntry(2, 9, 2, 9, 0x99AABBCCDDEEFF00, TABLE_RAW)],
    patches=[
        PatchEntry(3, 3, 1, 0, 544, ContainerRef(9, 2, INLINE)),
        PatchEntry(4, 0, 8, 0, 0, ContainerRef(9, 2, INLINE)),
    ],
    note={"host": "node1"},
)
INLINE_PATCH = frames.encode(VOLUME.bytes, frames.place_of(3, 3), 1, 9, TEXT, None)
ROOT = Root(
    seq=9,
    epoch=2,
    digest=bytes(range(32)),
    volume=VOLUME,
    lineage=LINEAGE,
    journal=JOURNAL,
    end=12288,
    time_us=1_700_000_000_500_000,
    size_bytes=8 * MIB,
    pages=[PageRef(0, 9, 2, 0, 0, 120, 0xDEADBEEF)],
    runs=[],
    ranges=[(32, 16, 9)],
    containers=[ContainerUse(ContainerRef(9, 2, 0), 8, 8, 608)],
    dead=[DeadObject(9, "seg/5b/000000000003-000001-0001")],
    note={"kind": 1},
)
SNAPSHOT = Snapshot("nightly", 8, 2, "ab" * 32, 1_700_000_000_000_000, 8 * MIB, 1_700_086_400_000_000)
ROOT_DELTAS = replace(
    ROOT,
    runs=[PageRef(0, 9, 2, 0, 120, 60, 0xFEEDFACE), PageRef(0, 9, 2, 1, 0, 61, 0xCAFEF00D)],
    note={
        "kind": 1,
        "record_epoch": 2,
        "extents": 12,
        "flush": "s3",
        "fence": {"host": "node1", "lease_s": 600.0},
        "records": [[1, 4, 472222]],
        **History((SNAPSHOT,), (SNAPSHOT._replace(name="older", seq=6),), True).document(),
    },
)
SNAPSHOT_CHANGES = {"add": [SNAPSHOT._asdict()], "remove": ["older"]}
SNAPSHOT_RECORD = replace(
    DATA, folds=[], moves=[], ranges=[], bases=[], patches=[], note={history.NOTE: SNAPSHOT_CHANGES}
)
RESERVATIONS = {
    "registrations": [["iqn.2026-01.test:one,i,0x00023d000001,t,0x0001", "1122334455667788"]],
    "holder": "iqn.2026-01.test:one,i,0x00023d000001,t,0x0001",
    "type": 5,
}
RESERVED_RECORD = replace(SNAPSHOT_RECORD, note=history.reserved(RESERVATIONS))
ROOT_RESERVED = replace(ROOT_DELTAS, note=History(reservations=RESERVATIONS).document())
BASED = ExtentValue(Base(9, 2, 0x1122334455667788, TABLE_RAW), ())
PATCHED = ExtentValue(BASED.base, (Patch(3, 1, 700, 544, 10, 2, INLINE), Patch(16, 8, 0, 0, 11, 2, INLINE)))
PAGE = [(2, extent_map.encode(2, BASED)), (3, extent_map.encode(3, PATCHED))]
VOLUME_FILE = VolumeFile(
    name="vm-101-disk-0",
    identity=VOLUME,
    lineage=LINEAGE,
    geometry=GEOMETRY,
    compression="zstd",
    created=1700000000.25,
    creator="bucketworks 0.1.0",
)
CLONE_FILE = VolumeFile(
    name="vm-102-disk-0",
    identity=UUID("4c1d2e3f-5a6b-4c7d-8e9f-0a1b2c3d4e5f"),
    lineage=UUID("71c5d0f4-2b3e-4a6d-9c8f-0e1d2c3b4a59"),
    geometry=GEOMETRY,
    compression="zstd",
    created=1700000100.5,
    creator="bucketworks 0.1.0",
    features=frozenset({"clone"}),
    origin=(Origin("vm-101-disk-0", VOLUME, 9, 2, "root/0000000000000009-000002", bytes(range(32)), LINEAGE),),
)
DATA_KEY = bytes(range(32, 64))
CIPHER = FrameCipher(DATA_KEY, lambda size: bytes(range(size)))
ENCRYPTED_FILE = replace(VOLUME_FILE, features=frozenset({"encryption"}), encryption=encryption_of(DATA_KEY, VOLUME))
SECRETS = {"key": Secret("key", bytes(range(64, 96))), "passphrase": Secret("passphrase", b"correct horse")}
SLOTS = {
    kind: key_slot.wrap(
        DATA_KEY,
        secret,
        volume=VOLUME,
        random=lambda size: bytes(range(100, 100 + size)),
        created=1700000000.25,
        creator="bucketworks 0.1.0",
    )
    for kind, secret in SECRETS.items()
}


BASE_VERSIONS = Rows()
for _row in (
    Row(
        row_key(b"a\0b", 1),
        3,
        b"0cc175b9c0f1b6a831c399e269772661",
        b"2026-11-21T08:15:30.000Z",
        b"v1",
        b"",
        b"m",
        b"w1",
    ),
    Row(row_key(b"a\0b", 2), 0, b"", b"2026-11-21T08:15:31.000Z", b"v2", b"", b"", b"w2"),
    Row(
        row_key(b"a\0b", 4),
        9,
        b"d41d8cd98f00b204e9800998ecf8427e-2",
        b"2026-11-22T00:00:00.000Z",
        b"null",
        b"",
        b"n",
        b"w4",
        7,
    ),
    Row(
        row_key("a\x01/\u00e9".encode(), 0xFFFF_FFFF),
        0,
        b"d41d8cd98f00b204e9800998ecf8427e",
        b"",
        b"v3",
        b"",
        b"",
        b"w5",
    ),
):
    BASE_VERSIONS.append(_row)
BASE_ROWS = Rows()
for _number in range(40):
    _digest = b"%032x" % ((_number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128))
    BASE_ROWS.append(
        Row(
            b"photos/%c/%06d.jpg" % (97 + _number // 20, _number * 7),
            _number * 70_001,
            _digest + b"-3" * (_number == 5),
            b"2026-11-%02dT%02d:04:05.000Z" % (_number % 28 + 1, _number % 24),
            b"",
            b"STANDARD",
            _digest,
            b"v%d" % (_number % 3),
            {7: 4, 9: REMOVED}.get(_number, 0),
        )
    )
BASE_SNAPSHOT = snapshot.Snapshot(
    snapshot.Facts(7, "2026-11-21T22:18:54Z", "s3://photos", "s3://mirror/photos", ((b"", None),)),
    "ab" * 32,
    snapshot.Totals(41, 1, 54_600_780),
    (
        (SegmentRef("cd" * 32, b"photos/a/000000.jpg", "photos/b/é".encode(), 40, 1, 54_600_780, 1400),),
        (SegmentRef("ef" * 32, b"photos/a/000007.jpg", b"photos/a/000007.jpg", 1, 0, 70_001, 300),),
    ),
)
BASE_NOTES = replace(BASE_SNAPSHOT, facts=replace(BASE_SNAPSHOT.facts, notes={"plan": "34" * 32, "held": [1, None]}))
BASE_HEAD = (head.Entry("ab" * 32, 7, "2026-11-21T22:18:54Z"), head.Entry("12" * 32, 6, "2026-11-20T22:18:54Z"))


@dataclass(frozen=True, slots=True)
class Specimen:
    """`write` gives the bytes today's code writes, `read` what today's code makes of bytes; `value` is what it must be.
    `exact`: today's bytes must be the golden ones."""

    name: str
    write: Callable[[], bytes]
    read: Callable[[bytes], object]
    value: object
    exact: bool


def _frame(blob: bytes, cipher: FrameCipher | None = None) -> object:
    decompressor = zstandard.ZstdDecompressor()
    return frames.decode(
        VOLUME.bytes,
        blob,
        sector_bytes=512,
        extent=3,
        gen=9,
        what="golden",
        offset=0,
        decompressor=decompressor,
        cipher=cipher,
    )


def _write_frame(packed: bool, cipher: FrameCipher | None = None) -> bytes:
    squeeze = zstandard.ZstdCompressor(level=3) if packed else None
    return frames.encode(VOLUME.bytes, frames.place_of(3, 3), 1, 9, TEXT, squeeze, cipher)


def _extent(blob: bytes) -> object:
    """(volume, extent, gen, epoch), and the frames' contents."""
    volume, extent, gen, epoch, table = extent_object.parse_header(GEOMETRY, blob, what="golden")
    offsets = extent_object.frame_offsets(GEOMETRY, table)
    contents: list[bytes | None] = []
    for index, code in enumerate(table):
        if code == extent_object.ZERO_FRAME:
            contents.append(None)
            continue
        start, raw = frames.decode(
            VOLUME.bytes,
            blob[offsets[index] : offsets[index + 1]],
            sector_bytes=512,
            extent=extent,
            gen=gen,
            what="golden",
            offset=offsets[index],
            decompressor=zstandard.ZstdDecompressor(),
        )
        assert start == index * GEOMETRY.sectors_per_frame
        contents.append(raw)
    return (volume, extent, gen, epoch), contents


def _write_extent(packed: bool) -> bytes:
    squeeze = zstandard.ZstdCompressor(level=3) if packed else None
    return b"".join(extent_object.encode(GEOMETRY, VOLUME.bytes, 5, 9, 2, CONTENTS, squeeze)[0])


def _record(blob: bytes) -> object:
    parsed = record.decode(blob, what="golden")
    return parsed.record, bytes(blob[parsed.inline_offset :])


def _slot(blob: bytes) -> object:
    """The slot, and the data key its secret opens it to."""
    found = key_slot.decode(blob, what="golden")
    return found, key_slot.unwrap(found, SECRETS[found.kind])


def _write_record(value: Record, inline: list[bytes]) -> bytes:
    return b"".join(bytes(part) for part in record.encode(value, inline)[0])


TAGS = presence.StoredTags(0x11223344, [(0, bytes(range(256)) * 4), (7, b"\x05" + bytes(presence.CHUNK - 1))])
SEAL = seal.Seal(seal.owner_digest(str(VOLUME)), 2 * 4096 + 100, [0x01020304, 0xFFEEDDCC, 5])
SPECIMENS = [
    Specimen("frame-raw.v1", lambda: _write_frame(False), _frame, (3, TEXT), True),
    Specimen("frame-zstd.v1", lambda: _write_frame(True), _frame, (3, TEXT), False),
    Specimen(
        "frame-raw-encrypted.v1",
        lambda: _write_frame(False, CIPHER),
        lambda blob: _frame(blob, CIPHER),
        (3, TEXT),
        True,
    ),
    Specimen(
        "frame-zstd-encrypted.v1",
        lambda: _write_frame(True, CIPHER),
        lambda blob: _frame(blob, CIPHER),
        (3, TEXT),
        False,
    ),
    Specimen("extent-raw.v1", lambda: _write_extent(False), _extent, ((VOLUME.bytes, 5, 9, 2), CONTENTS), True),
    Specimen("extent-zstd.v1", lambda: _write_extent(True), _extent, ((VOLUME.bytes, 5, 9, 2), CONTENTS), False),
    Specimen(
        "segment-header.v1",
        lambda: container.header(VOLUME.bytes, 9, 2, 0, 1),
        lambda blob: container.parse_header(blob, what="golden"),
        (VOLUME.bytes, 9, 2, 0),
        True,
    ),
    Specimen("log-fence.v1", lambda: _write_record(FENCE, []), _record, (FENCE, b""), False),
    Specimen("log-data.v1", lambda: _write_record(DATA, [INLINE_PATCH]), _record, (DATA, INLINE_PATCH), False),
    Specimen("log-snapshot.v1", lambda: _write_record(SNAPSHOT_RECORD, []), _record, (SNAPSHOT_RECORD, b""), False),
    Specimen("log-reservations.v1", lambda: _write_record(RESERVED_RECORD, []), _record, (RESERVED_RECORD, b""), False),
    Specimen(
        "root-reservations.v1",
        lambda: root.encode(ROOT_RESERVED),
        lambda blob: root.decode(blob, what="golden"),
        ROOT_RESERVED,
        False,
    ),
    Specimen(
        "root-deltas.v1",
        lambda: root.encode(ROOT_DELTAS),
        lambda blob: root.decode(blob, what="golden"),
        ROOT_DELTAS,
        False,
    ),
    Specimen("root.v1", lambda: root.encode(ROOT), lambda blob: root.decode(blob, what="golden"), ROOT, False),
    Specimen(
        "map-page.v1",
        lambda: root.encode_page(PAGE),
        lambda blob: list(root.decode_page(blob, what="golden", offset=0)),
        PAGE,
        False,
    ),
    Specimen(
        "map-value-base.v1",
        lambda: extent_map.encode(2, BASED),
        lambda blob: extent_map.decode(2, blob),
        BASED,
        True,
    ),
    Specimen(
        "map-value-patches.v1",
        lambda: extent_map.encode(3, PATCHED),
        lambda blob: extent_map.decode(3, blob),
        PATCHED,
        True,
    ),
    Specimen(
        "map-seal.v1",
        lambda: seal.encode(SEAL),
        seal.decode,
        SEAL,
        True,
    ),
    Specimen(
        "map-tags.v1",
        lambda: presence.encode(TAGS),
        presence.decode,
        TAGS,
        True,
    ),
    Specimen(
        "volume.v1.json",
        lambda: volume_file.encode(VOLUME_FILE),
        lambda blob: volume_file.decode(blob, what="golden"),
        VOLUME_FILE,
        True,
    ),
    Specimen(
        "volume-clone.v1.json",
        lambda: volume_file.encode(CLONE_FILE),
        lambda blob: volume_file.decode(blob, what="golden"),
        CLONE_FILE,
        True,
    ),
    Specimen(
        "volume-encrypted.v1.json",
        lambda: volume_file.encode(ENCRYPTED_FILE),
        lambda blob: volume_file.decode(blob, what="golden"),
        ENCRYPTED_FILE,
        True,
    ),
    Specimen("key-slot-file.v1.json", lambda: key_slot.encode(SLOTS["key"]), _slot, (SLOTS["key"], DATA_KEY), True),
    Specimen(
        "key-slot-passphrase.v1.json",
        lambda: key_slot.encode(SLOTS["passphrase"]),
        _slot,
        (SLOTS["passphrase"], DATA_KEY),
        True,
    ),
    Specimen(
        "base-segment.v1",
        lambda: segment.write(BASE_ROWS),
        lambda blob: segment.Segment(blob, "golden").frame(0),
        BASE_ROWS,
        False,
    ),
    Specimen(
        "base-segment-versions.v1",
        lambda: segment.write(BASE_VERSIONS),
        lambda blob: segment.Segment(blob, "golden").frame(0),
        BASE_VERSIONS,
        False,
    ),
    Specimen(
        "base-snapshot.v1.json",
        lambda: snapshot.encode(BASE_SNAPSHOT),
        lambda blob: snapshot.parse(blob, "golden"),
        BASE_SNAPSHOT,
        True,
    ),
    Specimen(
        "base-snapshot-notes.v1.json",
        lambda: snapshot.encode(BASE_NOTES),
        lambda blob: snapshot.parse(blob, "golden"),
        BASE_NOTES,
        True,
    ),
    Specimen("base-head.v1.json", lambda: head.encode(BASE_HEAD), head.decode, BASE_HEAD, True),
]


def path_of(specimen: Specimen) -> Path:
    return GOLDEN / (specimen.name if specimen.name.endswith(".json") else f"{specimen.name}.bin")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for specimen in SPECIMENS:
        path = path_of(specimen)
        if path.exists():
            print(f"kept     {path}")
            continue
        path.write_bytes(specimen.write())
        print(f"written  {path}")


if __name__ == "__main__":
    main()
