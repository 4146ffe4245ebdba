"""The parsers of feeds: their lines come from servers, and what is in them from whoever sends requests to those."""

import json
from collections.abc import Callable

from integrity.ingest.events import Options, identity_of
from integrity.ingest.feeds import FEEDS
from integrity.record import decode, encode
from tests.integrity.ingest.samples import access, lines

ALL = Options(endpoint="here", reads=True, operation="copy", bucket="mirror", prefix="p/")


def feed(name: str) -> Callable[[bytes], None]:
    """Whatever is read can be a record, or is told why it cannot be an event."""
    parse = FEEDS[name].parse

    def target(data: bytes) -> None:
        found = parse(data, ALL)
        for event in found.events:
            record = decode(encode(event, writer="w.1", n=0, at="2026-01-01T00:00:00.000000Z", after=bytes(32)))
            assert identity_of(record) == identity_of(event)
            assert len(record.get("key", "").encode()) <= 4096
        assert all(found.wrong)
        assert found.left >= 0

    return target


ONCE = (
    json.dumps("\ud800").encode(),
    b'{"Records":[{}]}',
    access().replace(b"TLSv1.3 - -", b"TLSv1.3 \xff\xfe -"),
)
"""What once was not understood."""
SEEDS = {name: (*samples, b"\n".join(samples), b"", *ONCE) for name, samples in lines().items()}
