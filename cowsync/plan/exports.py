"""A plan in the forms that other engines take.

    jsonl      plan.jsonl                   every line, every field
    parquet    plan.parquet                 the same as columns (needs the extra `parquet`)
    s3-batch   copy.csv, copy-versions.csv  manifests of S3 Batch Operations, for a job that copies
               large.jsonl                  what is above the 5 GiB of one CopyObject
    rclone     files-from-NNNNN.txt         `rclone copy --no-traverse --files-from-raw`, 10,000 keys each
               files-from.nul               the same keys and those with line ends, each ended by a NUL
    s5cmd      s5cmd-run.txt                `s5cmd run`
    datasync   manifest.csv                 manifest of AWS DataSync
    delete     delete.jsonl                 what is to be removed from the mirror; no other form has it

One rule: a key that a form cannot carry is in `unable.jsonl` with the reason, and counted; nothing is dropped silently.
What copies holds ADD and MODIFY lines alone. No form but jsonl and parquet carries the ETag that an apply here insists
on: an object that changed meanwhile is copied as it is by then, and the next scan sees it.
"""

import csv
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_plus

from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused
from cowsync.plan.format import line_document
from cowsync.plan.plan_file import TEMPORARY, Plan, sync_folder
from s3core.bucket import COPY_BYTES_MAX
from s3core.build import StoreUrl, parse_store_url

PIECE_LINES = 10_000
_PARQUET_ROWS = 64 << 10
_UNABLE = "unable.jsonl"


class Format(StrEnum):
    JSONL = "jsonl"
    PARQUET = "parquet"
    S3_BATCH = "s3-batch"
    RCLONE = "rclone"
    S5CMD = "s5cmd"
    DATASYNC = "datasync"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Exported:
    """`files` are names in `folder` with the number of lines in each. `unable`: how many lines the form cannot carry
    and `unable.jsonl` has. `left_out`: how many lines are not of a kind that the form is for. `notes` are sentences on
    how the files are to be used."""

    folder: Path
    files: dict[str, int]
    unable: int
    left_out: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "files": self.files,
            "unable": self.unable,
            "left_out": self.left_out,
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class _Files:
    """Files of one export that are being written, opened when their first line comes."""

    folder: Path
    stack: ExitStack
    lines: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    _open: dict[str, IO[bytes]] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        if name not in self._open:
            self._open[name] = self.stack.enter_context((self.folder / name).open("xb"))
            self.lines[name] = 0
        self._open[name].write(data)
        self.lines[name] += 1

    def put_json(self, name: str, number: int, line: PlanLine, **more: str) -> None:
        document = {"number": number, **line_document(line), **more}
        self.put(name, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def unable(self, number: int, line: PlanLine, why: str) -> None:
        self.put_json(_UNABLE, number, line, unable=why)

    def close(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()


def export(plan: Plan, form: Format, folder: Path, *, piece_lines: int = PIECE_LINES) -> Exported:
    """Write the plan below `folder`, which must not exist yet (Refused). StateDamaged as the plan has it.

    On return the files are there under their names. A crash before that leaves a folder `.new-*` beside, to be deleted
    by hand: nobody takes it for an export."""
    if plan.head.versions and form not in (Format.JSONL, Format.PARQUET):
        raise Refused(
            f"a plan of all versions needs the versions of a key in their order, which {form} does not keep",
            hint="use `cowsync apply`; jsonl and parquet show such a plan",
        )
    if folder.exists():
        raise Refused(f"{folder} exists already", hint="name a folder that is not there yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        with ExitStack() as stack:
            files = _Files(temporary, stack)
            notes = _WRITERS[form](plan, files, piece_lines)
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Exported(
        folder,
        {name: count for name, count in files.lines.items() if name != _UNABLE},
        files.lines.get(_UNABLE, 0),
        files.left_out,
        notes,
    )


# --- whole plans ------------------------------------------------------------------------------------------------------


def _jsonl(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    for number, line in plan.read():
        files.put_json("plan.jsonl", number, line)
    return ()


def _parquet(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Refused(
            "writing Parquet needs pyarrow, which is not installed", hint="pip install 'bucketworks[parquet]'"
        ) from error
    kinds = {int: pyarrow.int64(), bool: pyarrow.bool_(), str: pyarrow.string()}
    sample = {"number": 0, **line_document(PlanLine(Op.ADD, "", 0, "", ""))}
    schema = pyarrow.schema([(name, kinds.get(type(value), kinds[str])) for name, value in sample.items()])
    path = files.folder / "plan.parquet"
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        held: list[dict[str, Any]] = []
        for number, line in plan.read():
            held.append({"number": number, **line_document(line), "op": line.op.value})
            if len(held) == _PARQUET_ROWS:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(held, schema))
                held.clear()
        writer.write_batch(pyarrow.RecordBatch.from_pylist(held, schema))
    files.lines["plan.parquet"] = len(plan)
    return ()


def _delete(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    for number, line in plan.read():
        if line.op is Op.REMOVE:
            files.put_json("delete.jsonl", number, line)
        else:
            files.left_out += 1
    return ("Never delete a version: a delete marker or a move keeps what you may want back.",)


# --- copies -----------------------------------------------------------------------------------------------------------


def _copies(plan: Plan, files: _Files) -> Iterator[tuple[int, PlanLine]]:
    for number, line in plan.read():
        if line.op in (Op.ADD, Op.MODIFY):
            yield number, line
        else:
            files.left_out += 1


def _s3_batch(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    """CSV without header: bucket, key as in a form (`quote_plus`), version id (S3 User Guide, "Specifying a manifest").
    Versions have a file of their own, since every line of a manifest has the same columns."""
    source, target = _bucket(plan.head.source, "s3-batch"), _bucket(plan.head.target, "s3-batch")
    source_prefix, target_prefix = _prefix(source), _prefix(target)
    if not target_prefix.endswith(source_prefix):
        raise Refused(
            f"S3 Batch Operations put a prefix before whole keys, so {plan.head.source} cannot become"
            f" {plan.head.target}",
            hint=f"the target's prefix must end with the source's, {source_prefix!r}; or use another engine",
        )
    for number, line in _copies(plan, files):
        key = quote_plus(source_prefix + line.key, safe="/")
        if line.size > COPY_BYTES_MAX:
            files.put_json("large.jsonl", number, line)
        elif line.version_id:
            files.put("copy-versions.csv", _csv(source.bucket, key, line.version_id))
        else:
            files.put("copy.csv", _csv(source.bucket, key))
    before = target_prefix.removesuffix(source_prefix)
    notes = [f"The job's target is bucket {target.bucket}" + (f", TargetKeyPrefix {before}." if before else ".")]
    if "copy-versions.csv" in files.lines:
        notes.append("The fields of copy-versions.csv are Bucket, Key, VersionId; those of copy.csv Bucket, Key.")
    if "large.jsonl" in files.lines:
        notes.append("large.jsonl is above 5 GiB, which no job copies: leave it to `cowsync apply`.")
    return (*notes, "Give the completion report, for all tasks, to `cowsync import-results`.")


def _rclone(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    written = 0
    for number, line in _copies(plan, files):
        key, why = line.key, _not_for_rclone(line.key)
        if why:
            files.unable(number, line, why)
        else:
            if written and written % piece_lines == 0:
                files.close(_piece(written // piece_lines - 1))
            files.put(_piece(written // piece_lines), key.encode() + b"\n")
            written += 1
        if "\0" not in key:
            files.put("files-from.nul", key.encode() + b"\0")
    return (
        "For each piece: rclone copy --no-traverse --files-from-raw PIECE SOURCE: TARGET: with remotes at"
        f" {plan.head.source} and {plan.head.target}.",
        "Say --ignore-times, since rclone's own comparison would leave out what it thinks is equal.",
    )


def _piece(number: int) -> str:
    return f"files-from-{number:05}.txt"


def _not_for_rclone(key: str) -> str:
    """Why `--files-from-raw` cannot name `key`, "" where it can. Lines lose a CR at their end, paths lose slashes at both
    ends and are cleaned of `//`, `.` and `..`; signs that rclone writes in place of others are read as those."""
    if "\n" in key:
        return "has a line feed"
    if key.endswith("\r"):
        return "ends with a carriage return"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "has an empty part, or one that is . or .."
    for sign in key:
        if sign < " " or sign == "\x7f" or "\u2400" <= sign <= "\u2421" or sign in "\uff0f\uff0e\u201b":
            return f"has the sign U+{ord(sign):04X}, which rclone writes otherwise"
    return ""


def _s5cmd(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    source, target = _bucket(plan.head.source, "s5cmd"), _bucket(plan.head.target, "s5cmd")
    if source.name != target.name:
        raise Refused(
            f"s5cmd copies within one endpoint, and {plan.head.source} and {plan.head.target} are on two",
            hint="use rclone, or `cowsync apply`",
        )
    for number, line in _copies(plan, files):
        from_key, to_key = _prefix(source) + line.key, _prefix(target) + line.key
        why = _not_for_s5cmd(from_key) or _not_for_s5cmd(to_key)
        if why:
            files.unable(number, line, why)
            continue
        words = ["cp", "--raw", *(["--version-id", line.version_id] if line.version_id else [])]
        words += [f"s3://{source.bucket}/{from_key}", f"s3://{target.bucket}/{to_key}"]
        files.put("s5cmd-run.txt", shlex.join(words).encode() + b"\n")
    return ("s5cmd --endpoint-url URL run s5cmd-run.txt, with version 2 or later.",)


def _not_for_s5cmd(key: str) -> str:
    """Why a line of `s5cmd run` cannot name `key`: it takes one line for a command, a slash at the end for a folder, and
    `://` for the end of the scheme; slashes at the beginning it drops."""
    if "\n" in key or "\0" in key:
        return "has a line feed or a NUL"
    if key.startswith("/") or key.endswith("/"):
        return "begins or ends with a slash"
    return "has ://" if "://" in key else ""


def _datasync(plan: Plan, files: _Files, piece_lines: int) -> tuple[str, ...]:
    """CSV: key relative to the location, and the version id where there is one (DataSync User Guide, "Creating a
    manifest")."""
    for number, line in _copies(plan, files):
        if "\n" in line.key or "\r" in line.key or "\0" in line.key:
            files.unable(number, line, "has a line end or a NUL")
        elif line.key.endswith("/"):
            files.unable(number, line, "ends with a slash, which is a folder")
        else:
            files.put("manifest.csv", _csv(line.key, *([line.version_id] if line.version_id else [])))
    return (f"The task's locations are {plan.head.source} and {plan.head.target}, prefixes included.",)


_WRITERS: dict[Format, Callable[[Plan, _Files, int], tuple[str, ...]]] = {
    Format.JSONL: _jsonl,
    Format.PARQUET: _parquet,
    Format.S3_BATCH: _s3_batch,
    Format.RCLONE: _rclone,
    Format.S5CMD: _s5cmd,
    Format.DATASYNC: _datasync,
    Format.DELETE: _delete,
}


def _csv(*fields: str) -> bytes:
    buffer = _Line()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.data


class _Line:
    """What `csv.writer` writes one row to."""

    data = b""

    def write(self, text: str) -> int:
        self.data += text.encode()
        return len(text)


def _bucket(url: str, form: str) -> StoreUrl:
    place = parse_store_url(url)
    if place.scheme != "s3":
        raise Refused(f"{url} is not in S3, so {form} cannot reach it", hint="use `cowsync apply`")
    return place


def _prefix(place: StoreUrl) -> str:
    return f"{place.path}/" if place.path else ""
