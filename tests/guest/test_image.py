"""The cache of images: what nobody uses is removed, and nothing else; no guest is booted for this."""

import os
import time
from pathlib import Path

import pytest

from tests.guest import image

DAY_S = 24 * 3600.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path


def use(cache: Path, name: str, days_ago: float) -> None:
    """An entry that was built and used so long ago; its lock is given back."""

    def build(directory: Path) -> None:
        (directory / "image").write_bytes(b"image")

    entry, lock = image._entry(cache, cache / name, build)
    os.close(lock)
    then = time.time() - days_ago * DAY_S
    os.utime(entry, (then, then))


def removed(cache: Path) -> list[str]:
    return image.remove_unused(cache, time.time() - image.UNUSED_S)


def test_what_was_not_used_for_a_month_is_removed(cache: Path) -> None:
    use(cache, "root-old", 31)
    use(cache, "root-new", 29)
    use(cache, "packages-old", 400)
    (cache / "mine").mkdir()
    os.utime(cache / "mine", (0, 0))
    assert removed(cache) == ["packages-old", "root-old"]
    assert sorted(place.name for place in cache.iterdir()) == ["lock", "mine", "root-new"]


def test_what_is_in_use_stays(cache: Path) -> None:
    use(cache, "root-old", 31)
    _, lock = image._entry(cache, cache / "root-old", lambda _: pytest.fail("it is there"))
    os.utime(cache / "root-old", (0, 0))
    assert removed(cache) == []
    os.close(lock)
    assert removed(cache) == ["root-old"]


def test_use_is_noted(cache: Path) -> None:
    use(cache, "root-old", 31)
    _, lock = image._entry(cache, cache / "root-old", lambda _: pytest.fail("it is there"))
    os.close(lock)
    assert removed(cache) == []


def test_what_a_killed_build_or_removal_left_goes_too(cache: Path) -> None:
    for name in ("building-1", "building-2"):
        (cache / name / "tree").mkdir(parents=True)
        (cache / name / "tree/file").write_bytes(b"x")
        os.utime(cache / name, (0, 0))
    (cache / "building-new").mkdir()
    assert removed(cache) == ["building-1", "building-2"]
    assert sorted(place.name for place in cache.iterdir()) == ["building-new", "lock"]
