"""The suite every bucket passes, wrapped or bare: what `bucket.Bucket` promises, as tests.

Derive a class from `BucketConformance` in a test module and give it a fixture `make_bucket` that returns a callable;
each call of it gives an empty bucket of the caller's own, all of them on one endpoint where that can copy.

One rule: a server may differ only where the class's `differences` says so, by name and with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from typing import ClassVar

from s3core.bucket import Attributes, Bucket, CopySource
from s3core.conformance import MIB, pattern, refused
from s3core.errors import Corrupt, NotFound, PreconditionFailed, StoreError, Unsupported
from s3core.store import Buffer

MakeBucket = Callable[[], Bucket]

ODD_KEYS = (
    "!",
    "%",
    "%2F",
    "%41",
    "'apostrophe'",
    "+",
    "/",
    "/leading",
    "//two",
    "a b",
    "a&b<c>\"d'",
    "a+b",
    "a//b",
    "a/",
    "a/./b/../c",
    "a/b",
    "a=b&c?d#e",
    "a~",
    "control\x01\x1f\x7f",
    "cr\rx",
    "k" * 1024,
    "line\nfeed",
    "tab\t",
    "trailing ",
    "z/\u00e4",
    "z/\u00e4\u0301",
    "z/\ue000",
    "z/\U0001f4be",
    "\u00e4" * 512,
    "\u65e5\u672c",
)
"""Keys as others write them. U+E000 sorts before U+1F4BE in UTF-8 and after it in UTF-16."""

RICH = Attributes(
    headers={
        "content-type": "text/plain; charset=utf-8",
        "cache-control": "max-age=60",
        "content-disposition": 'attachment; filename="a  b\u00a0\u00e4.txt"',
        "content-encoding": "gzip",
        "content-language": "de, en",
        "expires": "Wed, 21 Oct 2026 07:28:00 GMT",
    },
    metadata={
        "mtime": "1700000000.123",
        "a-b.c": "x=y; z",
        "umlaut": "gr\u00fc\u00dfe \u65e5\u672c \U0001f4be",
        "word": "=?UTF-8?B?w6Q=?=",
    },
    tags={"project": "a/b", "owner name": "x+y=z"},
)


class BucketConformance:
    differences: ClassVar[Mapping[str, str]] = {}
    """What this server does otherwise, and why; the names are those the tests below ask for."""

    # Objects

    def test_put_get_head_and_list_agree(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        written = bucket.put("folder/object", b"content")
        assert written.etag == md5(b"content").hexdigest()
        assert (written.version_id not in ("", "null")) == bucket.properties.versioned
        assert bucket.get("folder/object") == b"content"
        facts = bucket.head("folder/object")
        assert (facts.key, facts.size, facts.etag, facts.version_id) == (
            "folder/object",
            7,
            written.etag,
            written.version_id,
        )
        assert (facts.parts, facts.tag_count) == (0, 0)
        page = bucket.list_page()
        assert (page.keys, page.sizes, page.etags) == ([b"folder/object"], [7], [written.etag.encode()])
        assert (page.prefixes, page.truncated, page.token) == ([], False, "")
        assert page.last == b"folder/object"
        assert page.modified[0].startswith(b"20")

    def test_bodies(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bodies: tuple[tuple[Buffer | Sequence[Buffer], bytes], ...] = (
            (b"", b""),
            (bytearray(b"0123"), b"0123"),
            (memoryview(b"0123"), b"0123"),
            ([b"01", b"", memoryview(b"23")], b"0123"),
            ([], b""),
        )
        for number, (body, whole) in enumerate(bodies):
            assert bucket.put(f"k{number}", body).etag == md5(whole).hexdigest()
            assert bucket.get(f"k{number}") == whole
            assert bucket.head(f"k{number}").size == len(whole)

    def test_missing(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("a/b", b"x")
        for key in ("nothing", "a", "a/", "a/b/c", "/a/b"):
            with refused(NotFound):
                bucket.get(key)
            with refused(NotFound):
                bucket.head(key)
            with refused(NotFound):
                bucket.tags(key)
        assert bucket.list_page(prefix="b").keys == []
        assert bucket.list_page(prefix="b").last == b""

    def test_odd_keys(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        known = [key for key in ODD_KEYS if key not in self.differences]
        for key in known:
            bucket.put(key, key.encode(), attributes=Attributes(tags={"k": "v"}))
        page = bucket.list_page()
        assert page.keys == sorted(map(str.encode, known))
        for key in known:
            assert bucket.get(key) == key.encode(), key
            assert bucket.head(key).key == key
            assert bucket.tags(key) == {"k": "v"}, key
            assert bucket.list_page(prefix=key, max_keys=1).keys == [key.encode()], key
            following = [other for other in page.keys if other > key.encode()][:1]
            assert bucket.list_page(start_after=key, max_keys=1).keys == following, key
            bucket.copy(CopySource(bucket.properties.name, key), "\U0010ffff")
            assert bucket.get("\U0010ffff") == key.encode(), key
            bucket.delete("\U0010ffff")
        for key in known:
            bucket.delete(key)
        assert bucket.list_page().keys == []

    def test_arguments_that_no_server_takes(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        for key in ("", "k" * 1025, "\u00e4" * 513, "lone \ud800"):
            for ask in (bucket.get, bucket.head, bucket.tags, bucket.delete, bucket.begin_upload):
                with refused(ValueError):
                    ask(key)
            with refused(ValueError):
                bucket.put(key, b"")
        for attributes in (
            Attributes(headers={"x-other": "1"}),
            Attributes(headers={"content-type": "a\nb"}),
            Attributes(metadata={"Upper": "x"}),
            Attributes(metadata={"a b": "x"}),
            Attributes(metadata={"a": "\ud800"}),
            Attributes(tags={str(number): "x" for number in range(11)}),
            Attributes(tags={"": "x"}),
            Attributes(tags={"k": "v" * 257}),
        ):
            with refused(ValueError):
                bucket.put("k", b"", attributes=attributes)
        for max_keys in (0, 1001, -1):
            with refused(ValueError):
                bucket.list_page(max_keys=max_keys)
            with refused(ValueError):
                bucket.list_versions(max_keys=max_keys)
        for offset, length in ((-1, 1), (0, 0), (0, -2)):
            with refused(ValueError):
                bucket.get("k", offset=offset, length=length)
        for number in (0, 10_001):
            with refused(ValueError):
                bucket.upload_part("k", "u", number, b"")
        for parts in ([], [(2, "a"), (1, "b")], [(1, "a"), (1, "b")]):
            with refused(ValueError):
                bucket.complete_upload("k", "u", parts)
        assert bucket.list_page().keys == []

    # Attributes

    def test_attributes_come_back(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("plain", b"x")
        assert bucket.head("plain").attributes.metadata == {}
        assert bucket.tags("plain") == {}
        bucket.put("rich", b"x", attributes=RICH)
        self._check_rich(bucket, "rich")
        bucket.put("rich", b"x")
        assert bucket.head("rich").attributes.metadata == {}
        assert bucket.tags("rich") == {}

    def test_a_copy_keeps_attributes_or_takes_others(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        name = bucket.properties.name
        bucket.put("rich", b"x", attributes=RICH)
        bucket.copy(CopySource(name, "rich"), "kept")
        self._check_rich(bucket, "kept")
        other = Attributes({"content-type": "image/png"}, {"only": "this"}, {"one": "1"})
        bucket.copy(CopySource(name, "rich"), "replaced", attributes=other)
        facts = bucket.head("replaced")
        assert facts.attributes.headers["content-type"] == "image/png"
        assert "cache-control" not in facts.attributes.headers
        assert facts.attributes.metadata == {"only": "this"}
        assert bucket.tags("replaced") == {"one": "1"}
        bucket.copy(CopySource(name, "rich"), "rich", attributes=other)
        assert bucket.head("rich").attributes.metadata == {"only": "this"}

    def test_an_upload_in_parts_takes_attributes(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        upload = bucket.begin_upload("rich", attributes=RICH)
        bucket.complete_upload("rich", upload, [(1, bucket.upload_part("rich", upload, 1, b"x"))])
        self._check_rich(bucket, "rich")

    def test_metadata_names_keep_their_underscores(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("k", b"", attributes=Attributes(metadata={"a_b": "1"}))
        if "underscore" not in self.differences:
            assert bucket.head("k").attributes.metadata == {"a_b": "1"}

    def _check_rich(self, bucket: Bucket, key: str) -> None:
        facts = bucket.head(key)
        wanted = {name: value for name, value in RICH.headers.items() if name not in self.differences}
        found = {name: value for name, value in facts.attributes.headers.items() if name in wanted}
        assert found == wanted
        assert facts.attributes.metadata == RICH.metadata
        if "tag_count" not in self.differences:
            assert facts.tag_count == len(RICH.tags)
        assert bucket.tags(key) == RICH.tags

    # Ranges and conditions

    def test_ranges(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        data = pattern(100_000)
        etag = bucket.put("k", data).etag
        for offset, length in ((0, 1), (0, 100_000), (99_999, 1), (1, 99_999), (65_535, 2), (0, -1), (99_999, -1)):
            end = len(data) if length < 0 else offset + length
            assert bucket.get("k", offset=offset, length=length, if_match=etag) == data[offset:end]
        for offset, length in ((0, 100_001), (99_999, 2), (100_000, 1), (100_000, -1), (200_000, 5)):
            with refused(Corrupt):
                bucket.get("k", offset=offset, length=length)
        bucket.put("empty", b"")
        assert bucket.get("empty") == b""
        with refused(Corrupt):
            bucket.get("empty", length=1)

    def test_reading_another_version_is_refused(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        old = bucket.put("k", b"old").etag
        new = bucket.put("k", b"new").etag
        assert bucket.get("k", if_match=new) == b"new"
        with refused(PreconditionFailed):
            bucket.get("k", if_match=old)
        with refused(PreconditionFailed):
            bucket.get("k", offset=1, length=1, if_match=old)
        with refused(NotFound, PreconditionFailed):
            bucket.get("missing", if_match=old)

    def test_conditional_writes(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if "if_absent" not in self.differences:
            etag = bucket.put("k", b"1", if_absent=True).etag
            with refused(PreconditionFailed):
                bucket.put("k", b"2", if_absent=True)
            assert bucket.get("k", if_match=etag) == b"1"
        if "if_match" not in self.differences:
            first = bucket.put("k", b"1").etag
            second = bucket.put("k", b"2", if_match=first).etag
            with refused(PreconditionFailed):
                bucket.put("k", b"3", if_match=first)
            with refused(NotFound, PreconditionFailed):
                bucket.put("missing", b"3", if_match=first)
            assert bucket.get("k", if_match=second) == b"2"
            assert bucket.list_page().keys == [b"k"]

    # Listings

    def test_pages_lead_on_by_last_key_and_by_token(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        names = sorted(f"{folder}/{number:02}".encode() for folder in "abc" for number in range(7))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: bucket.put(name.decode(), name), names))
        for max_keys in (1, 4, 21, 22):
            by_key, after = [], ""
            while True:
                page = bucket.list_page(start_after=after, max_keys=max_keys)
                assert len(page.keys) <= max_keys
                by_key += page.keys
                if not page.truncated:
                    break
                after = page.last.decode()
            assert by_key == names
            by_token, token = [], ""
            while True:
                page = bucket.list_page(max_keys=max_keys, token=token)
                by_token += page.keys
                token = page.token
                assert bool(token) == page.truncated
                if not token:
                    break
            assert by_token == names
        assert bucket.list_page(prefix="b/", start_after="b/03").keys == names[11:14]
        assert bucket.list_page(prefix="b/", start_after="a").keys == names[7:14]
        assert bucket.list_page(prefix="b/", start_after="c").keys == []
        assert bucket.list_page(start_after="c/06").keys == []

    def test_a_delimiter_gives_common_prefixes(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        for key in ("a", "b b/1", "b b/2", "b.conda", "b/1", "b/2/3", "c", "d/"):
            bucket.put(key, b"1")
        page = bucket.list_page(delimiter="/")
        assert (page.keys, page.prefixes) == ([b"a", b"b.conda", b"c"], [b"b b/", b"b/", b"d/"])
        assert page.last == b"d/"
        page = bucket.list_page(prefix="b/", delimiter="/")
        assert (page.keys, page.prefixes) == ([b"b/1"], [b"b/2/"])
        keys, prefixes, token = [], [], ""
        while True:
            page = bucket.list_page(delimiter="/", max_keys=1, token=token)
            assert len(page.keys) + len(page.prefixes) <= 1
            keys += page.keys
            prefixes += page.prefixes
            token = page.token
            if not token:
                break
        assert (keys, prefixes) == ([b"a", b"b.conda", b"c"], [b"b b/", b"b/", b"d/"])

    # Copies

    def test_copies_within_and_between_buckets(self, make_bucket: MakeBucket) -> None:
        here, there = make_bucket(), make_bucket()
        assert here.properties.endpoint == there.properties.endpoint != ""
        assert here.properties.name != there.properties.name
        etag = here.put("k", b"content").etag
        for bucket in (here, there):
            written = bucket.copy(CopySource(here.properties.name, "k", if_match=etag), "copy")
            assert written.etag == etag
            assert (written.version_id not in ("", "null")) == bucket.properties.versioned
            assert bucket.get("copy") == b"content"
        with refused(PreconditionFailed):
            there.copy(CopySource(here.properties.name, "k", if_match="0" * 32), "copy 2")
        with refused(NotFound):
            there.copy(CopySource(here.properties.name, "missing"), "copy 2")
        with refused(NotFound, PreconditionFailed):
            there.copy(CopySource(here.properties.name, "missing", if_match=etag), "copy 2")
        with refused(NotFound):
            there.copy(CopySource("no-such-bucket-anywhere", "k"), "copy 2")
        assert there.list_page().keys == [b"copy"]

    def test_a_copy_of_parts_is_one_piece(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        etag = self._upload(bucket, "parts", [pattern(5 * MIB), b"end"])
        copied = bucket.copy(CopySource(bucket.properties.name, "parts", if_match=etag), "copy")
        assert bucket.head("copy").etag == copied.etag
        assert bucket.get("copy") == bucket.get("parts")
        if "copy_etag" not in self.differences:
            assert copied.etag == md5(bucket.get("parts")).hexdigest()

    # Uploads in parts

    def test_an_upload_appears_when_it_is_complete(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        upload = bucket.begin_upload("k")
        first, second = pattern(5 * MIB), pattern(5 * MIB, 7)
        etags = {3: bucket.upload_part("k", upload, 3, b"end"), 2: bucket.upload_part("k", upload, 2, b"wrong")}
        etags[1] = bucket.upload_part("k", upload, 1, first)
        etags[2] = bucket.upload_part("k", upload, 2, [second[:100], second[100:]])
        assert etags[2] == md5(second).hexdigest()
        assert bucket.list_page().keys == []
        with refused(NotFound):
            bucket.head("k")
        written = bucket.complete_upload("k", upload, sorted(etags.items()))
        digests = b"".join(md5(part).digest() for part in (first, second, b"end"))
        assert written.etag == f"{md5(digests).hexdigest()}-3"
        assert (written.version_id not in ("", "null")) == bucket.properties.versioned
        assert bucket.get("k") == first + second + b"end"
        whole = bucket.head("k")
        assert (whole.size, whole.etag) == (10 * MIB + 3, written.etag)
        if "parts" not in self.differences:
            facts = bucket.head("k", part_number=1)
            assert (facts.size, facts.parts) == (5 * MIB, 3)
            assert facts.etag == written.etag or "part_etag" in self.differences
            assert bucket.head("k", part_number=3).size == 3
        bucket.put("plain", b"12345")
        facts = bucket.head("plain", part_number=1)
        assert (facts.size, facts.parts) == (5, 0)

    def test_parts_that_are_not_as_told_complete_nothing(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        upload = bucket.begin_upload("k")
        etag = bucket.upload_part("k", upload, 1, b"x")
        with refused(StoreError):
            bucket.complete_upload("k", upload, [(1, etag), (2, "0" * 32)])
        if "wrong_part" not in self.differences:
            with refused(StoreError):
                bucket.complete_upload("k", upload, [(1, "0" * 32)])
        if "small_part" not in self.differences:
            last = bucket.upload_part("k", upload, 2, b"y")
            with refused(Unsupported):
                bucket.complete_upload("k", upload, [(1, etag), (2, last)])
        assert bucket.list_page().keys == []
        bucket.abort_upload("k", upload)

    def test_an_aborted_upload_is_gone(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        upload = bucket.begin_upload("k")
        etag = bucket.upload_part("k", upload, 1, b"x")
        bucket.abort_upload("k", upload)
        bucket.abort_upload("k", upload)
        with refused(StoreError):
            bucket.upload_part("k", upload, 1, b"x")
        with refused(StoreError):
            bucket.complete_upload("k", upload, [(1, etag)])
        assert bucket.list_page().keys == []

    def test_an_abort_concerns_one_upload_alone(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("k", b"there before")
        lost, going = bucket.begin_upload("k"), bucket.begin_upload("k")
        bucket.upload_part("k", lost, 1, b"x")
        etag = bucket.upload_part("k", going, 1, b"y")
        bucket.abort_upload("k", lost)
        assert bucket.get("k") == b"there before"
        bucket.complete_upload("k", going, [(1, etag)])
        bucket.abort_upload("k", going)
        assert bucket.get("k") == b"y", "what is complete cannot be aborted"

    def test_parts_are_copied_by_the_server(self, make_bucket: MakeBucket) -> None:
        here, there = make_bucket(), make_bucket()
        data = pattern(5 * MIB + 7)
        etag = here.put("source", data).etag
        source = CopySource(here.properties.name, "source", if_match=etag)
        upload = there.begin_upload("k")
        first = there.copy_part("k", upload, 1, source, offset=0, length=5 * MIB)
        second = there.copy_part("k", upload, 2, source, offset=5 * MIB, length=7)
        assert first == md5(data[: 5 * MIB]).hexdigest()
        there.complete_upload("k", upload, [(1, first), (2, second)])
        assert there.get("k") == data
        lost = there.begin_upload("k")
        with refused(PreconditionFailed):
            wrong = CopySource(here.properties.name, "source", if_match="0" * 32)
            there.copy_part("k", lost, 1, wrong, offset=0, length=5)
        with refused(NotFound):
            there.copy_part("k", lost, 1, CopySource(here.properties.name, "missing"), offset=0, length=5)
        if "copy_range" not in self.differences:
            with refused(StoreError):
                there.copy_part("k", lost, 1, source, offset=5 * MIB, length=8)
        there.abort_upload("k", lost)

    def _upload(self, bucket: Bucket, key: str, parts: list[bytes]) -> str:
        upload = bucket.begin_upload(key)
        done = [(number, bucket.upload_part(key, upload, number, part)) for number, part in enumerate(parts, 1)]
        return bucket.complete_upload(key, upload, done).etag

    # Deleting

    def test_delete(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("k", b"x")
        marker = bucket.delete("k")
        assert (marker not in ("", "null")) == bucket.properties.versioned
        assert bucket.list_page().keys == []
        for ask in (bucket.get, bucket.head, bucket.tags):
            with refused(NotFound):
                ask("k")
        bucket.delete("k")
        bucket.delete("never there")
        bucket.put("k", b"again")
        assert bucket.get("k") == b"again"

    # Versions

    def test_without_versions_each_object_is_one(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if bucket.properties.versioned:
            return
        etag = bucket.put("k", b"1").etag
        listed = bucket.list_versions().versions
        assert [(row.key, row.version_id, row.latest, row.delete_marker, row.size, row.etag) for row in listed] == [
            ("k", "null", True, False, 1, etag)
        ]
        assert bucket.get("k", version_id="null") == b"1"

    def test_versions_are_kept_read_and_copied(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if not bucket.properties.versioned:
            return
        name = bucket.properties.name
        first = bucket.put("k", b"first", attributes=Attributes(metadata={"n": "1"}, tags={"t": "1"}))
        second = bucket.put("k", b"second")
        marker = bucket.delete("k")
        assert len({first.version_id, second.version_id, marker}) == 3
        assert bucket.get("k", version_id=first.version_id) == b"first"
        assert bucket.get("k", offset=1, length=3, version_id=second.version_id) == b"eco"
        facts = bucket.head("k", version_id=first.version_id)
        assert (facts.etag, facts.version_id, facts.attributes.metadata) == (first.etag, first.version_id, {"n": "1"})
        assert bucket.tags("k", version_id=first.version_id) == {"t": "1"}
        assert bucket.tags("k", version_id=second.version_id) == {}
        for ask in (bucket.get, bucket.head):
            with refused(NotFound):
                ask("k", version_id=marker)
        with refused(NotFound):
            bucket.copy(CopySource(name, "k"), "copy")
        bucket.copy(CopySource(name, "k", first.version_id, first.etag), "copy")
        assert bucket.get("copy") == b"first"
        assert bucket.tags("copy") == {"t": "1"}
        restored = bucket.copy(CopySource(name, "k", first.version_id), "k")
        assert bucket.get("k") == b"first"
        assert restored.version_id not in (first.version_id, "")

    def test_versions_are_listed_newest_first(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if not bucket.properties.versioned:
            return
        wanted: list[tuple[str, str, bool, bool, int]] = []
        for key in ("a b+c/%", "d&e", "\u00e4/'x'"):
            first = bucket.put(key, b"1").version_id
            gone = bucket.delete(key)
            last = bucket.put(key, b"333").version_id
            wanted += [(key, last, True, False, 3), (key, gone, False, True, 0), (key, first, False, False, 1)]
        if "version_order" in self.differences:
            listed = bucket.list_versions().versions
            assert sorted((row.key, row.version_id) for row in listed) == sorted((row[0], row[1]) for row in wanted)
            return
        for max_keys in (1, 2, 5, 100):
            listed = []
            key_marker = version_marker = ""
            while True:
                page = bucket.list_versions(key_marker=key_marker, version_marker=version_marker, max_keys=max_keys)
                assert len(page.versions) <= max_keys
                listed += page.versions
                key_marker, version_marker = page.next_key_marker, page.next_version_marker
                if not key_marker:
                    break
                assert len(listed) <= len(wanted)
            found = [(row.key, row.version_id, row.latest, row.delete_marker, row.size) for row in listed]
            assert found == wanted
        assert {row.key for row in bucket.list_versions(prefix="d").versions} == {"d&e"}
        assert bucket.list_versions(key_marker="d&e").versions[0].key == "\u00e4/'x'"
