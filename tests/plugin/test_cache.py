"""The cache: whole files of known versions, within its bound; what is in use stays, and a crash costs a download."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.cache import Cache, NoRoom, open_files

ISO = "template/iso/a.iso"


def writes(data: bytes) -> Callable[[Path], None]:
    def download(path: Path) -> None:
        path.write_bytes(data)

    return download


def refuses(path: Path) -> None:
    raise AssertionError(f"{path} is downloaded again")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", bytes_max=100, now=lambda: 1000.0)


def test_a_file_is_fetched_once(cache: Cache) -> None:
    path = cache.fetch(ISO, "e1", 3, writes(b"one"))
    assert path == cache.root / ISO
    assert path.read_bytes() == b"one"
    assert cache.fetch(ISO, "e1", 3, refuses) == path
    held = cache.held(ISO)
    assert held is not None
    assert (held.etag, held.leased) == ("e1", 1900.0)
    assert [one.name for one in cache.files()] == [ISO]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_longest_names(cache: Cache) -> None:
    name = f"template/iso/{'x' * 251}.iso"
    path = cache.fetch(name, "e1", 3, writes(b"one"))
    assert cache.fetch(name, "e1", 3, refuses) == path
    assert cache.use(name) == path
    assert [one.name for one in cache.files()] == [name]
    assert cache.drop(name)


def test_a_new_version_replaces_it_and_leaves_the_old_one_to_its_readers(cache: Cache) -> None:
    with cache.fetch(ISO, "e1", 3, writes(b"one")).open("rb") as reader:
        cache.fetch(ISO, "e2", 3, writes(b"two"))
        assert reader.read() == b"one"
    assert (cache.root / ISO).read_bytes() == b"two"


def test_a_download_that_fails_changes_nothing(cache: Cache) -> None:
    def dies(path: Path) -> None:
        path.write_bytes(b"t")
        raise OSError("cut")

    cache.fetch(ISO, "e1", 3, writes(b"one"))
    with pytest.raises(OSError, match="cut"):
        cache.fetch(ISO, "e2", 3, dies)
    with pytest.raises(OSError, match="1 bytes came, not 3"):
        cache.fetch(ISO, "e2", 3, writes(b"t"))
    held = cache.held(ISO)
    assert held is not None
    assert held.etag == "e1"


def test_a_crash_between_note_and_rename_is_a_file_of_an_unknown_version(cache: Cache) -> None:
    cache.fetch(ISO, "e1", 3, writes(b"one"))
    note = cache.root / ".versions" / ISO
    told = json.loads(note.read_text())
    note.write_text(json.dumps(told | {"etag": "e2", "inode": told["inode"] + 1}))
    held = cache.held(ISO)
    assert held is not None
    assert held.etag == ""
    assert cache.use(ISO) == cache.root / ISO
    cache.fetch(ISO, "e2", 3, writes(b"two"))
    assert (cache.root / ISO).read_bytes() == b"two"


@pytest.mark.parametrize("harm", ["missing", "torn", "file changed"])
def test_a_version_that_cannot_be_known_is_not_believed(cache: Cache, harm: str) -> None:
    path = cache.fetch(ISO, "e1", 3, writes(b"one"))
    note = cache.root / ".versions" / ISO
    if harm == "missing":
        note.unlink()
    elif harm == "torn":
        note.write_text('{"etag":')
    else:
        path.write_bytes(b"else")
    held = cache.held(ISO)
    assert held is not None
    assert held.etag == ""
    assert cache.fetch(ISO, "e1", 3, writes(b"new")).read_bytes() == b"new"


def test_the_least_used_goes_first_and_the_bound_holds(tmp_path: Path) -> None:
    now = [0.0]
    cache = Cache(tmp_path, bytes_max=100, now=lambda: now[0])
    for name in "abc":
        now[0] += 10_000
        cache.fetch(f"template/iso/{name}.iso", "e", 30, writes(b"x" * 30))
    now[0] += 10_000
    assert cache.use("template/iso/a.iso") is not None
    now[0] += 10_000
    cache.fetch("template/iso/d.iso", "e", 40, writes(b"x" * 40))
    assert sorted(one.name for one in cache.files()) == [f"template/iso/{name}.iso" for name in "acd"]


def test_what_is_leased_or_open_stays(tmp_path: Path) -> None:
    now = [0.0]
    cache = Cache(tmp_path, bytes_max=60, now=lambda: now[0])
    one = cache.fetch("import/one.raw", "e", 30, writes(b"x" * 30))
    cache.fetch("import/two.raw", "e", 30, writes(b"x" * 30))
    with pytest.raises(NoRoom, match="raise cache_bytes"):
        cache.fetch("import/three.raw", "e", 30, refuses)
    now[0] += 10_000
    with one.open("rb"):
        cache.fetch("import/three.raw", "e", 30, writes(b"x" * 30))
        assert sorted(held.name for held in cache.files()) == ["import/one.raw", "import/three.raw"]


def test_snippets_stay_and_run(tmp_path: Path) -> None:
    now = [0.0]
    cache = Cache(tmp_path, bytes_max=10, now=lambda: now[0])
    hook = cache.fetch("snippets/hook.sh", "e", 50, writes(b"#" * 50))
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755
    now[0] += 10_000
    cache.fetch(ISO, "e", 10, writes(b"x" * 10))
    now[0] += 10_000
    cache.fetch("template/iso/b.iso", "e", 10, writes(b"x" * 10))
    assert sorted(held.name for held in cache.files()) == ["snippets/hook.sh", "template/iso/b.iso"]


def test_what_the_bucket_lost_goes(cache: Cache) -> None:
    path = cache.fetch(ISO, "e1", 3, writes(b"one"))
    cache.fetch("import/b.raw", "e1", 3, writes(b"one"))
    with path.open("rb"):
        assert cache.keep_only({"import/b.raw"}) == [ISO]
    assert not path.exists()
    assert cache.use(ISO) is None


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".versions/x", "a/\0"])
def test_a_name_does_not_lead_out(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        cache.path(name)


def test_open_files_are_found(tmp_path: Path) -> None:
    one, two = tmp_path / "one.iso", tmp_path / "two.iso"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    block = tmp_path / "block"
    (block / "loop0" / "loop").mkdir(parents=True)
    with one.open("rb"):
        assert open_files([one, two, tmp_path / "none"], block=block) == {one}
    (block / "loop0" / "loop" / "backing_file").write_text(f"{two}\n")
    assert open_files([one, two], block=block) == {two}
