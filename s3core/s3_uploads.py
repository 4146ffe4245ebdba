"""Uploads under way as S3 lists them: pages of ListMultipartUploads and ListParts, read into values.

Names are asked for as they are: Ceph encodes them here without saying so. A key with control characters, which XML cannot
carry, makes the page unreadable; prefixes keep others' keys out of it.

One rule: what is no such listing raises `Corrupt` and is never taken for an empty one: who clears away or resumes by an
answer that was cut would do either to the wrong uploads.
Source: Amazon S3 API reference, ListMultipartUploads, ListParts.
"""

from xml.etree import ElementTree

from s3core.bucket import ListedPart, ListedUpload, PartsPage, UploadsPage
from s3core.errors import Corrupt
from s3core.s3_xml import bare_etag, child_text, local_name, named_tag, parse_time, shown_body, xml_root


def parse_uploads(body: bytes) -> UploadsPage:
    """Corrupt for what is no such page."""
    root = _root(body, "ListMultipartUploadsResult")
    uploads = [
        ListedUpload(
            key=_needed(row, "Key"),
            upload_id=_needed(row, "UploadId"),
            initiated=parse_time(child_text(row, "Initiated")),
            storage_class=child_text(row, "StorageClass"),
        )
        for row in root.iter(named_tag(root, "Upload"))
    ]
    if not _truncated(root):
        return UploadsPage(uploads)
    key_marker, upload_marker = child_text(root, "NextKeyMarker"), child_text(root, "NextUploadIdMarker")
    if not key_marker:
        raise Corrupt("a listing of uploads is cut and does not say where it goes on")
    return UploadsPage(uploads, key_marker, upload_marker)


def parse_parts(body: bytes) -> PartsPage:
    root = _root(body, "ListPartsResult", "ListPartsResponse")  # the second is moto's
    parts = [
        ListedPart(
            number=_number(row, "PartNumber"),
            size=_number(row, "Size"),
            etag=bare_etag(child_text(row, "ETag")),
            checksums=_checksums(row),
        )
        for row in root.iter(named_tag(root, "Part"))
    ]
    if not _truncated(root):
        return PartsPage(parts)
    marker = _number(root, "NextPartNumberMarker")
    if not parts or marker < parts[-1].number:
        raise Corrupt("a listing of parts is cut and does not say where it goes on")
    return PartsPage(parts, marker)


def _root(body: bytes, *elements: str) -> ElementTree.Element:
    root = xml_root(body)
    if local_name(root.tag) not in elements:
        raise Corrupt(f"expected {elements[0]}, got {shown_body(body)}")
    return root


def _truncated(root: ElementTree.Element) -> bool:
    text = child_text(root, "IsTruncated")
    if text not in ("true", "false"):
        raise Corrupt(f"a listing must say whether it is cut, not {text!r}")
    return text == "true"


def _needed(row: ElementTree.Element, name: str) -> str:
    text = child_text(row, name)
    if not text:
        raise Corrupt(f"a listed upload has no {name}")
    return text


def _number(element: ElementTree.Element, name: str) -> int:
    text = child_text(element, name)
    if not text.isdecimal():
        raise Corrupt(f"{name} must be a number, not {text!r}")
    return int(text)


def _checksums(row: ElementTree.Element) -> dict[str, str]:
    named = ((local_name(child.tag), (child.text or "").strip()) for child in row)
    return {
        name.removeprefix("Checksum").lower(): text
        for name, text in named
        if name.startswith("Checksum") and text and name not in ("ChecksumAlgorithm", "ChecksumType")
    }
