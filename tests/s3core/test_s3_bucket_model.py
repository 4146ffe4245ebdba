"""The bucket in memory says what a real server says: the same random calls to both, the same answers."""

import random
import uuid
from collections.abc import Callable

import pytest

from s3core.bucket import Attributes, Bucket, CopySource, Written
from s3core.endpoint import Endpoint
from s3core.errors import StoreError
from s3core.memory_bucket import MemoryBucket, MemoryService
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.radosgw import Radosgw

CALLS = 250
KEYS = ("a", "a b", "a+b", "a/", "a/1", "a/2", "b&", "b/%", "/c", "\u00e4")


class Both:
    """Two buckets on each of two services; version ids and upload ids of one service stand for those of the other."""

    def __init__(self, real: tuple[Bucket, Bucket], memory: tuple[MemoryBucket, MemoryBucket], seed: int) -> None:
        self.services: tuple[tuple[Bucket, Bucket], ...] = (real, memory)
        self.memory = memory
        self.random = random.Random(seed)
        self.versions: list[tuple[int, str, tuple[str, str]]] = []  # which bucket, key, id on each service
        self.etags = ["0" * 32]

    def step(self) -> tuple[str, list[object]]:
        """One random call to both; what it was, and what each said."""
        chosen = self.random
        at, key = chosen.randrange(2), chosen.choice(KEYS)
        other, name = chosen.choice(KEYS), chosen.randrange(2)
        body = bytes(chosen.randrange(4))
        rich = Attributes(metadata={"n": str(chosen.randrange(9))}, tags={"t": str(chosen.randrange(9))})
        attributes = chosen.choice([Attributes(), rich])
        etag = chosen.choice(self.etags)
        condition = chosen.choice(["", "", etag])
        known = [version for version in self.versions if version[0] == at and version[1] == key]
        version = chosen.choice(known)[2] if known and chosen.random() < 0.5 else ("", "")
        offset, length = chosen.randrange(4), chosen.choice([-1, 1, 2])
        delimiter, max_keys = chosen.choice(["", "/"]), chosen.choice([1, 3, 1000])
        calls: dict[str, Callable[[tuple[Bucket, Bucket], int], object]] = {
            "put": lambda to, _: self._wrote(to[at].put(key, body, attributes=attributes)),
            "copy": lambda to, _: self._wrote(
                to[at].copy(CopySource(to[name].properties.name, other, if_match=condition), key)
            ),
            "replace": lambda to, _: self._wrote(
                to[at].copy(CopySource(to[name].properties.name, other), key, attributes=attributes)
            ),
            "delete": lambda to, _: ("", to[at].delete(key)),
            "get": lambda to, which: to[at].get(key, if_match=condition, version_id=version[which]),
            "range": lambda to, which: to[at].get(key, offset=offset, length=length, version_id=version[which]),
            "head": lambda to, which: self._looked(to[at], key, version[which]),
            "tags": lambda to, which: to[at].tags(key, version_id=version[which]),
            "list": lambda to, _: self._listed(to[at], other[:1], key, delimiter, max_keys),
        }
        call = chosen.choice(list(calls))
        if call == "delete" and key not in self.memory[at].contents():
            call = "head"  # AWS leaves a delete marker where there is nothing, other servers do not
        said: list[object] = []
        ids: list[str] = []
        for which, buckets in enumerate(self.services):
            try:
                answer = calls[call](buckets, which)
            except StoreError as error:
                answer = type(error).__name__
            if call in ("put", "copy", "replace", "delete") and isinstance(answer, tuple):
                written, version_id = answer
                ids.append(version_id)
                self.etags.append(written)
                answer = (written, bool(version_id))
            said.append(answer)
        if len(ids) == 2 and all(ids):
            self.versions.append((at, key, (ids[0], ids[1])))
        shown = f"{call} bucket={at} key={key!r} from={name}:{other!r} if_match={condition!r} version={version}"
        return f"{shown} {attributes} {offset}+{length} {delimiter!r} {max_keys}", said

    @staticmethod
    def _wrote(written: Written) -> tuple[str, str]:
        return written.etag, written.version_id

    @staticmethod
    def _looked(bucket: Bucket, key: str, version_id: str) -> object:
        facts = bucket.head(key, version_id=version_id)
        return facts.size, facts.etag, facts.tag_count, facts.attributes.metadata

    @staticmethod
    def _listed(bucket: Bucket, prefix: str, after: str, delimiter: str, max_keys: int) -> object:
        if delimiter:  # with both, servers differ in which common prefixes they begin
            after = ""
        page = bucket.list_page(prefix=prefix, start_after=after, delimiter=delimiter, max_keys=max_keys)
        return page.keys, page.sizes, page.etags, page.prefixes, page.truncated


def compare(endpoint: Endpoint, *, versioned: bool, seed: int) -> None:
    control = S3Control(endpoint)
    service = MemoryService()
    names = [f"model-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        control.create_bucket(name)
        if versioned:
            control.set_versioning(name, True)
    control.close()
    real = [S3Bucket(endpoint, name) for name in names]
    memory = [service.bucket(name, versioned=versioned) for name in names]
    both = Both((real[0], real[1]), (memory[0], memory[1]), seed)
    trace: list[str] = []
    for _ in range(CALLS):
        call, (theirs, ours) = both.step()
        trace.append(call)
        assert theirs == ours, "\n".join(trace[-8:])
    for bucket in real:
        bucket.close()


@pytest.mark.rgw
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versioned"])
def test_radosgw_says_what_memory_says(radosgw: Radosgw, versioned: bool, seed: int) -> None:
    compare(radosgw.endpoint(), versioned=versioned, seed=seed)
