"""What an upload in parts leaves on disk while it is under way, one file each: `uploads/TOKEN.journal`, a JSON object a line.

    {"journal": 1, "token", "key", "plan", "began", "source"?, "sealing"?}     first, before the upload is begun
    {"upload": ID}                                                            S3 has begun it
    {"sending": number, "md5"}                                                sealed files only: these bytes may leave now
    {"part": number, "size", "etag", "md5", "crc32"?, "sha256"?}               S3 has it
    {"completing": true}

One rule: whoever writes a journal holds its lock (flock), so that a journal that can be locked belongs to nobody living.

| a crash after | leaves | repaired by |
| --- | --- | --- |
| the first line | a journal without an upload | `clean_up` removes it |
| S3 began it, the id was not noted | an upload nobody knows | the bucket's lifecycle rule (AbortIncompleteMultipartUpload) |
| any later line | an upload with parts that nobody sees | of a file: the next call goes on; of a stream: `clean_up` aborts it |
| S3 completed it | the object, whole; a journal | `clean_up` |

Lines about parts are not synced: what is lost with the power is told by S3 (ListParts). The first, the id and `sending` are.
No secrets: a customer's key is asked for again, a salt is public.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plugin.upload.plan import PartPlan
from s3core.digests import Digests

VERSION = 1
SUFFIX = ".journal"
_UNWRITTEN_S = 3600.0
"""A journal without its first line is somebody's who is about to write it, or by now a dead process's."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which file, as it was."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, found: os.stat_result) -> "Source":
        return cls(os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True, slots=True)
class SealedWith:
    """What makes sealing the same bytes again possible: the data key's id and the object's salt."""

    key_id: str
    salt: str


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that S3 has."""

    number: int
    size: int
    etag: str
    digests: Digests


@dataclass(slots=True)
class Record:
    """What a journal tells."""

    token: str
    key: str
    plan: PartPlan
    began: float
    source: Source | None = None
    sealing: SealedWith | None = None
    upload_id: str = ""
    parts: dict[int, SentPart] = field(default_factory=dict)
    sending: dict[int, str] = field(default_factory=dict)
    """MD5 of the sealed part that may have left, by number."""
    completing: bool = False


class Journal:
    """One upload's, locked while this lives. Lines may be written by several threads: each is one write."""

    def __init__(self, path: Path, file: int, record: Record) -> None:
        self.record = record
        self._path = path
        self._file = file

    @classmethod
    def create(cls, directory: Path, record: Record) -> "Journal":
        """Durable on return. OSError."""
        path = directory / f"{record.token}{SUFFIX}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        journal = cls(path, file, record)
        first: dict[str, Any] = {
            "journal": VERSION,
            "token": record.token,
            "key": record.key,
            "plan": record.plan.text,
            "began": record.began,
        }
        for name in ("source", "sealing"):
            if (value := getattr(record, name)) is not None:
                first[name] = asdict(value)
        journal._append(first, sync=True)
        _sync_directory(directory)
        return journal

    @classmethod
    def take(cls, path: Path) -> "Journal | None":
        """The journal of a process that is gone; None where it lives, or the journal does not or says nothing."""
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = os.pread(file, os.fstat(file).st_size, 0)
            record = _read(data) if os.fstat(file).st_nlink else None
            if b"\n" in data:
                os.ftruncate(file, data.rfind(b"\n") + 1)  # a line that a crash cut
            elif time.time() - os.fstat(file).st_mtime > _UNWRITTEN_S:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            record = None
        except OSError:
            os.close(file)
            raise
        if record is None:
            os.close(file)
            return None
        return cls(path, file, record)

    def begun(self, upload_id: str) -> None:
        self.record.upload_id = upload_id
        self._append({"upload": upload_id}, sync=True)

    def sending(self, number: int, md5: str) -> None:
        self.record.sending[number] = md5
        self._append({"sending": number, "md5": md5}, sync=True)

    def sent(self, part: SentPart) -> None:
        self.record.parts[part.number] = part
        line: dict[str, Any] = {"part": part.number, "size": part.size, "etag": part.etag}
        self._append(line | {name: value.hex() for name, value in _known(part.digests)})

    def completing(self) -> None:
        self.record.completing = True
        self._append({"completing": True})

    def close(self) -> None:
        """Let others take it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def remove(self) -> None:
        """The upload is over."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
        self.close()

    def _append(self, line: dict[str, Any], *, sync: bool = False) -> None:
        if self._file < 0:
            return  # it is over: a part that came late is nobody's business
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if sync:
            os.fdatasync(self._file)


def journals(directory: Path) -> Iterator[Journal]:
    """Those of dead processes, oldest name first; each is to be closed or removed by who asked."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        journal = Journal.take(path)
        if journal is not None:
            yield journal


def _known(digests: Digests) -> Iterator[tuple[str, bytes]]:
    for name in ("md5", "sha256", "crc32"):
        if value := getattr(digests, name):
            yield name, value


def _read(data: bytes) -> Record | None:
    """What can be read of it: a crash may cut the last line."""
    record: Record | None = None
    for line in data.split(b"\n")[:-1]:
        try:
            record = _applied(record, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            return record
        if record is None:
            return None
    return record


def _applied(record: Record | None, line: dict[str, Any]) -> Record | None:
    if record is None:
        plan = PartPlan.parse(line["plan"])
        if line["journal"] != VERSION or plan is None:
            return None
        source = Source(**line["source"]) if "source" in line else None
        sealing = SealedWith(**line["sealing"]) if "sealing" in line else None
        return Record(line["token"], line["key"], plan, line["began"], source, sealing)
    if "upload" in line:
        record.upload_id = line["upload"]
    elif "sending" in line:
        record.sending[line["sending"]] = line["md5"]
    elif "part" in line:
        digests = Digests(*(bytes.fromhex(line.get(name, "")) for name in ("md5", "sha256", "crc32")))
        record.parts[line["part"]] = SentPart(line["part"], line["size"], line["etag"], digests)
    elif "completing" in line:
        record.completing = True
    return record


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
