"""An S3 Inventory in place of a listing: its files checked against the manifest, read and sorted by DuckDB.

One rule: an inventory is whole or it is an error. The manifest says which files there are and what their MD5 is; one that
is missing, damaged or of another bucket ends the import before a row is read. Memory is bounded: what does not fit is
sorted on disk, in a folder of the caller's.

Source: S3 User Guide, "Amazon S3 Inventory list" and "Locating your inventory list". Of all versions only the latest
counts, and no delete marker; keys are URL-encoded in CSV and plain in Parquet. CSV has no header: the manifest's
`fileSchema` names its columns.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cowsync.errors import Refused
from cowsync.rows import Rows
from cowsync.scan.filters import Belongs
from cowsync.scan.listing import Listed, wanted

if TYPE_CHECKING:
    import duckdb

MANIFEST = "manifest.json"
MEMORY = "512MiB"
"""What DuckDB may use. Sorting spills to disk beyond it."""
_BATCH = 5_000
_LINE_BYTES = 64 << 10
"""Room for a key of 1,024 bytes, each encoded as three, and every other column, many times over. DuckDB's buffers grow
with it."""
_NEEDED = {"key": "Key", "size": "Size", "etag": "ETag", "lastmodifieddate": "Last modified date"}
"""Columns that a plan cannot do without, in both spellings (`LastModifiedDate`, `last_modified_date`) made one, and
their names in the configuration of an inventory."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`files` lie on this host and are those that the manifest names, by their MD5. `created` is when S3 began to write
    the inventory, in Unix seconds; `columns` are those of a CSV, in order (of Parquet: none, its files name theirs)."""

    bucket: str
    created: float
    columns: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def moment(self) -> str:
        return datetime.fromtimestamp(self.created, UTC).isoformat(timespec="seconds")


def open_inventory(paths: Sequence[Path]) -> Inventory:
    """The inventory whose manifest is among `paths` or in a folder of them. Its files are looked for, by name, among
    `paths`, in those folders, beside the manifest, one folder up, and in `data` below each of these. Reads every file
    once, for its MD5. Refused for what is missing, damaged, or of a form that cannot be read."""
    manifest = _manifest_of(paths)
    document = _document(manifest)
    try:
        bucket, form = str(document["sourceBucket"]), str(document["fileFormat"])
        created, schema = int(str(document["creationTimestamp"])) / 1000, str(document["fileSchema"])
        entries = [(str(one["key"]), str(one["MD5checksum"]).lower()) for one in document["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{manifest} is not the manifest of an S3 Inventory: {error!r}") from error
    if form not in ("CSV", "Parquet"):
        raise Refused(
            f"{manifest} is of an inventory in {form}, which is not read here",
            hint="configure the inventory's format as CSV or Parquet",
        )
    folders = [path for path in paths if path.is_dir()] + [manifest.parent, manifest.parent.parent]
    named = {path.name: path for path in paths if not path.is_dir() and path != manifest}
    files = [_checked(_found(key, named, folders, manifest), md5) for key, md5 in entries]
    strangers = set(named.values()) - set(files)
    if strangers:
        raise Refused(f"{min(strangers)} is none of the files that {manifest} names")
    columns = tuple(_column(name) for name in schema.split(",")) if form == "CSV" else ()
    return Inventory(bucket, created, columns, tuple(files))


def inventory_rows(
    inventory: Inventory,
    prefix: str,
    listed: Listed,
    folder: Path,
    *,
    belongs: Belongs | None = None,
    memory: str = MEMORY,
) -> Iterator[Rows]:
    """The rows below `prefix`, ascending by the bytes of their keys, which are relative to it; `listed` is kept up to
    date. What the sort spills lies in `folder`; a crash leaves it to whoever removes the folder. Refused for a field
    that the inventory lacks, a key that comes twice, or what cannot be read."""
    if not inventory.files:
        listed.complete = True
        return
    try:
        import duckdb
    except ImportError as error:
        raise Refused(
            "reading an inventory needs DuckDB, which is not installed", hint="pip install 'bucketworks[inventory]'"
        ) from error
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": str(folder),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    try:
        with closing(duckdb.connect(":memory:", config=config)) as database:
            # Times of Parquet files are told in the zone of the session.
            database.execute("set TimeZone = 'UTC'")
            for page in _pages(database, inventory, prefix):
                rows = _rows(page, len(prefix.encode()), listed.reached)
                listed.reached = rows.keys[-1]
                rows = wanted(rows, belongs, listed)
                listed.keys += len(rows)
                listed.bytes_listed += sum(rows.sizes)
                if rows.keys:
                    yield rows
    except duckdb.Error as error:
        raise Refused(
            f"the inventory cannot be read: {str(error).splitlines()[0]}",
            hint="nothing was planned; fetch its files again, or take the next inventory",
        ) from error
    listed.complete = True


def _pages(database: "duckdb.DuckDBPyConnection", inventory: Inventory, prefix: str) -> Iterator[list[tuple[Any, ...]]]:
    files = [str(path) for path in inventory.files]
    if inventory.columns:
        columns = inventory.columns
        # A key may come in any case of %XX, a blank as `+` or `%20`.
        key = "url_decode(replace(key, '+', ' '))"
        modified = "lastmodifieddate"
        names = dict.fromkeys(columns, "VARCHAR")
        source = (
            f"read_csv($files, columns = {names!r}, header = false, auto_detect = false, delim = ',', quote = '\"', "
            f"escape = '\"', max_line_size = {_LINE_BYTES}, buffer_size = {32 * _LINE_BYTES})"
        )
    else:
        source = "read_parquet($files, binary_as_string = true)"
        described = database.execute(f"describe select * from {source}", {"files": files}).fetchall()
        spelled = {_column(str(row[0])): str(row[0]) for row in described}
        columns = tuple(spelled)
        key = "key"
        text = {str(row[0]): str(row[1]) == "VARCHAR" for row in described}
        modified = "lastmodifieddate"
        if not text.get(spelled.get(modified, ""), True):
            modified = f"strftime(cast({modified} as timestamp), '%Y-%m-%dT%H:%M:%S.%gZ')"
        renamed = ", ".join(f'"{name}" as "{column}"' for column, name in spelled.items())
        source = f"(select {renamed} from {source})"
    missing = [name for column, name in _NEEDED.items() if column not in columns]
    if missing:
        raise Refused(
            f"the inventory of {inventory.bucket} lacks {', '.join(missing)}",
            hint="add it to the fields of the inventory's configuration and take the next one",
        )
    version = "coalesce(versionid, '')" if "versionid" in columns else "''"
    storage = "coalesce(storageclass, '')" if "storageclass" in columns else "''"
    # An inventory of current versions has no such columns: every row counts.
    counts = [
        f"coalesce(lower(nullif(cast({column} as varchar), '')), '{default}') = '{wanted_value}'"
        for column, default, wanted_value in (("islatest", "true", "true"), ("isdeletemarker", "false", "false"))
        if column in columns
    ]
    conditions = " and ".join([*counts, f"starts_with({key}, $prefix)"])
    # A BLOB is ordered by its bytes, whatever collation text has.
    query = (
        f"select encode({key}) as name, cast(size as bigint), encode(trim(etag, '\"')), encode({modified}), "
        f"encode({version}), encode({storage}) from {source} where {conditions} order by name"
    )
    answer = database.execute(query, {"files": files, "prefix": prefix})
    while page := answer.fetchmany(_BATCH):
        yield page


def _rows(page: list[tuple[Any, ...]], stem: int, before: bytes) -> Rows:
    names, sizes, etags, modified, versions, classes = (list(column) for column in zip(*page, strict=True))
    keys = [name[stem:] for name in names] if stem else names
    for key, size, etag, moment in zip(keys, sizes, etags, modified, strict=True):
        if key == before and key:
            raise Refused(
                f"the inventory names the key {key.decode()!r} twice",
                hint="an inventory of all versions must have the field IsLatest; else take the next inventory",
            )
        if size is None or not etag or not moment:
            raise Refused(f"the inventory has no size, ETag or time for the key {key.decode()!r}")
        before = key
    empty, zeros = [b""] * len(keys), [0] * len(keys)
    return Rows(keys, sizes, etags, modified, versions, classes, empty, empty, zeros)


def _manifest_of(paths: Sequence[Path]) -> Path:
    found = [path / MANIFEST for path in paths if (path / MANIFEST).is_file()]
    found += [path for path in paths if path.name.endswith(".json") and path.is_file()]
    if len(found) != 1:
        raise Refused(
            f"there are {len(found)} manifests among the paths given, where there must be one",
            hint="name one manifest.json or the folder it lies in: without it nobody can tell whether files are missing",
        )
    return found[0]


def _document(manifest: Path) -> Mapping[str, Any]:
    data = manifest.read_bytes()
    checksum = manifest.with_name("manifest.checksum")
    if checksum.is_file() and checksum.read_text().strip().lower() != hashlib.md5(data).hexdigest():
        raise Refused(f"{manifest} is damaged: its MD5 is not that in {checksum.name}", hint="fetch it again")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise Refused(f"{manifest} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refused(f"{manifest} is not the manifest of an S3 Inventory: it is no JSON object")
    return document


def _found(key: str, named: Mapping[str, Path], folders: Sequence[Path], manifest: Path) -> Path:
    name = key.rpartition("/")[2]
    if name in named:
        return named[name]
    for folder in folders:
        for path in (folder / name, folder / "data" / name):
            if name and path.is_file():
                return path
    raise Refused(
        f"{manifest} names {key}, which is not here",
        hint="fetch all files that the manifest names and give them, or their folder, as further arguments",
    )


def _checked(path: Path, md5: str) -> Path:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != md5:
            raise Refused(f"{path} is damaged: its MD5 is not that in the manifest", hint="fetch it again")
    return path


def _column(name: str) -> str:
    """`Last_Modified_Date`, ` LastModifiedDate` and the like made one; nothing in it has a meaning in SQL."""
    return "".join(character for character in name.lower() if character.isascii() and character.isalnum())
