"""What an object has beside its bytes, as HTTP headers and back: content headers, user metadata, tags.

One rule: what goes in comes out the same through any server, or is refused as ValueError before a request is made.
Metadata beyond printable ASCII travels as an encoded word (RFC 2047), which S3 documents for values it takes and gives
("Working with object metadata"); servers that do not know it keep the word as it is. Content headers beyond ASCII
travel as raw UTF-8. What servers answer is read in both forms.
"""

import base64
import re
import string
from collections.abc import Mapping
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import quote

from s3core.bucket import CONTENT_HEADERS, Attributes

METADATA_PREFIX = "x-amz-meta-"
DEFAULT_CONTENT_TYPE = "binary/octet-stream"
"""What S3 says of an object that was written without a content type."""
TAGS_MAX = 10
TAG_NAME_CHARACTERS_MAX = 128
TAG_VALUE_CHARACTERS_MAX = 256

_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_PLAIN = frozenset(string.digits + string.ascii_letters + string.punctuation + " ")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ENCODED_WORDS = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=(?:\s+=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=)*")


def check_attributes(attributes: Attributes) -> Attributes:
    """`attributes` as they are; ValueError names the first that no server would give back as it is."""
    for name, value in attributes.headers.items():
        if name not in CONTENT_HEADERS:
            raise ValueError(f"not a content header that an object keeps: {name!r}")
        if _CONTROL.search(value) or value != value.strip():
            raise ValueError(f"{name} must not have control characters or blanks at its ends: {value!r}")
    for name, value in attributes.metadata.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"a metadata name must be lower case and fit a header's name (RFC 9110): {name!r}")
        _check_text(f"metadata {name}", value)
    if len(attributes.tags) > TAGS_MAX:
        raise ValueError(f"an object has at most {TAGS_MAX} tags, not {len(attributes.tags)}")
    for name, value in attributes.tags.items():
        if not 1 <= len(name) <= TAG_NAME_CHARACTERS_MAX or len(value) > TAG_VALUE_CHARACTERS_MAX:
            raise ValueError(
                f"a tag's name has 1 to {TAG_NAME_CHARACTERS_MAX} characters and its value at most"
                f" {TAG_VALUE_CHARACTERS_MAX}: {name!r}"
            )
        _check_text(f"tag {name}", name + value)
    return attributes


def request_headers(attributes: Attributes) -> dict[str, str]:
    """The headers that give an object these attributes when it is written. ValueError as `check_attributes`."""
    check_attributes(attributes)
    headers = dict(attributes.headers)
    for name, value in attributes.metadata.items():
        headers[METADATA_PREFIX + name] = _encoded(value)
    if attributes.tags:
        headers["x-amz-tagging"] = "&".join(
            f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in attributes.tags.items()
        )
    return headers


def answered_attributes(headers: Mapping[str, str]) -> Attributes:
    """Content headers and metadata out of an answer's headers (lower-case names); tags are not among them."""
    return Attributes(
        headers={name: _as_utf8(headers[name]) for name in CONTENT_HEADERS if headers.get(name)},
        metadata={
            name[len(METADATA_PREFIX) :]: _decoded(value)
            for name, value in headers.items()
            if name.startswith(METADATA_PREFIX)
        },
    )


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} must be text that UTF-8 can encode: {text!r}") from error


def _encoded(value: str) -> str:
    if _PLAIN.issuperset(value) and value == value.strip() and not _ENCODED_WORDS.fullmatch(value):
        return value
    return f"=?UTF-8?B?{base64.b64encode(value.encode()).decode()}?="


def _decoded(value: str) -> str:
    if not _ENCODED_WORDS.fullmatch(value):
        return _as_utf8(value)
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value  # it only looks like an encoded word


def _as_utf8(value: str) -> str:
    """HTTP libraries read headers as Latin-1; servers send UTF-8 where they were given it."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except ValueError:
        return value
