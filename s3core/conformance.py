"""The suite every store passes, wrapped or bare: what `store.ObjectStore` promises, as tests.

Derive a class from `StoreConformance` in a test module and give it a fixture `make_store` that returns a
callable; each call of it gives an empty store of the caller's own:

    class TestMemory(StoreConformance):
        @pytest.fixture
        def make_store(self):
            return MemoryStore

One rule: a store may leave out only what its `properties` say it does; nothing here knows an adapter's name.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from s3core.errors import Corrupt, NotFound, OutcomeUnknown, PreconditionFailed, StoreError
from s3core.keys import KEY_BYTES_MAX
from s3core.store import Buffer, MultipartUpload, ObjectStore

MakeStore = Callable[[], ObjectStore]
MIB = 1024 * 1024

ODD_KEYS = (
    "!",
    "%",
    "%2F",
    "%41",
    "+",
    "+=",
    "..",
    "...",
    "A",
    "A=",
    "a",
    "a b",
    "a+b",
    "a-b",
    "a.",
    "a/",
    "a/.b",
    "a/b",
    "a/b/c",
    "a/b/c=",
    "a0",
    "a=b&c?d#e",
    "a~",
    "k" * 79,
    "k" * 80,
    "k" * 80 + "/z",
    "k" * 81,
    "k" * 160,
    "k" * 160 + "-",
    "k" * 255 + "/" + "l" * 255 + "/" + "m" * 188,
    "quote\"'<>&",
    "z/\u00e4",
    "z/\u00e4/\u00f6",
    "z/\u20ac",
    "z/\ue000",
    "z/\U0001f4be",
    "\u00e4" * 79 + "x",
    "\u65e5\u672c",
)
"""Keys that trip stores which confuse keys with paths, URLs, forms or UTF-16. U+E000 sorts before U+1F4BE in UTF-8
and after it in UTF-16."""


@contextlib.contextmanager
def refused(*kinds: type[Exception]) -> Iterator[None]:
    """The block must raise one of `kinds`; anything else is a failed test."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing was raised; expected {' or '.join(kind.__name__ for kind in kinds)}")


def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after)]


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes in which every place tells where it is."""
    block = b"".join((seed + at).to_bytes(8, "big") for at in range(0, min(length, 65536), 8))
    return (block * (length // max(len(block), 1) + 1))[:length]


def _create(store: ObjectStore, key: str, racer: int) -> str:
    return store.put_if_absent(key, b"racer %d" % racer)


def _replace(store: ObjectStore, key: str, etag: str, racer: int) -> str:
    # With the old version's name in it no content, and so no ETag, comes twice.
    return store.put_if_match(key, b"racer %d after %s" % (racer, etag.encode()), etag)


class StoreConformance:
    racers = 8
    race_rounds = 5
    page_keys = 1000
    """How many keys a page of the store's listing has at most: one test lists more than that."""
    key_bytes_max = KEY_BYTES_MAX
    """Less only for a part of another store, whose prefix takes its share of the length."""

    # One object

    def test_put_then_get(self, make_store: MakeStore) -> None:
        store = make_store()
        etag = store.put("folder/object", b"content")
        body = store.get("folder/object")
        assert body.data == b"content"
        assert type(body.data) is bytes
        assert body.etag == etag
        assert etag
        assert not etag.startswith('"')

    def test_put_replaces(self, make_store: MakeStore) -> None:
        store = make_store()
        first = store.put("k", b"first, and longer", metadata={"a": "1"})
        second = store.put("k", b"second")
        assert store.get("k").data == b"second"
        assert first != second
        assert store.head("k").metadata == {}
        assert keys(store) == ["k"]

    def test_etag_changes_with_content_of_the_same_length(self, make_store: MakeStore) -> None:
        store = make_store()
        etags = [store.put("k", b"%04d" % number) for number in range(20)]
        assert len(set(etags)) == 20

    def test_empty_object(self, make_store: MakeStore) -> None:
        store = make_store()
        etag = store.put("empty", b"")
        assert store.get("empty").data == b""
        assert store.head("empty").size == 0
        assert [(info.key, info.size, info.etag) for info in store.list()] == [("empty", 0, etag)]
        with refused(Corrupt):
            store.get_range("empty", 0, 1)

    def test_large_object(self, make_store: MakeStore) -> None:
        store = make_store()
        data = pattern(8 * MIB + 5)
        store.put("large", data)
        assert store.get("large").data == data
        assert store.get_range("large", 8 * MIB, 5).data == data[-5:]

    def test_body_may_be_any_buffer_or_a_sequence_of_them(self, make_store: MakeStore) -> None:
        store = make_store()
        source = bytearray(b"0123456789")
        view = memoryview(source)
        bodies: tuple[Buffer | Sequence[Buffer], ...] = (
            bytes(source),
            source,
            view,
            [b"01234", view[5:]],
            (b"", source[:3], view[3:9], b"9"),
        )
        for number, body in enumerate(bodies):
            store.put(f"k{number}", body)
            assert store.get(f"k{number}").data == b"0123456789"
        store.put("many", [b"%03d" % number for number in range(1000)])
        assert store.get("many").data[-6:] == b"998999"
        assert store.get("many").etag == store.put("one", b"".join(b"%03d" % number for number in range(1000)))
        store.put("none", [])
        assert store.get("none").data == b""
        store.put("wide", memoryview(bytes(8)).cast("Q"))
        assert store.head("wide").size == 8

    def test_put_keeps_what_it_was_given(self, make_store: MakeStore) -> None:
        store = make_store()
        buffer = bytearray(b"before")
        store.put("k", buffer)
        buffer[:] = b"after!"
        assert store.get("k").data == b"before"

    def test_missing_object(self, make_store: MakeStore) -> None:
        store = make_store()
        store.put("a/b", b"x")
        for key in ("nothing", "a", "a/", "a/b/c"):
            for ask in (store.get, store.head):
                with refused(NotFound):
                    ask(key)
            with refused(NotFound):
                store.get_range(key, 0, 1)

    def test_keys_that_no_store_takes(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("", "/a", "k" * 901, "\u00e4" * 451, "lone \ud800"):
            with refused(ValueError):
                store.put(key, b"")
            with refused(ValueError):
                store.get(key)
        assert keys(store) == []

    def test_longest_key(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("k" * self.key_bytes_max, "a/" * (self.key_bytes_max // 2), "\u00e4" * (self.key_bytes_max // 2)):
            store.put(key, b"x")
            assert store.get(key).data == b"x"
            assert keys(store) == [key]
            store.delete(key)

    # Metadata

    def test_metadata_comes_back(self, make_store: MakeStore) -> None:
        store = make_store()
        metadata = {"format": "1", "created-by": "a tool, version 1.0; x=y", "empty": ""}
        store.put("k", b"x", metadata=metadata)
        assert store.head("k").metadata == metadata
        etag = store.put_if_absent("l", b"x", metadata={"n": "1"})
        assert store.head("l").metadata == {"n": "1"}
        if store.properties.if_match:
            store.put_if_match("l", b"y", etag, metadata={"n": "2"})
            assert store.head("l").metadata == {"n": "2"}
        store.put("long", b"x", metadata={"v": "0" * 1800})
        assert store.head("long").metadata == {"v": "0" * 1800}

    def test_metadata_that_would_not_come_back(self, make_store: MakeStore) -> None:
        store = make_store()
        for metadata in ({"Upper": "x"}, {"k": "\u00e4"}, {"k": "a\nb"}, {"k": " x"}, {"": "x"}, {"k": "x" * 2100}):
            with refused(ValueError):
                store.put("k", b"x", metadata=metadata)
        assert keys(store) == []

    def test_head_and_list_agree(self, make_store: MakeStore) -> None:
        store = make_store()
        etag = store.put("k", b"12345")
        head, (listed,) = store.head("k"), list(store.list())
        assert (head.key, head.size, head.etag) == ("k", 5, etag)
        assert (listed.key, listed.size, listed.etag, listed.metadata) == ("k", 5, etag, {})
        assert abs(head.modified - listed.modified) <= 1  # HTTP dates have whole seconds

    # Ranges

    def test_ranges(self, make_store: MakeStore) -> None:
        store = make_store()
        data = pattern(100_000)
        etag = store.put("k", data)
        for offset, length in ((0, 1), (0, 100_000), (99_999, 1), (1, 99_999), (4096, 4096), (65_535, 2)):
            body = store.get_range("k", offset, length)
            assert body.data == data[offset : offset + length]
            assert body.etag == etag

    def test_range_beyond_the_end_is_corrupt(self, make_store: MakeStore) -> None:
        store = make_store()
        store.put("k", b"0123456789")
        for offset, length in ((0, 11), (9, 2), (10, 1), (5, 100), (1000, 1)):
            with refused(Corrupt):
                store.get_range("k", offset, length)

    def test_range_that_is_none(self, make_store: MakeStore) -> None:
        store = make_store()
        store.put("k", b"0123456789")
        for offset, length in ((0, 0), (-1, 1), (0, -1)):
            with refused(ValueError):
                store.get_range("k", offset, length)

    # Conditions

    def test_put_if_absent(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.if_none_match:
            return
        etag = store.put_if_absent("k", b"first")
        with refused(PreconditionFailed):
            store.put_if_absent("k", b"second")
        with refused(PreconditionFailed):
            store.put_if_absent("k", b"first")
        body = store.get("k")
        assert (body.data, body.etag) == (b"first", etag)
        store.delete("k")
        store.put_if_absent("k", b"third")
        assert store.get("k").data == b"third"

    def test_put_if_match(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.if_match:
            return
        first = store.put("k", b"first")
        second = store.put_if_match("k", b"second", first)
        with refused(PreconditionFailed):
            store.put_if_match("k", b"third", first)
        assert store.get("k").data == b"second"
        assert store.get("k").etag == second
        with refused(PreconditionFailed, NotFound):
            store.put_if_match("absent", b"x", first)
        store.delete("k")
        with refused(PreconditionFailed, NotFound):
            store.put_if_match("k", b"x", second)
        assert keys(store) == []

    def test_racing_creations_have_one_winner(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.if_none_match:
            return
        for number in range(self.race_rounds):
            key = f"race/{number}"
            outcomes = self._race(partial(_create, store, key))
            winners = [racer for racer, outcome in outcomes.items() if isinstance(outcome, str)]
            unknown = [racer for racer, outcome in outcomes.items() if isinstance(outcome, OutcomeUnknown)]
            held = int(store.get(key).data.split()[1])
            assert winners == [held] or (not winners and held in unknown), outcomes

    def test_racing_replacements_have_one_winner(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.if_match:
            return
        etag = store.put("k", b"racer -1")
        for _ in range(self.race_rounds):
            before = etag
            outcomes = self._race(partial(_replace, store, "k", etag))
            winners = [racer for racer, outcome in outcomes.items() if isinstance(outcome, str)]
            unknown = [racer for racer, outcome in outcomes.items() if isinstance(outcome, OutcomeUnknown)]
            body = store.get("k")
            held, etag = int(body.data.split()[1]), body.etag
            assert etag != before
            assert winners == [held] or (not winners and held in unknown), outcomes

    def test_no_update_is_lost(self, make_store: MakeStore) -> None:
        """Several writers append to one object by compare-and-swap; everybody's words must be in it."""
        store = make_store()
        if not store.properties.if_match:
            return
        store.put("k", b"")
        rounds = 5

        def writer(racer: int) -> str:
            for number in range(rounds):
                word = b"%d.%d " % (racer, number)
                while True:
                    body = store.get("k")
                    if word in body.data:
                        break  # an attempt whose outcome was unknown had been applied
                    with contextlib.suppress(PreconditionFailed, StoreError):
                        store.put_if_match("k", body.data + word, body.etag)
            return ""

        outcomes = self._race(writer, racers=4)
        assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)], outcomes
        words = store.get("k").data.split()
        assert sorted(words) == sorted(b"%d.%d" % (racer, number) for racer in range(4) for number in range(rounds))

    def test_replacing_is_atomic_for_readers(self, make_store: MakeStore) -> None:
        store = make_store()
        bodies = [bytes([48 + number]) * (1000 + number) for number in range(4)]
        store.put("k", bodies[0])
        done = threading.Event()
        seen: list[bytes] = []

        def reader() -> None:
            while not done.is_set():
                seen.append(store.get("k").data)

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(reader) for _ in range(2)]
            for number in range(20):
                store.put("k", bodies[number % 4])
            done.set()
        assert not [future for future in readers if future.exception()]
        assert set(seen) <= set(bodies)

    # Listing

    def test_list_is_in_order_of_utf8(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in reversed(ODD_KEYS):
            store.put(key, key.encode())
        assert keys(store) == sorted(ODD_KEYS, key=str.encode)
        for key in ODD_KEYS:
            assert store.get(key).data == key.encode(), key
            assert store.head(key).size == len(key.encode()), key

    def test_list_by_prefix(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ODD_KEYS:
            store.put(key, b"")
        for prefix in (
            "a",
            "a/",
            "a/b",
            "k" * 80,
            "k" * 100,
            "z/",
            "z/\u00e4",
            "%",
            ".",
            "nothing",
            "a/b/c/d/",
            "\U0001f4be",
        ):
            expected = sorted((key for key in ODD_KEYS if key.startswith(prefix)), key=str.encode)
            assert keys(store, prefix) == expected, prefix

    def test_list_after_a_key(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ODD_KEYS:
            store.put(key, b"")
        ordered = sorted(ODD_KEYS, key=str.encode)
        for after in (*ordered[::3], "a/a", "a/zzz", "b", "k" * 85, "zz", "\U0010ffff"):
            expected = [key for key in ordered if key.encode() > after.encode()]
            assert keys(store, start_after=after) == expected, after
        assert keys(store, "a/", "a/b") == ["a/b/c", "a/b/c="]
        assert keys(store, "a/", "b") == []
        assert keys(store, "a/b", "A") == ["a/b", "a/b/c", "a/b/c="]

    def test_list_more_than_a_page(self, make_store: MakeStore) -> None:
        store = make_store()
        names = [f"page/{number:05d}" for number in range(self.page_keys + 3)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.put(name, b""), names))
        assert keys(store) == names
        assert keys(store, start_after=names[-2]) == names[-1:]
        assert store.delete_many(names) == {}
        assert keys(store) == []

    def test_list_goes_on_while_keys_come_and_go(self, make_store: MakeStore) -> None:
        store = make_store()
        names = [f"n/{number:02d}" for number in range(10)]
        for name in names:
            store.put(name, b"")
        listing = store.list()
        assert next(listing).key == names[0]
        store.delete(names[5])
        store.put("n/99", b"")
        rest = [info.key for info in listing]
        assert [key for key in rest if key not in (names[5], "n/99")] == [*names[1:5], *names[6:]]

    def test_list_of_nothing(self, make_store: MakeStore) -> None:
        store = make_store()
        assert keys(store) == []
        assert list(store.list_prefixes()) == []

    def test_list_prefixes(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ("a", "a/b", "a/c/d", "a-b/c", "b/c", "b0/d", "k" * 100 + "/x", "z-1-2", "z-3"):
            store.put(key, b"")
        assert list(store.list_prefixes()) == ["a-b/", "a/", "b/", "b0/", "k" * 100 + "/"]
        assert list(store.list_prefixes("a/")) == ["a/c/"]
        assert list(store.list_prefixes("b")) == ["b/", "b0/"]
        assert list(store.list_prefixes("k" * 90)) == ["k" * 100 + "/"]
        assert list(store.list_prefixes("nothing/")) == []
        assert list(store.list_prefixes("z-", delimiter="-")) == ["z-1-"]
        assert list(store.list_prefixes(delimiter="-")) == ["a-", "z-"]
        store.delete_many(["a/b", "a/c/d"])
        assert list(store.list_prefixes()) == ["a-b/", "b/", "b0/", "k" * 100 + "/"]
        with refused(ValueError):
            list(store.list_prefixes(delimiter=""))

    # Removing and copying

    def test_delete(self, make_store: MakeStore) -> None:
        store = make_store()
        store.put("a/b", b"x")
        store.put("a", b"y")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/there")
        assert keys(store) == ["a"]
        with refused(NotFound):
            store.get("a/b")
        store.put("a/b", b"again")
        assert store.get("a/b").data == b"again"

    def test_delete_many(self, make_store: MakeStore) -> None:
        store = make_store()
        for key in ODD_KEYS:
            store.put(key, b"")
        kept = ODD_KEYS[::5]
        gone = [key for key in ODD_KEYS if key not in kept]
        assert store.delete_many([*gone, "never there", "no/such/folder"]) == {}
        assert keys(store) == sorted(kept, key=str.encode)
        assert store.delete_many(iter(kept)) == {}
        assert store.delete_many([]) == {}
        assert keys(store) == []

    def test_copy(self, make_store: MakeStore) -> None:
        store = make_store()
        store.put("from/a", pattern(5000), metadata={"m": "1"})
        etag = store.copy("from/a", "to/b")
        body = store.get("to/b")
        assert body.data == pattern(5000)
        assert body.etag == etag
        assert store.head("to/b").metadata == {"m": "1"}
        store.put("to/c", b"old")
        store.copy("from/a", "to/c")
        assert store.get("to/c").data == pattern(5000)
        store.put("from/a", b"new")
        assert store.get("to/b").data == pattern(5000)
        with refused(NotFound):
            store.copy("nothing", "to/d")
        assert keys(store) == ["from/a", "to/b", "to/c"]

    # Uploads in parts

    def test_multipart(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.multipart:
            return
        size = store.properties.part_bytes_min
        first, second, last = pattern(size, 1), pattern(size, 2), b"the end"
        upload = store.multipart("parts/k", metadata={"m": "1"})
        with ThreadPoolExecutor(3) as pool:
            for future in [
                pool.submit(upload.part, *part) for part in ((7, last), (3, [second[:1], second[1:]]), (1, b"no"))
            ]:
                future.result()
        upload.part(1, memoryview(first))
        assert keys(store) == []
        with refused(NotFound):
            store.head("parts/k")
        etag = upload.complete()
        assert store.get("parts/k").data == first + second + last
        head = store.head("parts/k")
        assert (head.size, head.etag, head.metadata) == (2 * size + len(last), etag, {"m": "1"})
        assert store.get_range("parts/k", 2 * size - 1, 2).data == second[-1:] + b"t"
        if store.properties.if_match:
            store.put_if_match("parts/k", b"replaced", etag)

    def test_multipart_of_one_part_replaces(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.multipart:
            return
        store.put("k", b"old")
        upload = store.multipart("k")
        upload.part(1, b"new")
        assert store.get("k").data == b"old"
        upload.complete()
        assert store.get("k").data == b"new"

    def test_multipart_abort(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.multipart:
            return
        upload = store.multipart("k")
        upload.part(1, b"never seen")
        upload.abort()
        upload.abort()
        assert keys(store) == []
        with refused(NotFound):
            upload.complete()

    def test_multipart_that_cannot_be(self, make_store: MakeStore) -> None:
        store = make_store()
        if not store.properties.multipart:
            return
        upload: MultipartUpload = store.multipart("k")
        for number in (0, -1, 10_001):
            with refused(ValueError):
                upload.part(number, b"")
        with refused(ValueError):
            upload.complete()
        upload.abort()
        with refused(ValueError):
            store.multipart("/k")

    # The store itself

    def test_url_and_properties(self, make_store: MakeStore) -> None:
        store = make_store()
        assert isinstance(store, ObjectStore)
        assert store.url.startswith(store.properties.scheme + ":")
        assert store.properties.part_bytes_min > 0
        store.close()

    def _race(self, act: Callable[[int], str], racers: int = 0) -> dict[int, str | Exception]:
        """What `act` gave each racer, all started at once."""
        racers = racers or self.racers
        barrier = threading.Barrier(racers)

        def run(racer: int) -> str | Exception:
            barrier.wait()
            try:
                return act(racer)
            except StoreError as error:
                return error

        with ThreadPoolExecutor(racers) as pool:
            return dict(enumerate(pool.map(run, range(racers))))
