"""Notifications as servers write them."""

import json
from typing import Any
from urllib.parse import quote_plus


def record(key: str, bucket: str = "source", name: str = "ObjectCreated:Put", **more: Any) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "eventName": name,
        "s3": {
            "bucket": {"name": bucket},
            "object": {"key": quote_plus(key), "size": 1, "eTag": "e", "sequencer": "0055AED6DCD90281E5"},
        },
    } | more


def notice(*keys: str, bucket: str = "source") -> bytes:
    """One line with its end."""
    return json.dumps({"Records": [record(key, bucket) for key in keys]}).encode() + b"\n"
