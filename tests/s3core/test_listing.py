"""Listings as bytes: the fast reader, the strict one, that they agree, and what neither takes."""

import re
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import listing
from s3core.bucket import ListedPage
from s3core.errors import Corrupt
from s3core.listing import parse_list, parse_page, parse_versions

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><EncodingType>url</EncodingType>"
)
ROW = (
    "<Contents><Key>{key}</Key><LastModified>2023-11-14T22:13:20.500Z</LastModified>"
    "<ETag>&quot;abc-2&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def page(rows: str, head: str = HEAD, truncated: str = "false", token: str = "") -> bytes:
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"{head}<IsTruncated>{truncated}</IsTruncated>{more}{rows}</ListBucketResult>".encode()


def test_a_page_is_read_with_keys_decoded_and_etags_bare() -> None:
    read = parse_list(page(ROW.format(key="a%20b%2Bc+d/%C3%A9", size=7), truncated="true", token="t&amp;1=="))
    assert [(item.key, item.size, item.etag) for item in read.objects] == [("a b+c d/é", 7, "abc-2")]
    assert read.objects[0].modified == 1_700_000_000.5
    assert read.next_token == "t&1=="


def test_prefixes_and_an_empty_page() -> None:
    rows = "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>b%26/</Prefix></CommonPrefixes>"
    assert parse_list(page(rows)).prefixes == ["a/", "b&/"]
    assert parse_list(page("")).objects == []


@pytest.mark.parametrize(
    "row",
    [
        # another order of elements; an owner and unknown elements between; an entity in a key
        '<Contents><Size>7</Size><ETag>"abc-2"</ETag><Key>it%27s</Key>'
        "<LastModified>2023-11-14T22:13:20.500Z</LastModified></Contents>",
        "<Contents>\n  <Owner><ID>x</ID></Owner><Key>it%27s</Key><LastModified>2023-11-14T22:13:20.500Z</LastModified>"
        "<ETag>abc-2</ETag><New>1</New><Size>7</Size></Contents>",
        ROW.format(key="it&apos;s", size=7),
    ],
)
def test_what_the_fast_reader_does_not_know_the_parser_reads(row: str) -> None:
    read = parse_list(page(ROW.format(key="first", size=1) + row))
    assert [(item.key, item.size, item.etag, item.modified) for item in read.objects] == [
        ("first", 1, "abc-2", 1_700_000_000.5),
        ("it's", 7, "abc-2", 1_700_000_000.5),
    ]


def test_without_url_encoding_names_are_taken_as_they_stand() -> None:
    head = HEAD.replace("<EncodingType>url</EncodingType>", "")
    read = parse_list(page(ROW.format(key="a%20b+c&amp;d", size=1), head))
    assert read.objects[0].key == "a%20b+c&d"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        page(ROW.format(key="a", size=1))[:-40],
        page("", truncated="true"),
        page("", truncated="maybe"),
        page("<Contents><Key>a</Key></Contents>"),
        page(ROW.format(key="a", size=1).replace("2023-11-14T22:13:20.500Z", "yesterday")),
        page(ROW.format(key="a", size=1)).replace(b"<Key>a", b"<Key>\xff"),
        page("<Contents><Key>a</Wrong></Contents>"),
    ],
)
def test_what_is_no_whole_listing_is_corrupt_and_never_empty(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_list(body)


# --- the fast reader and the strict one ------------------------------------------------------------------

ODD = (
    "/leading",
    "a+b",
    "100%",
    "%2F",
    "%252F",
    "%%32F",
    "%41",
    "%",
    "a b",
    "c\x01\x1f\x7f",
    "a&b<c>",
    "it's",
    'quo"te',
    "line\nfeed",
    "cr\rlf\n",
    "\u00e4/\u65e5\u672c/\U0001f4be",
    "k" * 1024,
    "\u00e4" * 512,
    "!",
)
names = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
encoders = st.sampled_from(
    [
        lambda text: quote(text, safe="/"),  # MinIO
        lambda text: quote(text, safe=""),  # Ceph
        lambda text: quote_plus(text, safe="/"),  # AWS
        lambda text: re.sub("%..", lambda escaped: escaped[0].lower(), quote(text)),
    ]
)
etags = st.sampled_from(["&quot;abc-2&quot;", "&#34;abc&#34;", '"abc"', "abc", ""])
checksums = st.sampled_from(
    ["", "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>", "<ChecksumAlgorithm>A</ChecksumAlgorithm>" * 2]
)
OWNER = "<Owner><ID>o</ID><DisplayName>n &amp; m</DisplayName></Owner>"
SHAPES = {
    "aws": "<Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag>{checksum}<Size>{size}</Size>"
    "<StorageClass>{storage}</StorageClass>",
    "ceph": "<Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>"
    "<StorageClass>{storage}</StorageClass>" + OWNER + "<Type>Normal</Type>",
    "minio": "<Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag>{checksum}<Size>{size}</Size>"
    + OWNER
    + "<StorageClass>{storage}</StorageClass><UserMetadata></UserMetadata>",
    "moto": "\n  <Key>{key}</Key>\n  <LastModified>{time}</LastModified>\n  <ETag>{etag}</ETag>\n  <Size>{size}</Size>\n"
    "  <StorageClass>{storage}</StorageClass>\n" + OWNER + "\n",
    "another": "<Size>{size}</Size><ETag>{etag}</ETag><LastModified>{time}</LastModified><Key>{key}</Key>",
    "empty owner": "<Owner/><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>",
}


@st.composite
def pages(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A page as some server writes it, and the keys on it."""
    encode = draw(encoders)
    shapes = draw(st.sampled_from([[shape] for shape in SHAPES.values()] + [list(SHAPES.values())]))
    keys = draw(st.lists(names, max_size=8))
    rows = []
    for key in keys:
        fields = {
            "key": encode(key).replace("%27", draw(st.sampled_from(["%27", "&apos;"]))),
            "size": draw(st.integers(0, 5 * 2**40)),
            "time": draw(st.sampled_from(["2026-11-14T22:13:20.500Z", "2026-11-14T22:13:20Z"])),
            "etag": draw(etags),
            "checksum": draw(checksums),
            "storage": draw(st.sampled_from(["STANDARD", "GLACIER", ""])),
        }
        rows.append(f"<Contents>{draw(st.sampled_from(shapes)).format(**fields)}</Contents>")
    groups = "".join(
        f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>"
        for name in draw(st.lists(names, max_size=3))
    )
    noise = draw(
        st.sampled_from(["", "<!-- no rows -->", "<Prefix>a&amp;b</Prefix>", "<StartAfter>&#x01;</StartAfter>"])
    )
    return page("".join(draw(st.permutations(["".join(rows), groups, noise])))), [key.encode() for key in keys]


@given(pages())
def test_both_readers_read_the_same(drawn: tuple[bytes, list[bytes]]) -> None:
    body, keys = drawn
    strict = listing._page_strict(body)
    assert strict.keys == keys
    assert listing._page_fast(body) in (None, strict)
    assert parse_page(body) == strict


def full_page(shape: str, count: int = 1000) -> bytes:
    row = f"<Contents>{SHAPES[shape]}</Contents>"
    fixed = {"time": "2026-11-14T22:13:20Z", "etag": "&quot;abc&quot;", "checksum": "", "storage": "STANDARD"}
    keys = (quote(f"data/2026-11/it is {number:06}+ä.bin", safe="/") for number in range(count))
    return page("".join(row.format(key=key, size=number, **fixed) for number, key in enumerate(keys)))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_known_servers_write_is_read_fast(shape: str) -> None:
    body = full_page(shape)
    read = listing._page_fast(body)
    assert read is not None
    assert read == listing._page_strict(body)
    assert read.keys[7] == "data/2026-11/it is 000007+ä.bin".encode()
    assert read.last == read.keys[-1]


def test_objects_with_checksums_among_objects_without_are_read_fast() -> None:
    row = f"<Contents>{SHAPES['aws']}</Contents>"
    fixed = {"time": "2026-11-14T22:13:20Z", "etag": "&quot;abc&quot;", "storage": "STANDARD", "size": 1}
    checksum = "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
    body = page("".join(row.format(key=f"k{at}", checksum=checksum * (at % 2), **fixed) for at in range(10)))
    assert listing._page_fast(body) == listing._page_strict(body)
    assert listing._page_fast(body) is not None


# --- versions --------------------------------------------------------------------------------------------

VERSIONS_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><EncodingType>url</EncodingType>"
)
AWS_VERSION = (
    "<Version><ETag>{etag}</ETag>{checksum}<Size>{size}</Size><StorageClass>STANDARD</StorageClass><Key>{key}</Key>"
    "<VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest><LastModified>{time}</LastModified>" + OWNER
)
CEPH_VERSION = (
    "<Version><Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
    "<LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass>"
    + OWNER
    + "<Type>Normal</Type>"
)
AWS_MARKER = (
    "<DeleteMarker>" + OWNER + "<Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
    "<LastModified>{time}</LastModified>"
)
CEPH_MARKER = (
    "<DeleteMarker><Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
    "<LastModified>{time}</LastModified>" + OWNER
)


def versions_page(rows: str, truncated: str = "false", markers: str = "") -> bytes:
    return f"{VERSIONS_HEAD}<IsTruncated>{truncated}</IsTruncated>{markers}{rows}</ListVersionsResult>".encode()


@st.composite
def version_pages(draw: st.DrawFn) -> bytes:
    encode = draw(encoders)
    version, marker = draw(st.sampled_from([(AWS_VERSION, AWS_MARKER), (CEPH_VERSION, CEPH_MARKER)]))
    rows = []
    for key in draw(st.lists(names, max_size=8)):
        fields = {
            "key": encode(key),
            "version": draw(st.sampled_from(["null", "3sL4kqtJlcpXroDTDmJ", "a.b-_", ""])),
            "latest": draw(st.sampled_from(["true", "false"])),
            "size": draw(st.integers(0, 2**50)),
            "time": "2026-11-14T22:13:20Z",
            "etag": draw(etags),
            "checksum": draw(checksums),
        }
        if draw(st.booleans()):
            rows.append(version.format(**fields) + "</Version>")
        else:
            rows.append(marker.format(**fields) + "</DeleteMarker>")
    # as Ceph writes it: neither encoded nor XML
    markers = "<NextKeyMarker>a&#x01;+b&amp;%</NextKeyMarker><NextVersionIdMarker>v&amp;</NextVersionIdMarker>"
    truncated = bool(rows) and draw(st.sampled_from([False, True]))
    return versions_page("".join(rows), *(("true", markers) if truncated else ("false", "")))


@given(version_pages())
def test_both_readers_read_the_same_versions(body: bytes) -> None:
    strict = listing._versions_strict(body)
    assert listing._versions_fast(body) in (None, strict)
    assert parse_versions(body) == strict


def test_versions_are_read_fast() -> None:
    fixed = {"time": "2026-11-14T22:13:20Z", "etag": "&quot;e&quot;", "checksum": "", "key": "a%20b", "size": 3}
    for version, marker in ((AWS_VERSION, AWS_MARKER), (CEPH_VERSION, CEPH_MARKER)):
        rows = marker.format(**fields_of(fixed, "m", "true")) + "</DeleteMarker>"
        rows += version.format(**fields_of(fixed, "v", "false")) + "</Version>"
        markers = "<NextKeyMarker>a%20b</NextKeyMarker><NextVersionIdMarker>v</NextVersionIdMarker>"
        read = listing._versions_fast(versions_page(rows, "true", markers))
        assert read is not None
        assert [
            (row.key, row.version_id, row.latest, row.delete_marker, row.size, row.etag) for row in read.versions
        ] == [
            ("a b", "m", True, True, 0, ""),
            ("a b", "v", False, False, 3, "e"),
        ]
        assert (read.next_key_marker, read.next_version_marker) == ("a b", "v")


def fields_of(fixed: dict[str, object], version: str, latest: str) -> dict[str, object]:
    return {**fixed, "version": version, "latest": latest}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        versions_page("")[:-9],
        versions_page("", truncated="true"),
        versions_page("", truncated=""),
        versions_page("<Version><Key>a</Key><Size>1</Size></Version>"),
        versions_page("<Version><Key>a</Key><IsLatest>true</IsLatest></Version>"),
        versions_page("<DeleteMarker><IsLatest>true</IsLatest></DeleteMarker>"),
    ],
)
def test_what_is_no_whole_listing_of_versions_is_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_versions(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_corrupt(body: bytes) -> None:
    for parse in (parse_list, parse_page, parse_versions):
        with pytest.raises(Corrupt):
            parse(body)
        for root in (b"ListBucketResult", b"ListVersionsResult"):
            with pytest.raises(Corrupt):
                parse(b"<%s>%s</%s>" % (root, body, root))


def test_a_token_with_control_characters_is_read_by_both() -> None:
    body = page(ROW.format(key="a%01", size=1), truncated="true", token="a&#x01;&#10;&amp;&quot;b")
    for read in (listing._page_fast(body), listing._page_strict(body)):
        assert read is not None
        assert (read.keys, read.token) == ([b"a\x01"], 'a\x01\n&"b')
    with pytest.raises(Corrupt):
        parse_page(page(ROW.format(key="a&#x01;", size=1)))


def test_names_may_hold_entities_where_they_are_not_encoded() -> None:
    head = HEAD.replace("<EncodingType>url</EncodingType>", "")
    read = parse_page(page(ROW.format(key=escape("a&b<c>+%20"), size=1), head))
    assert read == ListedPage([b"a&b<c>+%20"], [1], [b"abc-2"], [b"2023-11-14T22:13:20.500Z"], [b"STANDARD"], [], False)
