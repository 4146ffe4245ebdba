"""RFC 3161 timestamps over the ledger log's checkpoints: an authority says that this very history was there at that time.

What is stamped is the checkpoint's text (origin, size and root), so that `openssl ts -verify -data` on it does without us.
The answer is kept as `anchors/<size>.tsr`; a copy outside the bucket is worth more, since one inside goes with the bucket.

One rule: a token counts only under a root certificate that its reader chose before. Without one it is kept and called
unverified.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cryptography import x509

from integrity.cosigning import Http, newest_head
from integrity.errors import LedgerError, Malformed, Rejected
from integrity.layout import LEDGER_WRITER, kept_checkpoint_key, timestamp_key
from integrity.place import Ledger
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint
from integrity.tlog.note import parse_vkey
from s3core.errors import NotFound, PreconditionFailed, Unavailable

QUERY_TYPE = "application/timestamp-query"
GRANTED = (0, 1)
"""PKIStatus: granted, and granted with changes."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """An authority's word that `checkpoint` was there at `unix_s`. `verified`: under one of the given roots."""

    checkpoint: Checkpoint
    unix_s: float
    token: bytes
    verified: bool


def anchor(ledger: Ledger, http: Http, roots: list[x509.Certificate]) -> Stamp:
    """A timestamp of the ledger's newest checkpoint: the one that is kept, or a new one, in the store on return.

    Crash after the authority answered and before the PUT: nothing is kept; the next call asks again. Unavailable where the
    authority does not answer; Rejected where its answer is not one to this question, or not under `roots`."""
    checkpoint = newest_head(ledger).checkpoint
    kept = _kept(ledger, checkpoint)
    if kept is not None:
        return check_timestamp(kept, checkpoint, roots)
    query, nonce = timestamp_query(checkpoint)
    url = ledger.settings.timestamps
    status, token = http.post(url, query, QUERY_TYPE)
    if status != 200:
        raise Unavailable(f"{url}: answered {status}")
    stamp = check_timestamp(token, checkpoint, roots, nonce=nonce)
    try:
        ledger.store.put_if_absent(timestamp_key(checkpoint.size), token)
    except PreconditionFailed:
        kept = _kept(ledger, checkpoint)
        return check_timestamp(kept, checkpoint, roots) if kept is not None else stamp
    return stamp


def kept_stamp(ledger: Ledger, size: int, roots: list[x509.Certificate]) -> Stamp:
    """The timestamp that is kept of the checkpoint of that size. LedgerError where there is none; Rejected, Malformed."""
    try:
        note = ledger.store.get(kept_checkpoint_key(LEDGER_WRITER, size)).data
        checkpoint = open_checkpoint(note, ledger.origin, [parse_vkey(ledger.vkey)])
        kept = _kept(ledger, checkpoint) if checkpoint.size == size else None
    except NotFound:
        kept = None
    if kept is None:
        raise LedgerError(f"no timestamp of {size:,} records is kept in the ledger {ledger.name}")
    return check_timestamp(kept, checkpoint, roots)


def timestamp_query(checkpoint: Checkpoint) -> tuple[bytes, int]:
    """A time-stamp request (RFC 3161 section 2.4.1) for the checkpoint's text by SHA-256, and its nonce."""
    client = _client()
    made = (
        client.TimestampRequestBuilder()
        .data(checkpoint.text().encode())
        .hash_algorithm(client.HashAlgorithm.SHA256)
        .build()
    )
    assert made.nonce is not None
    return made.as_bytes(), made.nonce


def check_timestamp(
    token: bytes, checkpoint: Checkpoint, roots: list[x509.Certificate], *, nonce: int | None = None
) -> Stamp:
    """What a time-stamp response says of a checkpoint. Its certificates are judged as of the time it tells.

    Malformed where it is none; Rejected where it is of something else, refuses, or does not hold under `roots`. LedgerError
    where the extra `anchor` is not installed."""
    client = _client()
    try:
        answer = client.decode_timestamp_response(token)
        status, told = answer.status, answer.status_string
        if status in GRANTED:
            info = answer.tst_info
            imprint, nonce_told = info.message_imprint.message, info.nonce
            unix_s = info.gen_time.timestamp()
    except ValueError as error:
        raise Malformed(f"not an RFC 3161 time-stamp response: {error}") from error
    if status not in GRANTED:
        raise Rejected(f"the time-stamping authority refused: {', '.join(told) or f'status {status}'}")
    if imprint not in _imprints(checkpoint):
        raise Rejected(f"the timestamp is not of the checkpoint of {checkpoint.size:,} records")
    if nonce is not None and nonce_told != nonce:
        raise Rejected("the timestamp answers another request")
    if roots:
        try:
            verifier = client.VerifierBuilder(roots=list(roots)).build()
            verifier.verify_message(answer, checkpoint.text().encode())
        except (client.VerificationError, ValueError) as error:
            raise Rejected(f"the timestamp does not hold: {error}") from error
    return Stamp(checkpoint, unix_s, token, bool(roots))


def read_roots(path: str) -> list[x509.Certificate]:
    """The certificates in a PEM file; none for an empty path. LedgerError for another file."""
    if not path:
        return []
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except ValueError as error:
        raise LedgerError(f"{path} holds no certificates in PEM form: {error}") from error


def _imprints(checkpoint: Checkpoint) -> tuple[bytes, ...]:
    text = checkpoint.text().encode()
    return tuple(hashlib.new(name, text).digest() for name in ("sha256", "sha384", "sha512"))


def _kept(ledger: Ledger, checkpoint: Checkpoint) -> bytes | None:
    try:
        return ledger.store.get(timestamp_key(checkpoint.size)).data
    except NotFound:
        return None


def _client() -> ModuleType:
    try:
        import rfc3161_client
    except ImportError as error:
        raise LedgerError(
            "timestamps need rfc3161-client, which is not installed", hint="pip install 'bucketworks[anchor]'"
        ) from error
    return rfc3161_client
