"""Golden bytes of a sealed object. Its salt is counted, not random, so today's code writes the same bytes again.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_sealed` writes missing ones.
"""

from pathlib import Path
from uuid import UUID

from cowsync.sealing.format import (
    FRAME_SHIFT_MIN,
    HEADER,
    DataKey,
    Facts,
    Opener,
    Sealer,
    StreamSealer,
    decode_header,
)
from s3core.bucket import Attributes

GOLDEN = Path(__file__).parent / "golden"
KEY = DataKey(UUID("6f1c2a5e-7f5b-4c57-9d0c-1c6d3f2b8a90"), bytes(range(100, 132)))
FACTS = Facts(
    "photos/2026/ü.jpg",
    "9e107d9d372bb6826bd81d3542a419d6-2",
    "v7",
    1 << 16,
    2,
    Attributes({"content-type": "image/jpeg"}, {"who": "mé"}, {"kind": "holiday"}),
)
PLAIN = (b"The quick brown fox jumps over the lazy dog. " * 1500)[: (1 << 16) + 5]
OBJECTS = {
    "sealed-object.v1.bin": (PLAIN, FACTS),
    "sealed-object-empty.v1.bin": (b"", Facts("empty")),
    "sealed-object.v2.bin": (PLAIN, FACTS),
    "sealed-object-empty.v2.bin": (b"", Facts("empty")),
}


def sealed(name: str, plain: bytes, facts: Facts) -> bytes:
    places = range(0, max(1, len(plain)), 1 << FRAME_SHIFT_MIN)
    step = 1 << FRAME_SHIFT_MIN
    if ".v2." in name:
        stream = StreamSealer(KEY, facts, lambda count: bytes(range(count)), FRAME_SHIFT_MIN)
        frames = [stream.frame(plain[at : at + step], last=at + step >= len(plain)) for at in places]
        return stream.head + b"".join(frames)
    sealer = Sealer(KEY, len(plain), facts, lambda count: bytes(range(count)), FRAME_SHIFT_MIN)
    return sealer.head + b"".join(sealer.frame(plain[at : at + step]) for at in places)


def test_todays_code_reads_the_golden_objects() -> None:
    for name, (plain, facts) in OBJECTS.items():
        data = (GOLDEN / name).read_bytes()
        header = decode_header(data).of_length(len(data))
        assert (header.sealed_bytes, header.size, header.key_id) == (len(data), len(plain), KEY.id)
        opener = Opener(KEY, header)
        assert opener.facts(data[HEADER.size : HEADER.size + header.facts_bytes]) == facts
        frames = [
            opener.frame(number, data[header.frame_offset(number) :][: header.frame_length(number) + 16])
            for number in range(1, header.frames + 1)
        ]
        assert b"".join(frames) == plain


def test_todays_code_writes_the_golden_objects() -> None:
    for name, (plain, facts) in OBJECTS.items():
        assert sealed(name, plain, facts) == (GOLDEN / name).read_bytes()


def write_missing() -> None:
    for name, (plain, facts) in OBJECTS.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(sealed(name, plain, facts))


if __name__ == "__main__":
    write_missing()
