"""The oracle: it must accept every prefix and nothing else, and say what is wrong in terms of the promise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.model import ZERO, Model, Operation, Violation, stamp, token_of

SECTORS = 12
operation_shapes = st.tuples(st.booleans(), st.integers(0, SECTORS - 1), st.integers(1, 5))


def model_of(shapes: list[tuple[bool, int, int]]) -> tuple[Model, list[list[int]]]:
    """A model, and the image after each prefix, computed the slow and obvious way."""
    model = Model(SECTORS)
    image = [ZERO] * SECTORS
    images = [list(image)]
    for writes, lba, length in shapes:
        count = min(length, SECTORS - lba)
        token = model.new_token() if writes else ZERO
        model.staged(Operation(token, lba, count))
        image[lba : lba + count] = [token] * count
        images.append(list(image))
    return model, images


@given(st.lists(operation_shapes, max_size=12))
def test_every_prefix_is_legal_and_named(shapes: list[tuple[bool, int, int]]) -> None:
    model, images = model_of(shapes)
    for prefix, image in enumerate(images):
        assert model.prefixes(image) >> prefix & 1
        best = model.judge(image, prefix, "test")
        assert images[best] == image


@given(
    st.lists(operation_shapes, min_size=1, max_size=12),
    st.lists(st.integers(0, 13), min_size=SECTORS, max_size=SECTORS),
)
def test_every_other_image_is_a_violation(shapes: list[tuple[bool, int, int]], image: list[int]) -> None:
    model, images = model_of(shapes)
    if image in images:
        assert images[model.judge(image, 0, "test")] == image
    else:
        with pytest.raises(Violation, match="no prefix"):
            model.judge(image, 0, "test")


@given(st.lists(operation_shapes, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_a_mixture_of_two_prefixes_is_a_violation(shapes: list[tuple[bool, int, int]], r: random.Random) -> None:
    model, images = model_of(shapes)
    first, second = r.choice(images), r.choice(images)
    mixed = [r.choice(pair) for pair in zip(first, second, strict=True)]
    if mixed in images:
        model.judge(mixed, 0, "test")
    else:
        with pytest.raises(Violation):
            model.judge(mixed, 0, "test")


def test_a_prefix_that_is_too_short_names_what_is_missing() -> None:
    model, images = model_of([(True, 0, 2), (True, 4, 1)])
    with pytest.raises(Violation, match=r"kept: .* after 1 operations, 2 were promised; .* write 2 of \[4, 5\)"):
        model.judge(images[1], 2, "kept")


def test_bounds_follow_acknowledgement_flush_and_report() -> None:
    model, _ = model_of([(True, 0, 1), (True, 1, 1)])
    assert (model.acknowledged, model.flushed, model.in_bucket) == (0, 0, 0)
    model.acknowledge(100)
    begun = model.flush_begun()
    model.staged(Operation(model.new_token(), 2, 1))
    model.acknowledge(200)
    model.flush_done(begun)
    assert (model.acknowledged, model.flushed) == (3, 2)
    model.reported_durable(199)
    assert model.in_bucket == 2
    model.reported_durable(200)
    assert model.in_bucket == 3


def test_a_flush_to_the_bucket_promises_the_bucket() -> None:
    model, _ = model_of([(True, 0, 1)])
    model.acknowledge(100)
    model.flush_done(model.flush_begun(), to_bucket=True)
    assert model.in_bucket == 1


def test_after_recovery_what_was_lost_never_happened() -> None:
    model, images = model_of([(True, 0, 2), (True, 1, 2), (False, 0, 1)])
    model.acknowledge(100)
    model.recovered(1)
    assert (model.acknowledged, model.flushed) == (1, 1)
    token = model.new_token()
    model.staged(Operation(token, 5, 1))
    image = list(images[1])
    image[5] = token
    assert model.judge(image, 2, "test") == 2
    with pytest.raises(Violation):
        model.judge(images[2], 0, "test")


def test_a_refused_operation_never_happened() -> None:
    model, images = model_of([(True, 0, 1)])
    model.staged(Operation(model.new_token(), 0, 3))
    model.refused()
    assert model.judge(images[1], 1, "test") == 1


def test_a_read_brings_what_was_there_when_it_was_asked_or_later() -> None:
    model, _ = model_of([(True, 0, 1), (True, 0, 1)])
    read = model.read_begun(0, 1)
    model.staged(Operation(model.new_token(), 0, 1))
    for token in (2, 3):
        model.read_done(read, [stamp(token, 0, 512)], 512)
    with pytest.raises(Violation, match=r"brought write 1; legal were \[2, 3\]"):
        model.read_done(read, [stamp(1, 0, 512)], 512)
    with pytest.raises(Violation, match="brought write 0"):
        model.read_done(read, [bytes(512)], 512)
    with pytest.raises(Violation, match="brought 511 bytes"):
        model.read_done(read, [bytes(511)], 512)


@given(st.integers(1, 2**40), st.integers(0, 2**40), st.sampled_from([512, 4096]), st.integers(0))
def test_a_stamp_shows_any_flipped_bit(token: int, lba: int, sector_bytes: int, bit: int) -> None:
    data = bytearray(stamp(token, lba, sector_bytes))
    assert len(data) == sector_bytes
    assert token_of(data, lba) == token
    bit %= sector_bytes * 8
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Violation):
        token_of(data, lba)


def test_a_stamp_of_another_place_is_a_violation() -> None:
    with pytest.raises(Violation, match="sector 8 holds what was written to sector 9 by write 3"):
        token_of(stamp(3, 9, 512), 8)
    assert token_of(bytes(512), 8) == ZERO
