"""The XML that S3 speaks, beside listings (`s3core.listing`): requests, results and errors.

One rule: bytes in, values out; an answer that is not what S3 documents raises `Corrupt` and is never taken for
an empty one.
Source: Amazon S3 API reference, DeleteObjects, CompleteMultipartUpload, "Error responses".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from s3core.errors import Corrupt
from s3core.write_options import RestoreTier, Retention

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


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


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_error(body: bytes) -> ErrorBody:
    """Never raises: what is not an error document gives an empty `ErrorBody`."""
    if b"<Error" not in body:
        return ErrorBody()
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return ErrorBody()
    # Identity services wrap it: <ErrorResponse><Error>. Below any other root (DeleteResult) it is about a part.
    kind = local_name(root.tag)
    error = root if kind == "Error" else root.find(named_tag(root, "Error")) if kind == "ErrorResponse" else None
    if error is None:
        return ErrorBody()
    return ErrorBody(
        code=child_text(error, "Code"),
        message=child_text(error, "Message"),
        region=child_text(error, "Region"),
        endpoint=child_text(error, "Endpoint"),
        server_time=child_text(error, "ServerTime"),
        request_id=child_text(error, "RequestId"),
    )


def parse_result(body: bytes, *elements: str) -> dict[str, str]:
    """The texts directly below a result document whose root must be one of `elements`."""
    root = xml_root(body)
    if local_name(root.tag) not in elements:
        raise Corrupt(f"expected {' or '.join(elements)}, got {shown_body(body)}")
    return {local_name(child.tag): (child.text or "").strip() for child in root}


def parse_delete_result(body: bytes) -> list[DeleteFailure]:
    root = xml_root(body)
    if local_name(root.tag) != "DeleteResult":
        raise Corrupt(f"expected DeleteResult, got {shown_body(body)}")
    return [
        DeleteFailure(child_text(error, "Key"), child_text(error, "Code"), child_text(error, "Message"))
        for error in root.iter(named_tag(root, "Error"))
    ]


def parse_tags(body: bytes) -> dict[str, str]:
    """The tags in the answer to GetObjectTagging; Ceph answers nothing at all where there never were any."""
    if not body:
        return {}
    root = xml_root(body)
    if local_name(root.tag) != "Tagging":
        raise Corrupt(f"expected Tagging, got {shown_body(body)}")
    return {child_text(tag, "Key"): child_text(tag, "Value") for tag in root.iter(named_tag(root, "Tag"))}


def tagging_request(tags: Mapping[str, str]) -> bytes:
    """PutObjectTagging: `tags` in place of those an object has."""
    rows = "".join(
        f"<Tag><Key>{_escaped(name)}</Key><Value>{_escaped(value)}</Value></Tag>" for name, value in tags.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Tagging xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<TagSet>{rows}</TagSet></Tagging>"
    ).encode()


def delete_request(keys: Iterable[str]) -> bytes:
    """DeleteObjects, quiet: only failures are answered."""
    objects = "".join(f"<Object><Key>{_escaped(key)}</Key></Object>" for key in keys)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Quiet>true</Quiet>{objects}</Delete>"
    ).encode()


def complete_request(parts: Sequence[tuple[int, str]], checksum: str = "", checksums: Sequence[str] = ()) -> bytes:
    """CompleteMultipartUpload out of (number, ETag), ascending by number, and with `checksum`, an algorithm, one for each."""
    name = f"Checksum{checksum.upper()}"
    sums = [f"<{name}>{text}</{name}>" for text in checksums] if checksum else [""] * len(parts)
    rows = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{_escaped(etag)}"</ETag>{text}</Part>'
        for (number, etag), text in zip(parts, sums, strict=True)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}</CompleteMultipartUpload>'
    ).encode()


def retention_request(retention: Retention | None) -> bytes:
    """PutObjectRetention; None takes it away."""
    rows = (
        f"<Mode>{retention.mode}</Mode><RetainUntilDate>{retention.until_text}</RetainUntilDate>" if retention else ""
    )
    return f'{_DECLARATION}<Retention xmlns="{_NAMESPACE}">{rows}</Retention>'.encode()


def legal_hold_request(on: bool) -> bytes:
    """PutObjectLegalHold."""
    return (
        f'{_DECLARATION}<LegalHold xmlns="{_NAMESPACE}"><Status>{"ON" if on else "OFF"}</Status></LegalHold>'
    ).encode()


def restore_request(days: int, tier: RestoreTier) -> bytes:
    """RestoreObject. ValueError for less than a day."""
    if days < 1:
        raise ValueError(f"an object is restored for 1 day or more, not {days}")
    return (
        f'{_DECLARATION}<RestoreRequest xmlns="{_NAMESPACE}"><Days>{days}</Days>'
        f"<GlacierJobParameters><Tier>{tier}</Tier></GlacierJobParameters></RestoreRequest>"
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


def xml_root(body: bytes) -> ElementTree.Element:
    """The document's root; Corrupt where it is none."""
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise Corrupt(f"not XML ({error}): {shown_body(body)}") from error


def named_tag(root: ElementTree.Element, name: str) -> str:
    """`name` in the root's namespace (servers differ in whether they state it)."""
    return f"{root.tag[: root.tag.index('}') + 1]}{name}" if root.tag.startswith("{") else name


def local_name(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]


def child_text(element: ElementTree.Element, name: str) -> str:
    """The text of the first child `name`, "" where there is none."""
    # White space is not trimmed: it may be part of a key.
    found = element.find(named_tag(element, name))
    return (found.text or "") if found is not None else ""


def _escaped(text: str) -> str:
    # A bare carriage return would be read back as a line feed (XML 1.0 section 2.11).
    return escape(text, {"\r": "&#13;"})


def bare_etag(text: str) -> str:
    """An ETag without its quotes."""
    return text.replace("&quot;", "").replace("&#34;", "").strip('"')


def shown_body(body: bytes) -> str:
    """The beginning of an answer, for messages."""
    return repr(body[:120].decode("utf-8", "replace"))
