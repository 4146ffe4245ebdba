"""The XML that S3 speaks, read with as little work as its shape allows: listings, results and errors.

One rule: bytes in, values out; an answer that is not what S3 documents raises `Corrupt` and is never taken for
an empty one. A listing page is read by one regular expression that fits the order of elements every known
server uses; when its count of objects differs from the page's, a real parser reads the page again.
Source: Amazon S3 API reference, ListObjectsV2, DeleteObjects, "Error responses".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from s3core.errors import Corrupt


@dataclass(frozen=True, slots=True)
class ListedObject:
    key: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of ListObjectsV2. `next_token` is empty on the last one."""

    objects: list[ListedObject]
    prefixes: list[str]
    next_token: str


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An `<Error>` document; every field may be empty, `code` is empty when the body is none at all."""

    code: str = ""
    message: str = ""
    region: str = ""
    endpoint: str = ""
    server_time: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class DeleteFailure:
    key: str
    code: str
    message: str


# No `&` in names: Ceph writes an apostrophe as &apos; even where names are URL-encoded. The parser sees to those.
_CONTENTS = re.compile(
    r"<Contents>\s*<Key>([^<&]*)</Key>\s*<LastModified>([^<]*)</LastModified>\s*"
    r"<ETag>([^<]*)</ETag>\s*(?:<Checksum[^>]*>[^<]*</Checksum[^>]*>\s*)*<Size>(\d+)</Size>"
)
_PREFIX = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<&]*)</Prefix>\s*</CommonPrefixes>")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_list(body: bytes) -> ListPage:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"the listing is not UTF-8: {error}") from error
    if "</ListBucketResult>" not in text[-64:]:
        raise Corrupt(f"the listing is not a whole ListBucketResult: {_shown(body)}")
    if _first(text, "EncodingType") != "url":
        return _parse_list_slowly(body)
    rows = _CONTENTS.findall(text)
    prefixes = _PREFIX.findall(text)
    if len(rows) != text.count("<Contents>") or len(prefixes) != text.count("<CommonPrefixes>"):
        return _parse_list_slowly(body)
    return ListPage(
        objects=[
            ListedObject(_url_decoded(key), int(size), _bare_etag(etag), parse_time(modified))
            for key, modified, etag, size in rows
        ],
        prefixes=[_url_decoded(prefix) for prefix in prefixes],
        next_token=_next_token(_first(text, "IsTruncated"), _first(text, "NextContinuationToken")),
    )


def _parse_list_slowly(body: bytes) -> ListPage:
    root = _root(body)
    encoded = _text(root, "EncodingType") == "url"

    def key_of(text: str) -> str:
        return _url_decoded(text) if encoded else text

    objects = []
    for element in root.iter(_tag(root, "Contents")):
        size = _text(element, "Size")
        if not size.isdecimal():
            raise Corrupt(f"the listing gives no size for {_text(element, 'Key')!r}")
        objects.append(
            ListedObject(
                key_of(_text(element, "Key")),
                int(size),
                _bare_etag(_text(element, "ETag")),
                parse_time(_text(element, "LastModified")),
            )
        )
    prefixes = [key_of(_text(element, "Prefix")) for element in root.iter(_tag(root, "CommonPrefixes"))]
    return ListPage(objects, prefixes, _next_token(_text(root, "IsTruncated"), _text(root, "NextContinuationToken")))


def _next_token(truncated: str, token: str) -> str:
    if truncated == "true":
        if not token:
            raise Corrupt("the listing says there is more and gives no NextContinuationToken")
        return token
    if truncated != "false":
        raise Corrupt(f"the listing does not say whether it is truncated: {truncated!r}")
    return ""


def parse_error(body: bytes) -> ErrorBody:
    """Never raises: what is not an error document gives an empty `ErrorBody`."""
    if b"<Error" not in body:
        return ErrorBody()
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return ErrorBody()
    # Identity services wrap it: <ErrorResponse><Error>. Below any other root (DeleteResult) it is about a part.
    kind = _local(root.tag)
    error = root if kind == "Error" else root.find(_tag(root, "Error")) if kind == "ErrorResponse" else None
    if error is None:
        return ErrorBody()
    return ErrorBody(
        code=_text(error, "Code"),
        message=_text(error, "Message"),
        region=_text(error, "Region"),
        endpoint=_text(error, "Endpoint"),
        server_time=_text(error, "ServerTime"),
        request_id=_text(error, "RequestId"),
    )


def parse_result(body: bytes, element: str) -> dict[str, str]:
    """The texts directly below a result document whose root must be `element`."""
    root = _root(body)
    if _local(root.tag) != element:
        raise Corrupt(f"expected {element}, got {_shown(body)}")
    return {_local(child.tag): (child.text or "").strip() for child in root}


def parse_delete_result(body: bytes) -> list[DeleteFailure]:
    root = _root(body)
    if _local(root.tag) != "DeleteResult":
        raise Corrupt(f"expected DeleteResult, got {_shown(body)}")
    return [
        DeleteFailure(_text(error, "Key"), _text(error, "Code"), _text(error, "Message"))
        for error in root.iter(_tag(root, "Error"))
    ]


def delete_request(keys: Iterable[str]) -> bytes:
    """DeleteObjects, quiet: only failures are answered."""
    objects = "".join(f"<Object><Key>{_escaped(key)}</Key></Object>" for key in keys)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Quiet>true</Quiet>{objects}</Delete>"
    ).encode()


def complete_request(parts: Iterable[tuple[int, str]]) -> bytes:
    """CompleteMultipartUpload out of (number, ETag), ascending by number."""
    rows = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{_escaped(etag)}"</ETag></Part>' for number, etag in parts
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}</CompleteMultipartUpload>'
    ).encode()


def fits_xml(key: str) -> bool:
    """Whether XML 1.0 can carry the key; control characters it cannot, not even escaped."""
    return _NOT_XML.search(key) is None


def parse_time(text: str) -> float:
    """Unix seconds of an ISO 8601 moment; 0.0 where a server gives none."""
    if not text:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Corrupt(f"not a time: {text!r}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _first(text: str, name: str) -> str:
    """What the first element `name` holds, empty if there is none; for elements that occur once."""
    start = text.find(f"<{name}>")
    if start < 0:
        return ""
    start += len(name) + 2
    inner = text[start : text.find("<", start)]
    return (_root(f"<t>{inner}</t>".encode()).text or "") if "&" in inner else inner


def _root(body: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise Corrupt(f"not XML ({error}): {_shown(body)}") from error


def _tag(root: ElementTree.Element, name: str) -> str:
    """`name` in the root's namespace (servers differ in whether they state it)."""
    return f"{root.tag[: root.tag.index('}') + 1]}{name}" if root.tag.startswith("{") else name


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _text(element: ElementTree.Element, name: str) -> str:
    # White space is not trimmed: it may be part of a key.
    found = element.find(_tag(element, name))
    return (found.text or "") if found is not None else ""


def _url_decoded(text: str) -> str:
    # A blank is sent as `+` by some servers and as %20 by others; a plus sign is %2B with all of them.
    return unquote_plus(text) if "%" in text or "+" in text else text


def _escaped(text: str) -> str:
    # A bare carriage return would be read back as a line feed (XML 1.0 section 2.11).
    return escape(text, {"\r": "&#13;"})


def _bare_etag(text: str) -> str:
    return text.replace("&quot;", "").replace("&#34;", "").strip('"')


def _shown(body: bytes) -> str:
    return repr(body[:120].decode("utf-8", "replace"))
