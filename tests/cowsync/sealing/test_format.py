"""Sealed objects: what goes in comes out, and nothing else does."""

import os
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.sealing.format import (
    FACTS_UNIT,
    FRAME_SHIFT_MIN,
    HEADER,
    DataKey,
    Facts,
    Header,
    NotOpened,
    Opener,
    Sealer,
    StreamSealer,
    decode_header,
    encode_header,
    may_be,
    sealed_bytes,
)
from s3core.bucket import Attributes

KEY = DataKey(UUID(int=1 << 100), bytes(range(32)))
OTHER = DataKey(KEY.id, bytes(32))
FRAME = 1 << FRAME_SHIFT_MIN
FACTS = Facts("a/ü b", "e1-3", "v1", 5, 3, Attributes({"content-type": "text/plain"}, {"who": "mé"}, {"tag": "x y"}))
SIZES = st.one_of(
    st.sampled_from([0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME - 1]), st.integers(0, 4 * FRAME)
)


def seal(plain: bytes, facts: Facts = FACTS, key: DataKey = KEY) -> bytes:
    sealer = Sealer(key, len(plain), facts, os.urandom, FRAME_SHIFT_MIN)
    pieces = [plain[at : at + FRAME] for at in range(0, max(1, len(plain)), FRAME)]
    return sealer.head + b"".join(sealer.frame(piece) for piece in pieces)


def unseal(data: bytes, key: DataKey = KEY) -> tuple[bytes, Facts]:
    """As a reader does that knows nothing but the bytes."""
    header = decode_header(data)
    if header.sealed_bytes != len(data):
        raise NotOpened("length")
    opener = Opener(key, header)
    facts = opener.facts(data[HEADER.size : HEADER.size + header.facts_bytes])
    frames = []
    for number in range(1, header.frames + 1):
        begin = header.frame_offset(number)
        frames.append(opener.frame(number, data[begin : begin + header.frame_length(number) + 16]))
    return b"".join(frames), facts


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_what_goes_in_comes_out(size: int) -> None:
    plain = os.urandom(size)
    sealed = seal(plain)
    assert unseal(sealed) == (plain, FACTS)
    assert len(sealed) == sealed_bytes(size, 1, FRAME_SHIFT_MIN)


@given(st.text(min_size=1), st.dictionaries(st.text(), st.text(), max_size=10))
def test_any_facts_come_out(key: str, metadata: dict[str, str]) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    facts = Facts(key, "e", attributes=Attributes({}, metadata, {}))
    assert unseal(seal(b"x", facts)) == (b"x", facts)


def test_nothing_of_it_can_be_read() -> None:
    sealed = seal(b"the secret " * 1000)
    for word in (b"secret", b"text/plain", b"who", b"e1-3"):
        assert word not in sealed


def test_the_same_object_is_never_the_same_twice() -> None:
    first, second = seal(b"x" * 100), seal(b"x" * 100)
    assert first[HEADER.size :] != second[HEADER.size :]
    assert decode_header(first).salt != decode_header(second).salt


def test_another_key_opens_nothing() -> None:
    with pytest.raises(NotOpened):
        unseal(seal(b"x"), OTHER)
    with pytest.raises(NotOpened, match="sealed with data key"):
        unseal(seal(b"x"), DataKey(UUID(int=2), KEY.material))


@pytest.mark.parametrize("plain", [b"", b"a small object"], ids=["empty", "small"])
def test_every_flipped_bit_is_seen(plain: bytes) -> None:
    sealed = seal(plain)
    for place in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(NotOpened):
            unseal(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_flipped_bits_of_a_large_one_are_seen(data: st.DataObject) -> None:
    sealed = bytearray(LARGE)
    place = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[place // 8] ^= 1 << place % 8
    with pytest.raises(NotOpened):
        unseal(bytes(sealed))


LARGE_PLAIN = os.urandom(3 * FRAME)
LARGE = seal(LARGE_PLAIN)


def test_every_truncation_is_seen() -> None:
    small = seal(b"some bytes")
    for length in range(len(small)):
        with pytest.raises(NotOpened):
            unseal(small[:length])


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_a_cut_at_a_frame_is_seen_whatever_the_header_says(frames: int) -> None:
    """The header is bound too: one that tells the shorter length opens nothing."""
    header = decode_header(LARGE)
    cut = LARGE[: header.frame_offset(frames + 1)]
    with pytest.raises(NotOpened):
        unseal(cut)
    lying = Header(frames * FRAME, header.key_id, header.salt, header.facts_units, header.frame_shift)
    with pytest.raises(NotOpened):
        unseal(encode_header(lying) + cut[HEADER.size :])


def test_frames_in_another_order_are_seen() -> None:
    header = decode_header(LARGE)
    first, second, third = (header.frame_offset(number) for number in (1, 2, 3))
    swapped = LARGE[:first] + LARGE[second:third] + LARGE[first:second] + LARGE[third:]
    with pytest.raises(NotOpened, match="frame 1 of 3"):
        unseal(swapped)
    with pytest.raises(NotOpened):
        unseal(LARGE[:second] + LARGE[first:second] + LARGE[third:])


def test_frames_and_facts_of_another_object_are_seen() -> None:
    """Of the same key, size and facts: another version of the same object."""
    other = seal(LARGE_PLAIN)
    header = decode_header(LARGE)
    for begin, end in (
        (0, HEADER.size),
        (HEADER.size, header.frame_offset(1)),
        (header.frame_offset(2), header.frame_offset(3)),
    ):
        with pytest.raises(NotOpened):
            unseal(LARGE[:begin] + other[begin:end] + LARGE[end:])


def test_nothing_is_sealed_twice() -> None:
    sealer = Sealer(KEY, 3, FACTS, os.urandom)
    with pytest.raises(ValueError, match="has 3 bytes"):
        sealer.frame(b"ab")
    sealer.frame(b"abc")
    with pytest.raises(RuntimeError):
        sealer.frame(b"abd")


def test_facts_have_a_bound() -> None:
    with pytest.raises(ValueError, match="more than can be sealed"):
        Sealer(KEY, 0, Facts("k", attributes=Attributes({}, {"a": "x" * 70_000})), os.urandom)


@given(SIZES, st.integers(1, 256))
def test_the_length_is_a_function_of_the_plain_one(size: int, units: int) -> None:
    sealed = sealed_bytes(size, units)
    assert may_be(sealed, size)
    assert not may_be(sealed + 1, size)
    assert not may_be(sealed_bytes(size, 0), size)
    assert not may_be(sealed + FACTS_UNIT * 256, size)


@pytest.mark.parametrize(
    ("place", "value"), [(4, 2), (5, 15), (5, 25), (6, 0)], ids=["version", "small frames", "large frames", "no facts"]
)
def test_a_header_beyond_reason_is_refused(place: int, value: int) -> None:
    header = bytearray(LARGE[: HEADER.size])
    header[place] = value
    with pytest.raises(NotOpened):
        decode_header(bytes(header))


def seal_stream(plain: bytes, facts: Facts = FACTS, key: DataKey = KEY) -> bytes:
    sealer = StreamSealer(key, facts, os.urandom, FRAME_SHIFT_MIN)
    places = range(0, max(1, len(plain)), FRAME)
    return sealer.head + b"".join(sealer.frame(plain[at : at + FRAME], last=at + FRAME >= len(plain)) for at in places)


def unseal_stream(data: bytes, key: DataKey = KEY) -> tuple[bytes, Facts]:
    header = decode_header(data).of_length(len(data))
    opener = Opener(key, header)
    facts = opener.facts(data[HEADER.size : HEADER.size + header.facts_bytes])
    frames = []
    for number in range(1, header.frames + 1):
        begin = header.frame_offset(number)
        frames.append(opener.frame(number, data[begin : begin + header.frame_length(number) + 16]))
    return b"".join(frames), facts


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_a_stream_comes_out_with_a_size_that_only_its_length_told(size: int) -> None:
    plain = os.urandom(size)
    sealed = seal_stream(plain)
    assert unseal_stream(sealed) == (plain, FACTS)
    assert len(sealed) == sealed_bytes(size, 1, FRAME_SHIFT_MIN)


@pytest.mark.parametrize("size", [0, 1, FRAME, 2 * FRAME, 2 * FRAME + 9])
def test_every_cut_of_a_stream_is_seen(size: int) -> None:
    """At the boundary of two frames too: what is left ends with a frame that is not the last one."""
    sealed = seal_stream(os.urandom(size))
    boundaries = {64 + 256, *range(64 + 256, len(sealed), FRAME + 16)}
    for length in sorted(boundaries | {boundary + 16 for boundary in boundaries} | {len(sealed) - 1, 63, 0}):
        if length < len(sealed):
            with pytest.raises(NotOpened):
                unseal_stream(sealed[:length])
    with pytest.raises(NotOpened):
        unseal_stream(sealed + bytes(16))


def test_a_stream_is_not_taken_for_an_object_of_known_size() -> None:
    sealed = bytearray(seal_stream(b"x" * 100))
    assert decode_header(sealed).streamed
    sealed[4], sealed[8] = 1, 100
    with pytest.raises(NotOpened):
        unseal_stream(bytes(sealed))
    known = bytearray(seal(b"x" * 100))
    known[4] = 2
    with pytest.raises(NotOpened, match="tells no size"):
        decode_header(known)
    known[8] = 0
    with pytest.raises(NotOpened):
        unseal_stream(bytes(known))


def test_a_stream_is_sealed_once_and_in_whole_frames() -> None:
    sealer = StreamSealer(KEY, FACTS, os.urandom, FRAME_SHIFT_MIN)
    with pytest.raises(ValueError, match="has 65536 to 65536 bytes"):
        sealer.frame(b"x")
    sealer.frame(bytes(FRAME))
    with pytest.raises(ValueError, match="1 to 65536"):
        sealer.frame(b"", last=True)
    sealer.frame(b"x", last=True)
    with pytest.raises(RuntimeError):
        sealer.frame(b"y", last=True)
