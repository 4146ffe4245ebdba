"""Each format with a version of its own: what this program writes and reads, and what it says to a newer one.

The table of docs/upgrade.md is this one; `tests/formats/test_versions.py` holds the page to it, and has each format written as
if by a newer program, and read by this one.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest.mock import patch

from blockdev.engine.cache_table import HEADER_BYTES, decode_header
from blockdev.journal import format as journal_format
from blockdev.units import BLOCK_BYTES
from cowsync import catalogue
from cowsync.apply import journal_format as apply_journal
from cowsync.plan import format as plan_format
from cowsync.sealing import format as sealing_format
from envctl.homes import documents
from integrity import record as ledger_record
from integrity.verification import pins
from tests.formats import test_golden_local as local
from tests.formats.specimens import GOLDEN, SPECIMENS, path_of

NEWER: Final = 99
BUCKET, HOST = "the bucket", "the host"


@dataclass(frozen=True, slots=True)
class Format:
    """`version` is MODULE:NAME of the number that is written; `lies` in the bucket, where other hosts read it, or on one host.
    `says` is of the message to a newer version; `read` reads one, and raises with that."""

    name: str
    of: str
    lies: str
    version: str
    reads: str
    says: str
    read: Callable[[], object]

    @property
    def writes(self) -> int:
        module, _, name = self.version.partition(":")
        number: int = getattr(import_module(module), name)
        return number


@contextmanager
def newer(version: str) -> Iterator[None]:
    module, _, name = version.partition(":")
    with patch.object(import_module(module), name, NEWER):
        yield


def specimen(name: str, version: str) -> Callable[[], object]:
    (found,) = [one for one in SPECIMENS if path_of(one).name == name]

    def read() -> object:
        with newer(version):
            data = found.write()
        return found.read(data)

    return read


def of(name: str, what: str, lies: str, version: str, says: str, golden: str, reads: str = "1") -> Format:
    return Format(name, what, lies, version, reads, says, specimen(golden, version))


def _superblock() -> object:
    with newer("blockdev.journal.format:VERSION"):
        data = local.journal_bytes()
    return journal_format.decode_superblock(data[:BLOCK_BYTES])


def _cache() -> object:
    with newer("blockdev.engine.cache_table:VERSION"):
        data = local.cache_bytes()
    return decode_header(data[:HEADER_BYTES])


def _apply_journal() -> object:
    with newer("cowsync.apply.journal_format:VERSION"):
        data = apply_journal.encode_header(bytes(32))
    return apply_journal.decode_header(data)


def _plan() -> object:
    head = json.loads((GOLDEN / "plan.v1.jsonl").read_bytes().splitlines()[0])
    return plan_format.decode_head(json.dumps(head | {"version": NEWER}).encode() + b"\n")


def _sealed() -> object:
    data = bytearray((GOLDEN / "sealed-object.v1.bin").read_bytes())
    assert data[4] == 1
    data[4] = NEWER
    return sealing_format.decode_header(bytes(data))


def _catalogue() -> object:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue.sqlite3"
        database = sqlite3.connect(path)
        database.execute(f"pragma user_version = {NEWER}")
        database.close()
        return catalogue.Catalogue(path)


def _record() -> object:
    event = {"op": "note", "detail": {"what": "x"}, "who": {"user": "a"}, "phase": "done", "source": "client"}
    with newer("integrity.record:VERSION"):
        try:
            data = ledger_record.encode(event, writer="a.1", n=0, at="2026-01-01T00:00:00.000000Z", after=bytes(32))
        except ValueError as error:
            raise AssertionError(f"the event of this test is wrong: {error}") from error
    return ledger_record.decode(data)


def _pins() -> object:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pins.json"
        path.write_text(json.dumps({"v": NEWER}))
        return pins.load_pins(path, "o", "k")


def _home() -> object:
    return documents.read_head(json.dumps({"format": NEWER}).encode(), "head")


FORMATS: Final = (
    of(
        "volume file",
        "a volume",
        BUCKET,
        "blockdev.segments.volume_file:FORMAT",
        "volume format 99 is not known to this program (it knows 1)",
        "volume.v1.json",
    ),
    of(
        "commit record",
        "a volume",
        BUCKET,
        "blockdev.segments.record:VERSION",
        "log format 99 is not known to this program",
        "log-fence.v1.bin",
    ),
    of(
        "root",
        "a volume",
        BUCKET,
        "blockdev.segments.root:VERSION",
        "root format 99 is not known to this program",
        "root.v1.bin",
    ),
    of(
        "extent object",
        "a volume",
        BUCKET,
        "blockdev.segments.extent_object:VERSION",
        "extent format 99 is not known to this program",
        "extent-raw.v1.bin",
    ),
    of(
        "segment",
        "a volume",
        BUCKET,
        "blockdev.segments.container:VERSION",
        "segment format 99 is not known to this program",
        "segment-header.v1.bin",
    ),
    of("key slot", "volumes, mirrors", BUCKET, "s3core.key_slot:FORMAT", "99", "key-slot-passphrase.v1.json"),
    Format(
        "journal", "a volume", HOST, "blockdev.journal.format:VERSION", "1", "version 99 is not known here", _superblock
    ),
    Format(
        "read cache",
        "a volume",
        HOST,
        "blockdev.engine.cache_table:VERSION",
        "1",
        "version 99 is not known here",
        _cache,
    ),
    of("map seal", "a volume", HOST, "blockdev.extents.seal:VERSION", "is not a seal of version 1", "map-seal.v1.bin"),
    of(
        "map tags",
        "a volume",
        HOST,
        "blockdev.extents.presence:VERSION",
        "are not tags of version 1",
        "map-tags.v1.bin",
    ),
    of("HEAD", "a mirror", BUCKET, "cowsync.base.head:VERSION", "99", "base-head.v1.json"),
    of("restore point", "a mirror", BUCKET, "cowsync.base.snapshot:VERSION", "99", "base-snapshot.v1.json"),
    Format(
        "sealed object",
        "a mirror",
        BUCKET,
        "cowsync.sealing.format:STREAMED",
        "1, 2",
        "is sealed in format version 99",
        _sealed,
    ),
    Format(
        "plan", "a mirror", HOST, "cowsync.plan.format:VERSION", "1, 2", "this program reads versions 1 to 2", _plan
    ),
    Format(
        "journal of an apply",
        "a mirror",
        HOST,
        "cowsync.apply.journal_format:VERSION",
        "1",
        "version 99 is not known here",
        _apply_journal,
    ),
    Format(
        "catalogue of runs",
        "a mirror",
        HOST,
        "cowsync.catalogue:VERSION",
        "1, 2",
        "is a catalogue of version 99, this program knows 2",
        _catalogue,
    ),
    Format("record", "a ledger", BUCKET, "integrity.record:VERSION", "1", "v: is 99; this program knows 1", _record),
    Format(
        "pins",
        "a ledger",
        HOST,
        "integrity.verification.pins:VERSION",
        "1",
        "it is of version 99; this program knows 1",
        _pins,
    ),
    Format(
        "head of a home",
        "the console",
        BUCKET,
        "envctl.homes.documents:FORMAT",
        "1",
        "has format 99; this program reads 1",
        _home,
    ),
)


def table() -> str:
    """As docs/upgrade.md has it."""
    lines = [
        "| format | of | lies in | writes | reads | to a newer one it says |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in FORMATS:
        said = f"`{one.says.replace(str(NEWER), 'N')}`" if one.says != str(NEWER) else "its version by number"
        lines.append(f"| {one.name} | {one.of} | {one.lies} | {one.writes} | {one.reads} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
