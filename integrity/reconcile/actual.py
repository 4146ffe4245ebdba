"""What a bucket has, from where it can be learned: its listing of versions, or an S3 Inventory.

One rule: a source is whole and in order, or it raises. Keys come whole, ascending by their bytes, all versions of each;
what could make an object look gone that is there (a page that repeats itself, a file that is missing) is an error.
"""

import csv
import gzip
import hashlib
import io
import json
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from integrity.errors import LedgerError, Malformed
from integrity.reconcile.join import whole_keys
from s3core.bucket import Bucket, ListedPage, ListedVersion, ListedVersions
from s3core.errors import Unsupported

_ROWS = 5_000
_FIELDS = ("key", "versionid", "islatest", "isdeletemarker", "size", "lastmodifieddate", "etag")


class Source(Protocol):
    """`moment` is the time as of which it tells, 0.0 for now."""

    moment: float

    def pieces(self, after: bytes, upto: bytes | None) -> Iterator[ListedVersions]:
        """The keys in (after, upto], whole, ascending. May be asked from several threads at once."""
        ...


class BucketListing:
    """The bucket itself, below `prefix`. Where it has no ListObjectVersions its current objects stand for versions."""

    moment = 0.0

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._plain = False

    @property
    def keeps_versions(self) -> bool:
        """Whether the bucket could be asked for versions."""
        return not self._plain

    def pieces(self, after: bytes, upto: bytes | None) -> Iterator[ListedVersions]:
        reached = b""
        for rows in whole_keys(_upto(self._pages(after.decode()), upto)):
            if sorted(rows.keys) != rows.keys or rows.keys[0] <= reached:
                raise LedgerError(
                    f"{self._bucket.url} lists keys out of order, near {rows.keys[0]!r}",
                    hint="such a bucket can be compared by an inventory: --inventory",
                )
            reached = rows.keys[-1]
            yield rows

    def versions_of(self, key: str) -> list[ListedVersion]:
        """All versions of one key as they are now, the newest first."""
        found: list[ListedVersion] = []
        if self._plain:
            page = self._bucket.list_page(prefix=key, max_keys=1)
            return [row for row in _as_versions(page) if row.key == key]
        key_marker, version_marker = "", ""
        while True:
            part = self._bucket.list_versions(prefix=key, key_marker=key_marker, version_marker=version_marker)
            own = [row for row in islice(part.versions, len(part.versions)) if row.key == key]
            found += own
            key_marker, version_marker = part.next_key_marker, part.next_version_marker
            # The key itself comes before all others that begin with it.
            if len(own) < len(part.versions) or not key_marker:
                return found

    def _pages(self, after: str) -> Iterator[ListedVersions]:
        if not self._plain:
            try:
                yield from self._version_pages(after)
            except Unsupported:
                self._plain = True
            else:
                return
        token = ""
        while True:
            page = self._bucket.list_page(prefix=self._prefix, start_after="" if token else after, token=token)
            yield _as_versions(page)
            if not page.truncated:
                return
            if page.token == token:
                raise LedgerError(f"{self._bucket.url}: the listing stands still after {page.last!r}")
            token = page.token

    def _version_pages(self, after: str) -> Iterator[ListedVersions]:
        marks = after, ""
        while True:
            page = self._bucket.list_versions(prefix=self._prefix, key_marker=marks[0], version_marker=marks[1])
            yield ListedVersions.of(page.versions)
            next_marks = page.next_key_marker, page.next_version_marker
            if not next_marks[0]:
                return
            if next_marks == marks:
                raise LedgerError(f"{self._bucket.url}: the listing of versions stands still after {marks[0]!r}")
            marks = next_marks


def _upto(pages: Iterator[ListedVersions], upto: bytes | None) -> Iterator[ListedVersions]:
    for page in pages:
        if upto is not None and page and page.keys[-1] > upto:
            yield ListedVersions.of(page[: bisect_right(page.keys, upto)])
            return
        yield page


def _as_versions(page: ListedPage) -> ListedVersions:
    count = len(page.keys)
    nothing = [b""] * count
    return ListedVersions(page.keys, nothing, [True] * count, [False] * count, page.sizes, page.etags, page.modified)


class Inventory:
    """An S3 Inventory of all versions as CSV, read once into a database in `folder`, which orders it. Source: S3 User
    Guide, "Amazon S3 Inventory list". Malformed for what is missing, damaged or of another form."""

    def __init__(self, manifest: Path, prefix: str, folder: Path) -> None:
        document = _manifest(manifest)
        try:
            if document["fileFormat"] != "CSV":
                raise Malformed(
                    f"{manifest}: is of an inventory in {document['fileFormat']}; only CSV is read here",
                    hint="configure the inventory's format as CSV",
                )
            columns = [_column(name) for name in str(document["fileSchema"]).split(",")]
            self.bucket = str(document["sourceBucket"])
            self.moment = int(str(document["creationTimestamp"])) / 1000
            files = [(str(one["key"]), str(one["MD5checksum"]).lower()) for one in document["files"]]
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"{manifest} is not the manifest of an S3 Inventory: {error!r}") from error
        missing = [name for name in _FIELDS if name not in columns]
        if missing:
            raise Malformed(
                f"{manifest}: the inventory lacks {', '.join(missing)}",
                hint="it must include all versions, and the fields Size, Last modified date and ETag",
            )
        self._path = folder / "inventory.sqlite"
        self._path.unlink(missing_ok=True)
        places = [columns.index(name) for name in _FIELDS]
        with closing(self._connect()) as base:
            base.execute("pragma journal_mode = off")
            base.execute("pragma synchronous = off")
            base.execute(
                "create table version (key blob, id text, latest, marker, size integer, modified text, etag text,"
                " primary key (key, id)) without rowid"
            )
            for name, md5 in files:
                path = _file_of(name, manifest, md5)
                base.executemany(
                    "insert into version values (?, ?, ?, ?, ?, ?, ?)", _rows(path, places, prefix.encode())
                )
            base.commit()

    def close(self) -> None:
        """Remove what was read. A crash leaves it to the next reading."""
        self._path.unlink(missing_ok=True)

    def pieces(self, after: bytes, upto: bytes | None) -> Iterator[ListedVersions]:
        return whole_keys(self._pages(after, upto))

    def _pages(self, after: bytes, upto: bytes | None) -> Iterator[ListedVersions]:
        behind = "" if upto is None else "and key <= ?"
        with closing(self._connect()) as base:
            found = base.execute(
                f"select key, id, latest, marker, size, etag, modified from version where key > ? {behind} order by key",
                (after,) if upto is None else (after, upto),
            )
            while rows := found.fetchmany(_ROWS):
                keys, ids, latest, markers, sizes, etags, modified = map(list, zip(*rows, strict=True))
                yield ListedVersions(
                    keys,
                    [one.encode() for one in ids],
                    list(map(bool, latest)),
                    list(map(bool, markers)),
                    sizes,
                    [one.encode() for one in etags],
                    [one.encode() for one in modified],
                )

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, check_same_thread=False)


def _rows(path: Path, places: Sequence[int], prefix: bytes) -> Iterator[tuple[Any, ...]]:
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        packed = path.suffix == ".gz"
        plain = stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw
        for row in csv.reader(io.TextIOWrapper(plain, encoding="utf-8", newline="")):
            try:
                key, version, latest, marker, size, modified, etag = (row[place] for place in places)
            except IndexError as error:
                raise Malformed(f"{path}: a row has {len(row)} fields: {row!r}") from error
            name = unquote_to_bytes(key.replace("+", " "))
            if name.startswith(prefix):
                gone = marker.lower() == "true"
                yield name, version, latest.lower() == "true", gone, int(size or 0), modified, etag.strip('"')


def _manifest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except ValueError as error:
        raise Malformed(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Malformed(f"{path} is not the manifest of an S3 Inventory: it is no JSON object")
    return document


def _file_of(key: str, manifest: Path, md5: str) -> Path:
    name = key.rpartition("/")[2]
    for folder in (manifest.parent, manifest.parent / "data", manifest.parent.parent / "data"):
        path = folder / name
        if name and path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() != md5:
                    raise Malformed(f"{path} is damaged: its MD5 is not that in the manifest", hint="fetch it again")
            return path
    raise Malformed(f"{manifest} names {key}, which is not here", hint="put it beside the manifest or in data/ there")


def _column(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
