"""Sealed streams where people and programs read them: from front to back, and by ranges out of a bucket."""

import io
import os

import pytest

from cowsync.decrypt_command import plain_pieces
from cowsync.sealing.format import FRAME_SHIFT_MIN, NotOpened
from cowsync.sealing.keys import Keyring
from cowsync.sealing.reading import OpenedBucket
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.sealing.test_format import FACTS, FRAME, KEY, seal_stream

KEYRING = Keyring(KEY, {KEY.id: KEY}, os.urandom, FRAME_SHIFT_MIN)


@pytest.mark.parametrize("size", [0, 5, FRAME, 2 * FRAME + 3])
def test_from_front_to_back(size: int) -> None:
    plain = os.urandom(size)
    sealed = seal_stream(plain)
    pieces = list(plain_pieces(io.BytesIO(sealed), KEYRING))
    assert b"".join(piece for _, piece in pieces) == plain
    assert pieces[0][0] == FACTS
    with pytest.raises(NotOpened):
        list(plain_pieces(io.BytesIO(sealed[:-1]), KEYRING))
    with pytest.raises(NotOpened):
        list(plain_pieces(io.BytesIO(sealed + b"x"), KEYRING))


@pytest.mark.parametrize("size", [0, 5, FRAME, 3 * FRAME + 3])
def test_by_ranges(size: int) -> None:
    bucket, plain = MemoryBucket(), os.urandom(size)
    sealed = seal_stream(plain)
    bucket.put("a", sealed)
    opened = OpenedBucket(bucket, KEYRING, lambda name, key: True)
    assert opened.head("a").size == size
    assert opened.get("a") == plain
    if size > FRAME:
        assert opened.get("a", offset=FRAME - 1, length=3) == plain[FRAME - 1 : FRAME + 2]
        # Cut off between two frames, its length would be that of a shorter stream.
        bucket.put("a", sealed[: 64 + 256 + FRAME + 16])
        with pytest.raises(NotOpened):
            opened.head("a")
