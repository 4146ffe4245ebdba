"""The suite every bucket passes, wrapped or bare: what `bucket.Bucket` promises, as tests.

Derive a class from `BucketConformance` in a test module and give it a fixture `make_bucket` that returns a callable;
each call of it gives an empty bucket of the caller's own, all of them on one endpoint where that can copy.

One rule: a server may differ only where the class's `differences` says so, by name and with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from typing import ClassVar

import pytest

from s3core.bucket import Attributes, Bucket, CopySource, ListedPart, ListedUpload
from s3core.conformance import MIB, pattern, refused
from s3core.digests import Digests, Expected, digests_of, verdict
from s3core.errors import (
    Archived,
    Corrupt,
    Denied,
    NotFound,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.store import Buffer
from s3core.write_options import CustomerKey, Retention, WriteOptions

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


class ProofConformance:
    """That what was written can be proved: a part of the suite of all buckets."""

    differences: ClassVar[Mapping[str, str]] = {}

    def test_digests_that_come_along_are_compared(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        body, other = b"the bytes that were meant", digests_of(b"others", "sha256")
        for checksum in ("", "sha256", "crc32"):
            options, right = WriteOptions(checksum=checksum), digests_of(body, checksum)
            bucket.put("k", body, options=options, digests=right)
        if "wrong_md5" in self.differences:
            return
        with refused(Unavailable):
            bucket.put("wrong", body, digests=Digests(md5=other.md5))
        if bucket.properties.checksums:
            with refused(Unavailable):
                bucket.put("wrong", body, options=WriteOptions(checksum="sha256"), digests=Digests(sha256=other.sha256))
        upload = bucket.begin_upload("parts")
        with refused(Unavailable):
            bucket.upload_part("parts", upload, 1, body, digests=other)
        bucket.abort_upload("parts", upload)
        assert bucket.list_page().keys == [b"k"]

    @pytest.mark.parametrize("checksum", ["", "sha256", "crc32"])
    def test_what_is_held_can_be_proved(self, make_bucket: MakeBucket, checksum: str) -> None:
        bucket = make_bucket()
        options = WriteOptions(checksum=checksum)  # type: ignore[arg-type]  # a parameter, a text
        pieces = [pattern(5 * MIB), b"end"]
        made = {number: digests_of(piece, options.checksum) for number, piece in enumerate(pieces, 1)}
        bucket.put("whole", pieces[0], options=options, digests=made[1])
        upload = bucket.begin_upload("parts", options=options)
        parts = [
            (number, bucket.upload_part("parts", upload, number, piece, options=options, digests=made[number]))
            for number, piece in enumerate(pieces, 1)
        ]
        told = {part.number: part for part in bucket.list_parts("parts", upload).parts}
        assert {number: part.etag for number, part in told.items()} == dict(parts)
        bucket.complete_upload("parts", upload, parts, options=options, digests=made)
        whole, joined = bucket.head("whole"), bucket.head("parts")
        keeps = checksum in bucket.properties.checksums
        if "kept_checksums" not in self.differences:
            assert (checksum in whole.checksums) == keeps
            assert (checksum in joined.checksums) == keeps
        both = list(made.values())
        assert verdict(whole, Expected.of_body(5 * MIB, made[1]), etag_is_md5=True) == "same"
        assert verdict(joined, Expected.of_parts(5 * MIB + 3, both), etag_is_md5=True) == "same"
        assert verdict(joined, Expected.of_parts(5 * MIB + 4, both), etag_is_md5=True) == "other"
        assert verdict(joined, Expected.of_parts(5 * MIB + 3, both[::-1]), etag_is_md5=True) == "other"
        wrong = digests_of(b"other", options.checksum)
        assert verdict(whole, Expected.of_body(5 * MIB, wrong), etag_is_md5=True) == "other"


class BucketConformance(ProofConformance):
    differences: ClassVar[Mapping[str, str]] = {}
    """What this server does otherwise, and why; the names are those the tests below ask for."""
    kms_key_id: ClassVar[str] = ""
    """A key that its key service has."""

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

    def test_a_version_is_deleted_for_good(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if not bucket.properties.versioned:
            bucket.put("k", b"1")
            bucket.delete_version("k", "null")
            assert bucket.list_page().keys == []
            return
        first, second = bucket.put("k", b"first"), bucket.put("k", b"second")
        bucket.delete_version("k", second.version_id)
        assert bucket.get("k") == b"first"
        marker = bucket.delete("k")
        bucket.delete_version("k", marker)
        assert bucket.get("k") == b"first", "without the marker it is there again"
        bucket.delete_version("k", first.version_id)
        bucket.delete_version("k", first.version_id)
        assert list(bucket.list_versions().versions) == []
        with refused(ValueError):
            bucket.delete_version("k", "")

    # Uploads under way

    def test_uploads_are_listed_until_they_end(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        begun = sorted((key, bucket.begin_upload(key)) for key in ("a/1", "b c+d%/\u00e4", "b c+d%/\u00e4", "z"))
        assert sorted((one.key, one.upload_id) for one in self._uploads(bucket)) == begun
        assert all(one.initiated > 1e9 for one in self._uploads(bucket))
        assert {one.key for one in bucket.list_uploads(prefix="b c").uploads} == {"b c+d%/\u00e4"}
        if "upload_pages" not in self.differences:
            for size in (1, 2, 3):
                paged = self._uploads(bucket, size)
                assert len(bucket.list_uploads(max_uploads=size).uploads) == size
                assert sorted((one.key, one.upload_id) for one in paged) == begun
                assert [one.key for one in paged] == [key for key, _ in begun]
        bucket.abort_upload(*begun[0])
        bucket.complete_upload("z", begun[-1][1], [(1, bucket.upload_part("z", begun[-1][1], 1, b"x"))])
        assert {one.key for one in self._uploads(bucket)} == {"b c+d%/\u00e4"}
        with refused(ValueError):
            bucket.list_uploads(upload_marker="x")

    def test_parts_are_listed(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        upload = bucket.begin_upload("k")
        assert list(bucket.list_parts("k", upload).parts) == []
        sent = {number: bucket.upload_part("k", upload, number, b"x" * number) for number in (7, 2, 5, 1)}
        for size in (1000,) if "part_pages" in self.differences else (1, 3, 4, 1000):
            found: list[ListedPart] = []
            after = 0
            while True:
                page = bucket.list_parts("k", upload, after=after, max_parts=size)
                assert len(page.parts) <= size
                found += page.parts
                after = page.next_number
                if not after:
                    break
            assert [(part.number, part.size, part.etag) for part in found] == [
                (number, number, sent[number]) for number in sorted(sent)
            ]
        bucket.abort_upload("k", upload)
        if "gone_upload" not in self.differences:
            with refused(NotFound):
                bucket.list_parts("k", upload)

    def _uploads(self, bucket: Bucket, size: int = 1000) -> list[ListedUpload]:
        found: list[ListedUpload] = []
        key_marker = upload_marker = ""
        while True:
            page = bucket.list_uploads(key_marker=key_marker, upload_marker=upload_marker, max_uploads=size)
            found += page.uploads
            key_marker, upload_marker = page.next_key_marker, page.next_upload_marker
            if not key_marker:
                return found

    # Ways of keeping

    def test_a_storage_class_is_told(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if "storage_class" in self.differences:
            return
        options = WriteOptions(storage_class="STANDARD_IA")
        bucket.put("plain", b"x")
        bucket.put("put", b"x", options=options)
        upload = bucket.begin_upload("parts", options=options)
        bucket.complete_upload("parts", upload, [(1, bucket.upload_part("parts", upload, 1, b"x", options=options))])
        bucket.copy(CopySource(bucket.properties.name, "plain"), "copy", options=options)
        assert [bucket.head(key).storage_class for key in ("put", "parts", "copy")] == ["STANDARD_IA"] * 3
        assert bucket.head("plain").storage_class in ("", "STANDARD")
        page = bucket.list_page()
        told = dict(zip(page.keys, page.classes, strict=True))
        assert told == {b"plain": b"STANDARD"} | dict.fromkeys((b"put", b"parts", b"copy"), b"STANDARD_IA")

    @pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
    def test_encryption_by_the_server_is_told(self, make_bucket: MakeBucket, encryption: str) -> None:
        bucket = make_bucket()
        if encryption in self.differences:
            return
        key_id = self.kms_key_id if encryption == "aws:kms" else ""
        options = WriteOptions(encryption=encryption, kms_key_id=key_id)  # type: ignore[arg-type]  # as above
        bucket.put("put", b"content", options=options)
        upload = bucket.begin_upload("parts", options=options)
        bucket.complete_upload("parts", upload, [(1, bucket.upload_part("parts", upload, 1, b"x", options=options))])
        assert [bucket.head(key).kept.encryption for key in ("put", "parts")] == [encryption] * 2
        assert (bucket.get("put"), bucket.get("parts")) == (b"content", b"x")

    def test_a_customer_key_opens_what_it_closed(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if "customer_key" in self.differences:
            return
        key, other = CustomerKey(b"k" * 32), CustomerKey(b"o" * 32)
        options = WriteOptions(customer_key=key)
        bucket.put("put", b"content", options=options)
        upload = bucket.begin_upload("parts", options=options)
        with refused(StoreError):
            bucket.upload_part("parts", upload, 1, b"not encrypted")
        parts = [(1, bucket.upload_part("parts", upload, 1, pattern(5 * MIB), options=options))]
        parts.append((2, bucket.upload_part("parts", upload, 2, b"end", options=options)))
        bucket.complete_upload("parts", upload, parts, options=options)
        for name, body in (("put", b"content"), ("parts", pattern(5 * MIB) + b"end")):
            assert bucket.get(name, customer_key=key) == body
            assert bucket.get(name, offset=3, length=4, customer_key=key) == body[3:7]
            facts = bucket.head(name, customer_key=key)
            assert (facts.size, facts.kept.customer_key_md5) == (len(body), key.md5)
            for given in (None, other):
                with refused(StoreError):
                    bucket.get(name, customer_key=given)
                with refused(StoreError):
                    bucket.head(name, customer_key=given)
        if "customer_copy" not in self.differences:
            source = CopySource(bucket.properties.name, "put", customer_key=key)
            bucket.copy(source, "opened")
            assert bucket.get("opened") == b"content"


class LockConformance:
    """Derive from it too where Object Lock can be had, with a fixture `make_locked_bucket`."""

    differences: ClassVar[Mapping[str, str]] = {}

    def test_a_lock_is_given_at_the_write(self, make_locked_bucket: MakeBucket) -> None:
        bucket = make_locked_bucket()
        assert bucket.properties.versioned
        until = self._soon(bucket)
        for mode in ("GOVERNANCE", "COMPLIANCE"):
            options = WriteOptions(retention=Retention(mode, until), legal_hold=True)
            bucket.put("put", b"x", options=options)
            upload = bucket.begin_upload("parts", options=options)
            part = bucket.upload_part("parts", upload, 1, b"x", options=options)
            bucket.complete_upload("parts", upload, [(1, part)], options=options)
            for key in ("put", "parts"):
                if f"lock_{key}" in self.differences:
                    continue
                assert bucket.retention(key) == options.retention, key
                assert bucket.legal_hold(key), key
                if "lock_in_head" not in self.differences:
                    kept = bucket.head(key).kept
                    assert (kept.retention, kept.legal_hold) == (options.retention, True), key
                bucket.set_legal_hold(key, False)

    def test_what_is_locked_cannot_be_deleted(self, make_locked_bucket: MakeBucket) -> None:
        bucket = make_locked_bucket()
        until = self._soon(bucket)
        governed = bucket.put("governed", b"x").version_id
        bucket.set_retention("governed", Retention("GOVERNANCE", until))
        assert bucket.retention("governed", version_id=governed) == Retention("GOVERNANCE", until)
        compliant = bucket.put("compliant", b"x").version_id
        bucket.set_retention("compliant", Retention("COMPLIANCE", until))
        held = bucket.put("held", b"x").version_id
        bucket.set_legal_hold("held", True)
        assert bucket.legal_hold("held", version_id=held)
        for key, version in (("governed", governed), ("compliant", compliant), ("held", held)):
            with refused(Denied):
                bucket.delete_version(key, version)
            assert bucket.get(key) == b"x"
        with refused(Denied):
            bucket.delete_version("compliant", compliant, bypass_governance=True)
        bucket.delete_version("governed", governed, bypass_governance=True)
        bucket.set_legal_hold("held", False)
        bucket.delete_version("held", held)
        marker = bucket.delete("compliant")
        assert marker, "hidden, and still there"
        assert bucket.get("compliant", version_id=compliant) == b"x"

    def test_a_retention_grows(self, make_locked_bucket: MakeBucket) -> None:
        bucket = make_locked_bucket()
        until = self._soon(bucket)
        bucket.put("k", b"x")
        bucket.set_retention("k", Retention("COMPLIANCE", until))
        bucket.set_retention("k", Retention("COMPLIANCE", until + 60))
        with refused(StoreError):
            bucket.set_retention("k", Retention("COMPLIANCE", until + 30))
        assert bucket.retention("k") == Retention("COMPLIANCE", until + 60)
        bucket.put("g", b"x")
        bucket.set_retention("g", Retention("GOVERNANCE", until))
        with refused(StoreError):
            bucket.set_retention("g", Retention("GOVERNANCE", until - 60))
        bucket.set_retention("g", Retention("GOVERNANCE", until - 60), bypass_governance=True)
        assert bucket.retention("g") == Retention("GOVERNANCE", until - 60)

    def test_what_has_no_lock(self, make_locked_bucket: MakeBucket) -> None:
        bucket = make_locked_bucket()
        written = bucket.put("k", b"x")
        assert bucket.retention("k") is None
        assert bucket.legal_hold("k") is False
        with refused(NotFound):
            bucket.retention("missing")
        bucket.delete_version("k", written.version_id)
        assert list(bucket.list_versions().versions) == []

    def test_a_bucket_without_object_lock(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        if "unlocked" in self.differences:
            return
        with refused(StoreError):
            bucket.put("k", b"x", options=WriteOptions(retention=Retention("GOVERNANCE", self._soon(bucket))))
        assert bucket.list_page().keys == []
        bucket.put("k", b"x")
        with refused(StoreError):
            bucket.set_legal_hold("k", True)
        assert bucket.retention("k") is None
        assert bucket.legal_hold("k") is False

    def _soon(self, bucket: Bucket) -> float:
        """An hour from now, by the clock of the server."""
        bucket.put("clock", b"")
        facts = bucket.head("clock")
        bucket.delete_version("clock", facts.version_id or "null")
        return float(int(facts.modified) + 3600)


class ArchiveConformance:
    """Derive from it too where an archive class can be had."""

    differences: ClassVar[Mapping[str, str]] = {}

    def test_what_is_archived_is_read_once_it_is_restored(self, make_bucket: MakeBucket) -> None:
        bucket = make_bucket()
        bucket.put("cold", b"content", options=WriteOptions(storage_class="GLACIER"))
        bucket.put("warm", b"content")
        facts = bucket.head("cold")
        assert (facts.storage_class, facts.archived) == ("GLACIER", True)
        with refused(Archived):
            bucket.get("cold")
        with refused(StoreError):
            bucket.restore("warm", days=1)
        with refused(ValueError):
            bucket.restore("cold", days=0)
        assert bucket.restore("cold", days=2) is False
        facts = bucket.head("cold")
        assert (facts.archived, facts.kept.restored_until > facts.modified) == (False, True)
        assert bucket.get("cold") == b"content"
        assert bucket.restore("cold", days=3) is True
