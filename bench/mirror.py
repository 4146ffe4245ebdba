"""A mirror of one of the lister's buckets: its configuration, and its base as it would be after everything was mirrored.

One rule: only the base's rows did not come from copying; it is published as every run publishes its own. What is measured on
it is the program `cowsync`.

    python -m bench.mirror DIRECTORY          makes the base of the configuration in that directory
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from bench.lister import BLOCK, Bucket, size_of
from cowsync.base.head import Head
from cowsync.base.snapshot import Facts
from cowsync.changes import Op
from cowsync.mirror import Mirror, opened
from cowsync.plan.census import Census
from cowsync.plan.guard import Order
from cowsync.rows import Rows
from cowsync.scan.listing import relative
from s3core.listing import parse_page
from s3core.settings import load_config

NAME = "bench"
CONFIG = "mirror.toml"


def configure(directory: Path, port: int, objects: int, scanners: int) -> Path:
    """The configuration file; `scanners` processes list and compare."""
    path = directory / CONFIG
    path.touch(mode=0o600)
    path.write_text(
        f"""
[endpoint.lister]
url = "http://127.0.0.1:{port}"
region = "us-east-1"
addressing = "path"
access_key = "bench"
secret_key = "bench"

[mirror.{NAME}]
source = "s3://lister/source-{objects}"
target = "s3://lister/mirror-{objects}"
state_dir = "{directory}"
scanners = {scanners}
"""
    )
    return path


def bodies(objects: int, per_thousand: int) -> Iterator[bytes]:
    """Every page of a source, as an answer's body."""
    bucket, after = Bucket(objects, per_thousand), b""
    while True:
        rows, _, after = bucket.page(b"", after, b"", BLOCK)
        token = b"<NextContinuationToken>%s</NextContinuationToken>" % after if after else b""
        yield (
            b"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>"
            % (
                b"true" if after else b"false",
                token,
                rows,
            )
        )
        if not after:
            return


def mirrored(objects: int) -> Iterator[Rows]:
    """Rows of a base: what the mirror holds has the ETags of the source, as copies that are no multipart uploads have."""
    for body in bodies(objects, 0):
        rows = relative(parse_page(body), b"")
        rows.mirror_etags = rows.etags
        yield rows


def make_base(mirror: Mirror) -> None:
    """Publish the first snapshot of a mirror of `source-N`: all of it is there, and nothing was planted yet."""
    settings = mirror.settings
    objects = int(settings.source.rpartition("-")[2])
    size = sum(map(size_of, range(BLOCK))) * (objects // BLOCK) + sum(map(size_of, range(objects % BLOCK)))
    census = Census(objects, size, {"data/": objects}, {"bin": objects})
    notes = {
        "plan": "",
        "census": census.to_json(),
        "counts": {str(op): objects if op is Op.ADD else 0 for op in Op},
        "keys": objects,
        "bytes": size,
        "order": str(Order.ASCENDING),
        "seconds": 0.0,
        "lines": objects,
        "moved": size,
    }
    facts = Facts(1, "2026-01-01T00:00:00+00:00", settings.source, settings.target, ((b"", None),), notes)
    mirror.state.publish(Head(), mirrored(objects), facts)


if __name__ == "__main__":
    with opened(load_config(Path(sys.argv[1]) / CONFIG), NAME) as one:
        make_base(one)
