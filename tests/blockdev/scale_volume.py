"""Volumes of many TiB, made of their map alone: what attaching, looking things up and checkpoints cost does not depend on the
data behind it.

One rule: every page that is named is there and parses. `pages_apart` > 1 makes only every n-th page, and names only these.
"""

import hashlib
import random
from dataclasses import dataclass
from uuid import UUID

from crc32c import crc32c

from blockdev.extents import format as mapformat
from blockdev.extents.format import Base, ExtentValue
from blockdev.segments import paths, record, root, volume_file
from blockdev.segments.record import NO_DIGEST, Record, RecordKind
from blockdev.segments.root import PAGE_EXTENTS, PageRef, Root
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import TIB, Geometry
from s3core.store import ObjectStore

PACK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Synthetic:
    volume: VolumeFile
    pages: int
    extents: int
    root_bytes: int
    page_bytes: int


def make(store: ObjectStore, tebibytes: float, *, pages_apart: int = 1, identity: int = 77) -> Synthetic:
    """Write vol.json, a fence and a detach record, all pages and a root; every extent of a named page is mapped."""
    geometry = Geometry(int(tebibytes * TIB))
    volume = VolumeFile(
        name="large",
        identity=UUID(int=identity),
        lineage=UUID(int=1),
        geometry=geometry,
        compression="zstd",
        created=0.0,
        creator="test",
    )
    store.put(paths.volume_file(), volume_file.encode(volume))
    journal = UUID(int=5)
    parent, seq = NO_DIGEST, 0
    for kind in (RecordKind.FENCE, RecordKind.DETACH):
        seq += 1
        made = Record(
            seq=seq,
            epoch=1,
            kind=kind,
            nonce=hashlib.sha256(bytes([seq])).digest()[:16],
            parent=parent,
            volume=volume.identity,
            lineage=volume.lineage,
            journal=journal,
            begin=4096,
            end=4096,
            time_us=1,
            size_bytes=geometry.size_bytes,
        )
        parts, parent, _ = record.encode(made)
        store.put(paths.log(seq), parts)
    refs: list[PageRef] = []
    pack: list[bytes] = []
    size = written = n = 0
    # As hard to compress as real ones: what pages cost to read and write is measured with them.
    source = random.Random(1)
    contents = [
        (source.getrandbits(64), bytes(source.choices(range(60, 140), k=geometry.frames_per_extent)))
        for _ in range(PAGE_EXTENTS)
    ]

    def close() -> None:
        nonlocal pack, size, n
        if pack:
            store.put(paths.page_pack(seq, 1, n), pack)
            pack, size, n = [], 0, n + 1

    page_count = geometry.extent_count // PAGE_EXTENTS
    for page in range(0, page_count, pages_apart):
        first = page * PAGE_EXTENTS
        blob = root.encode_page(
            (i, mapformat.encode(first + i, ExtentValue(Base(2, 1, digest, lengths), ())))
            for i, (digest, lengths) in enumerate(contents)
        )
        if size + len(blob) > PACK_BYTES:
            close()
        refs.append(PageRef(page, seq, 1, n, size, len(blob), crc32c(blob)))
        pack.append(blob)
        size += len(blob)
        written += len(blob)
    close()
    made_root = Root(
        seq=seq,
        epoch=1,
        digest=parent,
        volume=volume.identity,
        lineage=volume.lineage,
        journal=journal,
        end=4096,
        time_us=1,
        size_bytes=geometry.size_bytes,
        pages=refs,
        note={"kind": int(RecordKind.DETACH), "record_epoch": 1, "extents": len(refs) * PAGE_EXTENTS},
    )
    encoded = root.encode(made_root)
    store.put(paths.root(seq, 1), encoded)
    return Synthetic(volume, len(refs), len(refs) * PAGE_EXTENTS, len(encoded), written)
