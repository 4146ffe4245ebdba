"""Cosignatures for a log's checkpoint: every witness is shown how it continues what that one saw last.

One rule: a witness that does not answer is told and holds nothing up; one that says no is evidence, and is told apart.
"""

import logging
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Literal, Protocol

import urllib3
from urllib3.exceptions import HTTPError

from integrity.errors import LedgerError, Malformed, Rejected, Tampered
from integrity.layout import LEDGER_WRITER, checkpoint_key
from integrity.log_reader import LogReader
from integrity.place import Ledger
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint, parse_number
from integrity.tlog.cosignature import Cosigner, parse_cosigner, unix_of
from integrity.tlog.note import NoteVerifier, Signature, add_signatures, open_note, parse_vkey, split_note
from integrity.tlog.tree import Nodes, consistency_proof, root_at
from integrity.tlog.witness import TEXT_TYPE, origin_hash, write_request
from s3core.errors import NotFound, PreconditionFailed, Unavailable

log = logging.getLogger(__name__)

ANSWER_BYTES_MAX = 256 << 10
WAIT_S = 10.0
ATTEMPTS = 3
"""Requests to one witness for one checkpoint: the first may guess its size wrong, and it may have moved by the second."""


class Http(Protocol):
    """What is needed of the network. `Unavailable` where there was no answer."""

    def post(self, url: str, body: bytes, content_type: str = TEXT_TYPE) -> tuple[int, bytes]:
        """Status and body of the answer."""
        ...

    def get(self, url: str) -> tuple[int, bytes]: ...


Verdict = Literal["cosigned", "unreachable", "refused", "ahead", "contradicts"]


@dataclass(frozen=True, slots=True)
class WitnessAddress:
    """A witness as the settings name it: where it is, and by which keys it is believed."""

    url: str
    cosigners: tuple[Cosigner, ...]

    @property
    def name(self) -> str:
        return self.cosigners[0].name


@dataclass(frozen=True, slots=True)
class Told:
    """What one witness made of a checkpoint. `unix_s` is its cosignature's time, `size` what it saw last where it is ahead.

    cosigned; unreachable: no answer; refused: it does not know the log or its key, or answered nonsense; ahead: it cosigned a
    larger tree than this; contradicts: what it cosigned before is not the beginning of this. The last two are said only with
    the checkpoint it cosigned, signed by the log: anybody can answer with a status."""

    witness: WitnessAddress
    verdict: Verdict
    message: str
    unix_s: int = 0
    size: int = 0
    signatures: tuple[Signature, ...] = ()
    evidence: bytes = b""
    """The checkpoint that the log signed and the witness kept."""


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The checkpoint with the cosignatures that came, and what every witness said."""

    note: bytes
    told: tuple[Told, ...]

    @property
    def changed(self) -> bool:
        return any(one.signatures for one in self.told)

    @property
    def evidence(self) -> tuple[Told, ...]:
        """Witnesses whose answer shows that the log was cut, rolled back or forked; unless it has grown in between."""
        return tuple(one for one in self.told if one.verdict in ("ahead", "contradicts"))


def parse_witnesses(lines: Sequence[str]) -> tuple[WitnessAddress, ...]:
    """The witnesses in the setting `witnesses`, `URL VKEY [VKEY]` each. Malformed for another line."""
    found = []
    for line in lines:
        url, *vkeys = line.split()
        if not url.startswith(("http://", "https://")) or not vkeys:
            raise Malformed(
                f"{line!r} is no witness", hint="write `URL VKEY`, as `s3integrity witness keygen` prints it"
            )
        found.append(WitnessAddress(url.rstrip("/"), tuple(parse_cosigner(vkey) for vkey in vkeys)))
    return tuple(found)


def cosign(
    note: bytes,
    nodes: Nodes,
    witnesses: Sequence[WitnessAddress],
    http: Http,
    *,
    verifiers: Sequence[NoteVerifier],
    known: MutableMapping[str, int] | None = None,
) -> Cosigned:
    """Ask all witnesses at once to cosign the checkpoint in `note`, which its log signed (`verifiers`) and whose tree `nodes`
    gives. `known` remembers from call to call what each cosigned last, and saves a request. What `nodes` raises is raised."""
    if not witnesses:
        return Cosigned(note, ())
    remembered = known if known is not None else {}
    tree = _Cosignable(note, open_note(note, verifiers).text, nodes, verifiers)
    with ThreadPoolExecutor(len(witnesses), thread_name_prefix="cosign") as pool:
        asked = [pool.submit(_ask, tree, one, http, remembered.get(one.url, 0)) for one in witnesses]
        told = tuple(one.result() for one in asked)
    for one in told:
        if one.verdict == "cosigned":
            remembered[one.witness.url] = tree.checkpoint.size
        elif one.verdict != "unreachable":
            remembered.pop(one.witness.url, None)
    return Cosigned(add_signatures(note, [line for one in told for line in one.signatures]), told)


class _Cosignable:
    """What is to be cosigned. Reading tiles is one at a time; what waits long is the witnesses."""

    def __init__(self, note: bytes, text: str, nodes: Nodes, verifiers: Sequence[NoteVerifier]) -> None:
        self.note = note
        self.checkpoint = parse_checkpoint(text)
        self.verifiers = verifiers
        self._nodes = nodes
        self._turn = Lock()

    def proof_from(self, old: int) -> list[bytes]:
        with self._turn:
            return consistency_proof(old, self.checkpoint.size, self._nodes)

    def root_at(self, size: int) -> bytes:
        with self._turn:
            return root_at(size, self._nodes)


def _ask(tree: _Cosignable, witness: WitnessAddress, http: Http, old: int) -> Told:
    size = tree.checkpoint.size
    if old > size:
        old = 0
    for _ in range(ATTEMPTS):
        request = write_request(old, tree.proof_from(old), tree.note)
        try:
            status, body = http.post(f"{witness.url}/add-checkpoint", request)
        except Unavailable as error:
            return Told(witness, "unreachable", str(error))
        if status == 200:
            return _accepted(tree.note, witness, body)
        said = body[:200].decode("utf-8", "replace").strip()
        if status == 422:
            return _shown(tree, witness, http, f"it answered 422: {said}")
        if status != 409:
            return Told(witness, "unreachable" if status >= 500 else "refused", f"it answered {status}: {said}")
        try:
            old = parse_number(said)
        except ValueError as error:
            return Told(witness, "refused", f"it answered 409 without a size: {error}")
        if old > size:
            return _shown(tree, witness, http, f"it says that it cosigned {old:,} records, and these are {size:,}")
    return Told(witness, "unreachable", f"its last checkpoint changed {ATTEMPTS} times while it was asked")


def _shown(tree: _Cosignable, witness: WitnessAddress, http: Http, why: str) -> Told:
    """What a witness that says no has to show for it: the checkpoint that it cosigned, with the log's own signature."""
    origin = tree.checkpoint.origin
    try:
        status, note = http.get(f"{witness.url}/{origin_hash(origin)}/checkpoint")
        if status != 200:
            raise Malformed(f"it answered {status}")
        theirs = open_checkpoint(note, origin, tree.verifiers)
    except (Malformed, Rejected, Unavailable) as error:
        return Told(witness, "refused", f"{why}; and shows no checkpoint that the log signed: {error}")
    if theirs.size > tree.checkpoint.size:
        message = f"it has cosigned {theirs.size:,} records, and these are {tree.checkpoint.size:,}"
        return Told(witness, "ahead", message, size=theirs.size, evidence=note)
    if tree.root_at(theirs.size) != theirs.root:
        message = f"the first {theirs.size:,} records are not those it has cosigned"
        return Told(witness, "contradicts", message, size=theirs.size, evidence=note)
    return Told(witness, "refused", f"{why}; the checkpoint it shows does not bear that out")


def _accepted(note: bytes, witness: WitnessAddress, body: bytes) -> Told:
    text, _ = split_note(note)
    try:
        signatures = open_note((text + "\n").encode() + body, witness.cosigners).signatures
    except (Malformed, Rejected) as error:
        return Told(witness, "refused", f"its answer is no cosignature of its key: {error}")
    # A cosignature without a time says nothing about this being the newest tree (C2SP tlog-cosignature).
    stamped = tuple(one for one in signatures if unix_of(one.signature))
    if not stamped:
        return Told(witness, "refused", "its cosignature tells no time")
    return Told(witness, "cosigned", "cosigned", max(unix_of(one.signature) for one in stamped), signatures=stamped)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest checkpoint of the ledger's own log, as it is in the store."""

    note: bytes
    checkpoint: Checkpoint
    etag: str


def newest_head(ledger: Ledger) -> Head:
    """What the store has, signed by the ledger key. LedgerError where there is none yet; Rejected or Malformed for another."""
    try:
        body = ledger.store.get(checkpoint_key(LEDGER_WRITER))
    except NotFound as error:
        raise LedgerError(
            f"the ledger {ledger.name} has no checkpoint of its own",
            hint="run `s3integrity seal` first; if that was done before, `s3integrity verify`",
        ) from error
    return Head(body.data, open_checkpoint(body.data, ledger.origin, [parse_vkey(ledger.vkey)]), body.etag)


@contextmanager
def ledger_nodes(ledger: Ledger, head: Head) -> Iterator[Nodes]:
    """The tree of the ledger's own log, out of its store."""
    with LogReader(ledger.store, LEDGER_WRITER, ledger.origin, [parse_vkey(ledger.vkey)]) as reader:
        reader.take(head.note)
        yield reader.nodes


def keep_cosigned(ledger: Ledger, ask: Callable[[Head], Cosigned]) -> Cosigned:
    """Put what `ask` got for the newest checkpoint in that one's place, unless it was replaced meanwhile: then once more.

    On return the store has the cosignatures, or `changed` is False. Crash before the PUT: nothing; the next call asks again."""
    conditions, refused = ledger.store.properties.if_match, ""
    for _ in range(ATTEMPTS):
        head = newest_head(ledger)
        # Failed though nothing changed: older releases of Ceph fail every If-Match in buckets with versions.
        conditions = conditions and head.etag != refused
        found = ask(head)
        key = checkpoint_key(LEDGER_WRITER)
        if (
            any(one.verdict == "ahead" for one in found.told)
            and newest_head(ledger).checkpoint.size > head.checkpoint.size
        ):
            continue
        if not found.changed:
            return found
        try:
            if conditions:
                ledger.store.put_if_match(key, found.note, head.etag)
            elif newest_head(ledger).etag == head.etag:
                # Between the look and the PUT a newer one may come, and is put back by the next seal.
                ledger.store.put(key, found.note)
            else:
                continue
        except PreconditionFailed:
            refused = head.etag
            continue
        return found
    raise Unavailable(f"the checkpoint of {ledger.name} was replaced {ATTEMPTS} times while its witnesses were asked")


def cosign_newest(ledger: Ledger, http: Http, *, known: MutableMapping[str, int] | None = None) -> Cosigned | None:
    """Have the configured witnesses cosign the ledger's newest checkpoint, and keep what came; None where none is configured.

    To be called after every sealing, with the same `known`. Whatever witnesses say, nothing is raised for it: see
    `Cosigned.told` and `raise_evidence`. Raised is what the store raises, and Malformed for a wrong setting."""
    witnesses = parse_witnesses(ledger.settings.witnesses)
    if not witnesses:
        return None
    verifiers = [parse_vkey(ledger.vkey)]

    def ask(head: Head) -> Cosigned:
        with ledger_nodes(ledger, head) as nodes:
            return cosign(head.note, nodes, witnesses, http, verifiers=verifiers, known=known)

    found = keep_cosigned(ledger, ask)
    for one in found.told:
        if one.verdict != "cosigned":
            log.warning("ledger %s: the witness %s: %s: %s", ledger.name, one.witness.name, one.verdict, one.message)
    return found


def raise_evidence(found: Cosigned) -> None:
    """Tampered where a witness showed a checkpoint that the ledger's key signed and this ledger does not continue."""
    for one in found.evidence:
        place = f"{one.witness.url}/{origin_hash(parse_checkpoint(split_note(one.evidence)[0]).origin)}/checkpoint"
        raise Tampered(
            f"the witness {one.witness.name} has seen another history of this ledger: {one.message}",
            where=checkpoint_key(LEDGER_WRITER),
            hint=f"keep the bucket and the witness as they are; what it cosigned, signed by the ledger key, is at {place}",
        )


class Network:
    """`Http` over the network: no redirects, no repeats, an answer of a bounded length within twice `wait_s`.

    urllib3's timeouts are between two bytes, so one that sends a byte now and then is left to a thread of its own, and not
    asked again at that address before it has ended."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        timeout = urllib3.Timeout(connect=wait_s, read=wait_s)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=4)
        self._slow: set[str] = set()
        self._turn = Lock()

    def post(self, url: str, body: bytes, content_type: str = TEXT_TYPE) -> tuple[int, bytes]:
        return self._asked("POST", url, body, {"Content-Type": content_type})

    def get(self, url: str) -> tuple[int, bytes]:
        return self._asked("GET", url, None, {})

    def _asked(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        with self._turn:
            if url in self._slow:
                raise Unavailable(f"{url}: it still has an earlier request to answer")
            self._slow.add(url)
        answer: Future[tuple[int, bytes]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._answered(method, url, body, headers))
            except Unavailable as error:
                answer.set_exception(error)
            finally:
                with self._turn:
                    self._slow.discard(url)

        Thread(target=ask, name="witness", daemon=True).start()
        try:
            return answer.result(2 * self._wait_s)
        except FutureTimeout as error:
            raise Unavailable(f"{url}: the answer comes too slowly") from error

    def _answered(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        until = time.monotonic() + 2 * self._wait_s
        try:
            # Nothing is unpacked: a few bytes can be a gigabyte.
            answer = self._pool.request(
                method, url, body=body, headers=headers, preload_content=False, decode_content=False, redirect=False
            )
            try:
                return answer.status, _body(answer, until)
            finally:
                answer.release_conn()
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{url}: {error}") from error


def _body(answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
    body = b""
    while piece := answer.read1(ANSWER_BYTES_MAX):
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise OSError(f"the answer is longer than {ANSWER_BYTES_MAX:,} bytes")
        if time.monotonic() > until:
            raise TimeoutError("the answer comes too slowly")
    return body
