"""Which way an object goes, and how it is cut."""

from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.apply.transfer import (
    MIB,
    PARTS_MAX,
    Route,
    TransferSettings,
    choose_route,
    guessed_parts,
    multipart_etag,
    part_size,
)
from s3core.bucket import BucketProperties

GIB = 1024 * MIB
HERE = BucketProperties("s3://one", "a", versioned=False)
BESIDE = BucketProperties("s3://one", "b", versioned=False)
ELSEWHERE = BucketProperties("s3://two", "c", versioned=False)
NOWHERE = BucketProperties("", "d", versioned=False)


@pytest.mark.parametrize(
    ("size", "etag", "target", "route"),
    [
        (0, "x", BESIDE, Route.COPY),
        (5 * GIB, "x-640", BESIDE, Route.COPY),
        (5 * GIB + 1, "x", BESIDE, Route.COPY_PARTS),
        (0, "x", ELSEWHERE, Route.PUT),
        (64 * MIB, "x", ELSEWHERE, Route.PUT),
        (64 * MIB + 1, "x", ELSEWHERE, Route.PARTS),
        (9 * MIB, "x-2", ELSEWHERE, Route.PARTS),
        (0, "x-1", ELSEWHERE, Route.PUT),
    ],
)
def test_routes(size: int, etag: str, target: BucketProperties, route: Route) -> None:
    assert choose_route(size, etag, HERE, target, TransferSettings()) is route


def test_no_endpoint_copies_nothing_by_itself() -> None:
    assert choose_route(1, "x", NOWHERE, NOWHERE, TransferSettings()) is Route.PUT


def test_parts_are_kept_where_asked() -> None:
    assert choose_route(9 * MIB, "x-2", HERE, BESIDE, TransferSettings(keep_parts=True)) is Route.COPY_PARTS
    assert choose_route(9 * MIB, "x", HERE, BESIDE, TransferSettings(keep_parts=True)) is Route.COPY


@given(
    st.integers(1, 5 << 40),
    st.integers(0, 6 * GIB),
    st.integers(0, 10_001),
    st.sampled_from([64 * MIB, 512 * MIB]),
)
def test_an_upload_never_has_too_many_or_too_small_parts(size: int, first: int, parts: int, default: int) -> None:
    length = part_size(size, first, parts, least=5 * MIB, most=5 * GIB, default=default)
    count = -(-size // length)
    assert 1 <= count <= PARTS_MAX
    assert count == 1 or 5 * MIB <= length <= 5 * GIB


@given(st.integers(1, 10_000), st.integers(5 * MIB, 128 * MIB), st.integers(1, 5 * MIB))
def test_the_sources_parts_are_taken_over(whole: int, first: int, rest: int) -> None:
    size = (whole - 1) * first + rest
    assert part_size(size, first, whole, least=5 * MIB, most=128 * MIB, default=64 * MIB) == first


def test_source_parts_that_cannot_be_ours_are_not() -> None:
    limits = {"least": 5 * MIB, "most": 128 * MIB, "default": 64 * MIB}
    assert part_size(1000 * MIB, 500 * MIB, 2, **limits) == 64 * MIB, "too large for our memory"
    assert part_size(10 * MIB, 1 * MIB, 10, **limits) == 64 * MIB, "too small for the target"
    assert part_size(100 * MIB, 10 * MIB, 3, **limits) == 64 * MIB, "not all of one size"
    assert part_size(900 * GIB, 0, 0, **limits) == 93 * MIB, "10,000 parts are the most"


def test_guesses_where_the_server_does_not_tell() -> None:
    assert guessed_parts(12 * MIB, "x-3") == (5 * MIB, 3)
    assert guessed_parts(20 * MIB, "x-3") == (8 * MIB, 3)
    assert guessed_parts(20 * MIB, "x-3", 9 * MIB) == (9 * MIB, 3)
    assert guessed_parts(20 * MIB, "x-1") == (20 * MIB, 1)
    assert guessed_parts(20 * MIB, "x-9") == (0, 0)
    assert guessed_parts(20 * MIB, "x-") == (0, 0)


def test_the_etag_of_parts() -> None:
    parts = [md5(b"one").hexdigest(), md5(b"two").hexdigest()]
    assert multipart_etag(parts) == md5(md5(b"one").digest() + md5(b"two").digest()).hexdigest() + "-2"
    assert multipart_etag(["not hex"]) == ""
    assert multipart_etag(["abcd"]) == ""
