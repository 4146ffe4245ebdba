"""A report's files: made, signed, kept, published and checked.

    DIR/<number>.json   the document
    DIR/<number>.html   its page
    DIR/<number>.note   the signed note over both

One rule: the note is written last. A crash before it leaves a document and perhaps a page that nobody signed, under a number
that is never used again; they can be deleted.
"""

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from integrity.errors import Malformed
from integrity.layout import report_key
from integrity.reports.document import encode
from integrity.reports.page import page
from integrity.reports.signing import Signed, check_file, open_signed, sign
from integrity.tlog.note import NoteSigner, parse_vkey
from s3core.errors import PreconditionFailed
from s3core.store import ObjectStore


def files_of(document: Mapping[str, Any], signer: NoteSigner | None) -> dict[str, bytes]:
    """The bytes of each file, by suffix; without a signer there is no `note`."""
    data = encode(document)
    files = {"json": data, "html": page(document, json_digest=sha256(data).hexdigest()).encode()}
    if signer is not None:
        files["note"] = sign(document["ledger"]["origin"], document["id"], files, signer)
    return files


def write_files(files: Mapping[str, bytes], folder: Path, number: str) -> list[Path]:
    """Put them into the folder, which is made if need be; durable on return. FileExistsError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, data in files.items():
        path = folder / f"{number}.{suffix}"
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        paths.append(path)
    return paths


def publish(files: Mapping[str, bytes], store: ObjectStore, number: str) -> list[str]:
    """Put them beside the ledger, the note last; their names there. What a lost answer left is put no second time."""
    keys = []
    for suffix, data in files.items():
        key = report_key(number, suffix)
        try:
            store.put_if_absent(key, data)
        except PreconditionFailed:
            if store.get(key).data != data:
                raise
        keys.append(key)
    return keys


def check(note: Path, vkeys: Sequence[str]) -> tuple[Signed, dict[str, Any], list[str]]:
    """Verify a report's note by one of these keys and the files beside it by the note, without any network: what was signed,
    the document, and the suffixes of the files that were there and right. Rejected, Malformed; Tampered for a file that is
    another one; FileNotFoundError without the document."""
    signed = open_signed(note.read_bytes(), [parse_vkey(vkey) for vkey in vkeys])
    checked = []
    document: dict[str, Any] = {}
    for suffix in signed.files:
        path = note.with_suffix(f".{suffix}")
        if suffix != "json" and not path.exists():
            continue
        data = path.read_bytes()
        check_file(signed, suffix, data)
        checked.append(suffix)
        if suffix == "json":
            document = orjson.loads(data)
    if document.get("id") != signed.number or document.get("ledger", {}).get("origin") != signed.origin:
        raise Malformed(
            f"{note}: the note is of report {signed.number} of {signed.origin}, the document of another one"
        )
    return signed, document, checked
