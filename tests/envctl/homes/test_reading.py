"""Reading a snapshot: folders, differences, files and their parts, archives; damage is told, never given."""

import io
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from typing import TypeVar

import pytest

from envctl.agent.tree import DIRECTORY, FILE, Chunk, Row, sort_key
from envctl.errors import HomeDamaged, Invalid, NoSuchThing
from envctl.homes import keys, reading
from envctl.homes.paths import path_of, text_of
from envctl.homes.store import HomeStore
from s3core.wrapper import Call, StoreWrapper
from tests.envctl.homes.making import CHUNK, ENVIRONMENT, Bucket, directory_row, file_row, link_row, make, save

T = TypeVar("T")
ODD = {
    "home/ann/naïve ключ.txt": b"unicode",
    "home/ann/100% sure.txt": b"percent",
    "home/ann/bad\udcff\udc80name": b"no UTF-8",
    "home/ann/new\nline": b"control",
    "home/ann/-rf": b"dash",
    "home/ann/back\\slash": b"backslash",
    "home/ann/a.b": b"before the folder by bytes",
    "home/ann/a/z": b"in the folder",
    "home/ann/empty": b"",
    "home/ann/big": bytes(range(200)) * 5,
    "home/ann/sparse": b"x" * CHUNK + bytes(7 * CHUNK) + b"y",
    "home/bob/other": b"other",
}


def saved(bucket: Bucket, *homes: object, **more: object) -> HomeStore:
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    for number, made in enumerate(homes):
        save(store, made, at=float(number))  # type: ignore[arg-type]  # homes are Made
    return store


def read(store: HomeStore, path: bytes, **more: int) -> bytes:
    return b"".join(store.open_file(ENVIRONMENT, 1, path, **more).pieces)


def test_every_folder_is_listed_by_pages_of_any_size() -> None:
    store = saved(Bucket(), make(ODD, extra=[link_row(b"home/ann/link", b"../bob/other")]))
    names = {name.encode("utf-8", "surrogateescape") for name in ODD} | {b"home/ann/link"}
    for folder in (b"", b"home", b"home/ann", b"home/bob", b"home/ann/a"):
        prefix = folder + b"/" if folder else b""
        expected = {name[len(prefix) :].split(b"/")[0] for name in names if name.startswith(prefix)}
        for limit in (1, 2, 3, 100):
            found: list[Row] = []
            after = b""
            while True:
                page = store.rows(ENVIRONMENT, 1, folder, after=after, limit=limit)
                found += page.rows
                assert len(page.rows) <= limit
                if not page.next:
                    break
                after = page.next
            assert [row.path[len(prefix) :] for row in found] == sorted(expected, key=sort_key), (folder, limit)
    for path in (b"home/nobody", b"home/ann/a/z/y"):
        with pytest.raises(NoSuchThing):
            store.rows(ENVIRONMENT, 1, path)
    with pytest.raises(Invalid):
        store.rows(ENVIRONMENT, 1, b"home/ann/big")


def test_files_are_read_whole_and_in_parts() -> None:
    store = saved(Bucket(), make(ODD))
    chance = random.Random(7)
    for name, content in ODD.items():
        path = name.encode("utf-8", "surrogateescape")
        assert read(store, path) == content
        for _ in range(20):
            begin = chance.randrange(len(content) + 1)
            length = chance.randrange(len(content) - begin + 1)
            assert read(store, path, offset=begin, length=length) == content[begin : begin + length]
        for offset, length in ((0, len(content) + 1), (len(content) + 1, 0), (-1, 1)):
            with pytest.raises(Invalid):
                store.open_file(ENVIRONMENT, 1, path, offset=offset, length=length)
    with pytest.raises(NoSuchThing):
        store.open_file(ENVIRONMENT, 1, b"home/ann/none")
    with pytest.raises(Invalid):
        store.open_file(ENVIRONMENT, 1, b"home/ann")


def test_a_hole_of_a_terabyte_costs_no_memory() -> None:
    made = make({"home/x": b"x"})
    row = next(row for row in made.rows if row.path == b"home/x")
    huge = 2**40
    hole = Chunk(bytes(32), bytes(32), 0, 0, huge)
    sparse = file_row(b"home/huge", [hole, *row.chunks])
    store = saved(Bucket(), make({"home/x": b"x"}, extra=[sparse]))
    assert read(store, b"home/huge", offset=huge - 2, length=3) == b"\0\0x"
    first = next(store.open_file(ENVIRONMENT, 1, b"home/huge").pieces)
    assert len(first) == reading.HOLE_BYTES


def test_a_hard_link_gives_the_content_of_its_first_name() -> None:
    link = Row(b"home/ann/zz", FILE, 0o644, 1, 1, b"", b"", 0, 7, link="home/ann/naïve ключ.txt".encode())
    store = saved(Bucket(), make({"home/ann/naïve ключ.txt": b"unicode"}, extra=[link]))
    assert read(store, b"home/ann/zz") == b"unicode"
    lost = saved(Bucket(), make({"home/a": b"a"}, extra=[link]))
    with pytest.raises(HomeDamaged, match="link"):
        lost.open_file(ENVIRONMENT, 1, b"home/ann/zz")


def test_what_differs_is_told_by_path_and_by_pages() -> None:
    before = {
        f"home/ann/{letter}{number}": f"{letter}{number}".encode() * 9 for letter in "abcdefgh" for number in range(9)
    }
    after = dict(before)
    after["home/ann/a0"] = b"changed"
    after["home/ann/new"] = b"new"
    del after["home/ann/h8"]
    older, newer = make(before), make(after, salt=b"other packs")
    touched = make(after, extra=[directory_row(b"home/ann", mtime_ns=5), directory_row(b"home", mode=0o700)])
    store = saved(Bucket(), older, newer, touched)
    expected = [("changed", b"home/ann/a0", True), ("removed", b"home/ann/h8", True), ("added", b"home/ann/new", True)]

    def changes(one: int, other: int, **more: object) -> list[tuple[str, bytes, bool]]:
        found: list[tuple[str, bytes, bool]] = []
        after_path = b""
        while True:
            page = store.difference(ENVIRONMENT, one, other, after=after_path, **more)  # type: ignore[arg-type]
            found += [(change.what, change.path, change.content) for change in page.changes]
            if not page.next:
                return found
            after_path = page.next

    for limit in (1, 2, 100):
        assert changes(1, 2, limit=limit) == expected
    assert changes(2, 2) == []
    # Other packs and a folder's time are no change; its mode is.
    assert changes(2, 3) == [("changed", b"home", False)]
    assert changes(1, 2, prefix=b"home/ann/new") == expected[2:]
    assert changes(1, 2, prefix=b"home/an") == []
    assert [what for what, _, _ in changes(2, 1)] == ["changed", "added", "removed"]
    everything = store.contents(ENVIRONMENT, 1, limit=1000)
    assert {change.path.decode() for change in everything.changes if change.after and change.after.type == FILE} == set(
        before
    )


def test_segments_that_both_have_are_not_read() -> None:
    bucket = Bucket()
    home = {f"home/{number:03}": b"%d" % number for number in range(60)}
    store = saved(bucket, make(home), make(home | {"home/999": b"new"}))
    reader = store.reader(ENVIRONMENT, 1), store.reader(ENVIRONMENT, 2)
    assert len(reading.difference(*reader, b"", b"", 100).changes) == 1
    assert max(one.segment.reads for one in reader) <= 2


def test_archives_hold_what_the_home_holds() -> None:
    link = Row(b"home/ann/zz", FILE, 0o644, 1, 1, b"", b"", 10**18, 5, link=b"home/ann/-rf")
    extra = [link_row(b"home/ann/link", b"../bob/other"), directory_row(b"home/ann/hollow"), link]
    store = saved(Bucket(), make(ODD | {"home/ann/-rf": b"dashy"}, extra=extra))
    files = {
        name: content for name, content in (ODD | {"home/ann/-rf": b"dashy"}).items() if name.startswith("home/ann/")
    }
    files["home/ann/zz"] = b"dashy"

    with zipfile.ZipFile(io.BytesIO(b"".join(store.zip_of(ENVIRONMENT, 1, b"home/ann")))) as archive:
        assert archive.testzip() is None
        shown = {
            text_of(name.encode("utf-8", "surrogateescape"))[len("home/") :].replace("\\", "%5C"): content
            for name, content in files.items()
        }
        plain = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        assert {name: archive.read(name) for name in plain if name != "ann/link"} == shown
        assert archive.read("ann/link") == b"../bob/other"
        assert {info.filename for info in archive.infolist() if info.is_dir()} == {"ann/", "ann/a/", "ann/hollow/"}
        assert plain["ann/big"].external_attr >> 16 == 0o100644
    data = b"".join(store.tar_of(ENVIRONMENT, 1, b"home/ann"))
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        members = {member.name: member for member in tar.getmembers()}
        regular = {"home/" + name: tar.extractfile(member) for name, member in members.items() if member.isreg()}
        assert {name: opened.read() if opened else None for name, opened in regular.items()} == files
        assert (members["ann/link"].linkname, members["ann/big"].uname, members["ann/big"].uid) == (
            "../bob/other",
            "ann",
            1000,
        )
    one = zipfile.ZipFile(io.BytesIO(b"".join(store.zip_of(ENVIRONMENT, 1, b"home/ann/big"))))
    assert one.namelist() == ["big"]
    for make_archive in (store.zip_of, store.tar_of):
        with pytest.raises(NoSuchThing):
            make_archive(ENVIRONMENT, 1, b"home/none")


@pytest.mark.parametrize("path", [b"home/../../etc/passwd", b"home//x", b"/etc/passwd", b"home/./x"])
def test_a_path_that_would_leave_the_folder_is_never_in_an_archive(path: bytes) -> None:
    """A guest may say what it likes of its own home; who unpacks it is on another machine."""
    rows = [directory_row(b"home"), file_row(path, [])]
    store = saved(Bucket(), make({}, extra=sorted(rows, key=lambda row: sort_key(row.path))))
    for make_archive in (store.zip_of, store.tar_of):
        with pytest.raises(HomeDamaged):
            b"".join(make_archive(ENVIRONMENT, 1, b""))


def test_damage_is_told_with_the_object_and_never_given() -> None:
    made = make({"home/a": b"content" * 5})
    pack = keys.content(ENVIRONMENT, keys.pack(made.packs[0]))
    tree = keys.content(ENVIRONMENT, keys.tree(made.trees[0]))
    for key in (pack, tree):
        for damage in (
            lambda data: data[:12] + bytes([data[12] ^ 1]) + data[13:],
            lambda data: data[:20],
            lambda data: None,
        ):
            bucket = Bucket()
            store = saved(bucket, made)
            data = damage(bucket.objects.get(key).data)
            bucket.objects.delete(key)
            if data is not None:
                bucket.damage(key, data)
            with pytest.raises(HomeDamaged) as told:
                read(store, b"home/a")
            assert key.rpartition("/")[2] in str(told.value)


def test_small_files_of_one_pack_are_read_at_once() -> None:
    bucket = Bucket()
    saved(bucket, make({f"home/{number:03}": os.urandom(30) for number in range(40)}, packs_of=40))
    fetched: list[str] = []

    class Counting(StoreWrapper):
        def _perform(self, call: Call, action: Callable[[], T]) -> T:
            fetched.extend([call.operation] * (call.operation == "get_range"))
            return action()

    store = bucket.store(Counting(bucket.objects))
    b"".join(store.tar_of(ENVIRONMENT, 1, b"home"))
    assert len(fetched) == 1


def test_every_path_has_one_text_and_every_text_one_path() -> None:
    for name in ODD:
        path = name.encode("utf-8", "surrogateescape")
        text = text_of(path)
        assert text.isprintable()
        text.encode()
        assert path_of(text) == path
        assert path_of("/" + text + "/") == path
    assert text_of("home/naïve ключ 🔑".encode()) == "home/naïve ключ 🔑"
    for wrong in ("a/../b", "..", "a//b", "./a", "a%00b", "a%2F..%2Fb", "x" * 256, "\udcff"):
        with pytest.raises(Invalid):
            path_of(wrong)
    assert path_of("/") == path_of("") == b""
    assert {DIRECTORY, FILE} == {"d", "f"}
