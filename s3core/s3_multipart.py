"""An upload in parts to S3: begin, parts from many threads, then complete or abort.

One rule: the object appears at `complete` and not before; `complete` whose answer is lost is `OutcomeUnknown`,
because a second one would be told that the upload does not exist.
Source: Amazon S3 API reference, CreateMultipartUpload, UploadPart, CompleteMultipartUpload.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from s3core.errors import NotFound
from s3core.keys import check_part_number
from s3core.s3_faults import ABORT, UPLOAD, Act
from s3core.s3_http import Answer
from s3core.s3_xml import complete_request, parse_result
from s3core.signing import Query
from s3core.store import Buffer, ObjectInfo


class Request(Protocol):
    """How the store makes a request for a key; see `S3Store`."""

    def __call__(
        self,
        act: Act,
        method: str,
        key: str | None,
        *,
        query: Query = ...,
        headers: dict[str, str] | None = ...,
        body: Buffer | Sequence[Buffer] | None = ...,
    ) -> Answer: ...


class S3MultipartUpload:
    def __init__(self, key: str, upload_id: str, request: Request, head: Callable[[str], ObjectInfo]) -> None:
        self.key = key
        self.upload_id = upload_id
        self._request = request
        self._head = head
        self._lock = threading.Lock()
        self._etags: dict[int, str] = {}  # by part number; under _lock
        self._aborted = False

    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        check_part_number(number)
        self._check_open()
        query = [("partNumber", str(number)), ("uploadId", self.upload_id)]
        answer = self._request(UPLOAD, "PUT", self.key, query=query, body=data)
        etag = answer.headers.get("etag", "").strip('"')
        with self._lock:
            self._etags[number] = etag
        return etag

    def complete(self) -> str:
        self._check_open()
        with self._lock:
            parts = sorted(self._etags.items())
        if not parts:
            raise ValueError(f"{self.key}: an upload needs at least one part")
        query = [("uploadId", self.upload_id)]
        headers = {"content-type": "application/xml"}
        answer = self._request(UPLOAD, "POST", self.key, query=query, headers=headers, body=complete_request(parts))
        etag = parse_result(answer.body, "CompleteMultipartUploadResult").get("ETag", "").strip('"')
        # Ceph names no ETag here; the object has one.
        return etag or self._head(self.key).etag

    def abort(self) -> None:
        try:
            self._request(ABORT, "DELETE", self.key, query=[("uploadId", self.upload_id)])
        except NotFound as gone:
            if not gone.key:  # the bucket itself
                raise
        self._aborted = True

    def _check_open(self) -> None:
        # Not left to the server: Ceph and moto answer 500 for an upload they do not know, which leaves it open.
        if self._aborted:
            raise NotFound("the upload was aborted", key=self.key)
