"""A mirror of one of the lister's buckets: its base, as it would be after everything was mirrored, and a plan made of it.

One rule: what runs is what `cowsync plan` runs (`cowsync.work`, processes that list and compare, plan, guard), on a
configuration file and a folder like any other; only the base did not come from copying.

    python -m bench.mirror base DIRECTORY PORT OBJECTS          makes configuration and base
    python -m bench.mirror plan DIRECTORY PROCESSES             prints what the plan came to, as JSON
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from bench.lister import BLOCK, Bucket, size_of
from cowsync.apply.copy_line import Place
from cowsync.base.head import Head
from cowsync.base.layers import Layers
from cowsync.base.snapshot import Facts
from cowsync.base.state import State
from cowsync.changes import Op
from cowsync.mirror import Mirror, reader
from cowsync.plan.census import Census
from cowsync.plan.guard import Order
from cowsync.rows import Rows
from cowsync.scan.engine import Engine, InlineEngine, ProcessEngine
from cowsync.scan.listing import relative
from cowsync.scan.shard import ShardResult, ShardTask, scan_shard
from cowsync.work import make_plan
from s3core.bucket_stack import open_bucket
from s3core.build import build_store
from s3core.listing import parse_page
from s3core.settings import load_config

NAME = "bench"
CONFIG = "mirror.toml"


def configure(directory: Path, port: int, objects: int) -> None:
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
"""
    )


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


def make_base(directory: Path) -> None:
    mirror = open_mirror(directory)
    objects = int(mirror.settings.source.rpartition("-")[2])
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
    facts = Facts(1, "2026-01-01T00:00:00+00:00", mirror.settings.source, mirror.settings.target, ((b"", None),), notes)
    mirror.state.publish(Head(), mirrored(objects), facts)


@cache
def open_mirror(directory: Path) -> Mirror:
    """Once in each process: connections and segments are kept from piece to piece."""
    config = load_config(directory / CONFIG)
    settings = config.mirror(NAME)
    source, target = (Place(*open_bucket(url, config=config)) for url in (settings.source, settings.target))

    folder = Path(settings.state_dir)
    (folder / "state").mkdir(exist_ok=True)
    state = State(build_store(f"file://{folder / 'state'}"), folder / "segments")
    where = {"directory": str(directory)}
    return Mirror(NAME, settings, source, target, state, folder, scan_piece, where=where)


@cache
def _layers(directory: Path, name: str) -> Layers:
    return open_mirror(directory).state.snapshot(name).layers


def scan_piece(task: ShardTask) -> ShardResult:
    """In a process of the engine."""
    directory = Path(task.where["directory"])
    mirror = open_mirror(directory)
    read_base = reader(_layers(directory, task.where["base"]), mirror.state)
    return scan_shard(task, mirror.source.bucket, mirror.source.prefix, read_base, mirror.belongs)


def plan(directory: Path, processes: int) -> dict[str, Any]:
    engine: Engine = ProcessEngine(processes) if processes > 1 else InlineEngine()
    try:
        planned = make_plan(open_mirror(directory), engine)
    finally:
        engine.close()
    return {"digest": planned.plan.digest, "keys": planned.scan.keys, "shards": planned.scan.shards}


if __name__ == "__main__":
    action, folder_name, *rest = sys.argv[1:]
    if action == "base":
        configure(Path(folder_name), int(rest[0]), int(rest[1]))
        make_base(Path(folder_name))
    else:
        print(json.dumps(plan(Path(folder_name), int(rest[0]))))
