"""Signed notes (C2SP signed-note): text, an empty line, and a line for each signature.

One rule: the text of a note that was not opened with a key one already had is nobody's. `open_note` gives it only where at
least one known key signed it, and refuses the note where a known key's signature does not hold.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from integrity.errors import Malformed, Rejected

ED25519 = 0x01
SIGNATURES_MAX = 64
NOTE_BYTES_MAX = 1 << 20
_DASH = "\N{EM DASH} "


class NoteRejected(Rejected):
    """A note that no known key signed, or that a known key did not sign as it stands."""


class NoteVerifier(Protocol):
    """A public key with its name: `Verifier` here, or a witness's (`integrity.tlog.cosignature`)."""

    @property
    def name(self) -> str: ...

    @property
    def key_id(self) -> int: ...

    def holds(self, text: str, signature: bytes) -> bool:
        """Whether `signature` (without the key's id) is this key's on the note's text. Nothing is raised for any bytes."""
        ...


class NoteSigner(Protocol):
    """What can sign a note: `Signer` here, or a witness at a given time."""

    @property
    def name(self) -> str: ...

    @property
    def key_id(self) -> int: ...

    def sign(self, text: str) -> bytes:
        """The signature of the note's text, without the key's id."""
        ...


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, taken apart."""

    name: str
    key_id: int
    signature: bytes

    @property
    def line(self) -> str:
        """As it stands in a note, with its newline."""
        return f"{_DASH}{self.name} {encode64(self.key_id.to_bytes(4, 'big') + self.signature)}\n"


@dataclass(frozen=True, slots=True)
class Opened:
    """A note that known keys signed: its text, their signatures (one for each key), and those of unknown keys."""

    text: str
    signatures: tuple[Signature, ...]
    unknown: tuple[Signature, ...]


@dataclass(frozen=True)
class Verifier:
    """An Ed25519 key that signs notes (signature type 1)."""

    name: str
    public: bytes
    """32 bytes, RFC 8032."""
    kind: int = ED25519

    @cached_property
    def key_id(self) -> int:
        return key_id_of(self.name, self.kind, self.public)

    @cached_property
    def vkey(self) -> str:
        return vkey_of(self.name, self.kind, self.public)

    def holds(self, text: str, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """The private half of a `Verifier`, from its 32-byte seed."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(check_key_name(name), self._key.public_key().public_bytes_raw())

    @property
    def name(self) -> str:
        return self.verifier.name

    @property
    def key_id(self) -> int:
        return self.verifier.key_id

    @property
    def vkey(self) -> str:
        return self.verifier.vkey

    def sign(self, text: str) -> bytes:
        return self._key.sign(text.encode())


def check_key_name(name: str) -> str:
    """`name`, where a key may be called so; else ValueError."""
    if not name or "+" in name or any(c.isspace() or ord(c) < 0x20 for c in name):
        raise ValueError(f"{name!r} is no key's name: it has no blanks, no '+', and at least a character")
    return name


def key_id_of(name: str, kind: int, public: bytes) -> int:
    return int.from_bytes(sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4], "big")


def vkey_of(name: str, kind: int, public: bytes) -> str:
    """The verifier key as text."""
    return f"{name}+{key_id_of(name, kind, public):08x}+{encode64(bytes([kind]) + public)}"


def split_vkey(text: str) -> tuple[str, int, bytes]:
    """Name, signature type and public key of a verifier key. Malformed for what is none."""
    name, _, rest = text.strip().partition("+")
    told, plus, key = rest.partition("+")
    try:
        check_key_name(name)
        material = decode64(key)
        if not plus or len(material) < 2:
            raise ValueError("it has not three parts")
        kind, public = material[0], material[1:]
        if told != f"{key_id_of(name, kind, public):08x}":
            raise ValueError("its key id is not that of its name and key")
    except ValueError as error:
        raise Malformed(
            f"{text.strip()[:200]!r} is no verifier key: {error}", hint="copy the whole line NAME+HEX+BASE64"
        ) from error
    return name, kind, public


def parse_vkey(text: str) -> Verifier:
    """The Ed25519 key (type 1) in `NAME+HEX+BASE64`. Malformed for another; a witness's is of another type
    (`integrity.tlog.cosignature.parse_cosigner`)."""
    name, kind, public = split_vkey(text)
    if kind != ED25519 or len(public) != 32:
        raise Malformed(f"the verifier key of {name} is of type {kind}; a key that signs notes is of type {ED25519}")
    return Verifier(name, public)


def sign_note(text: str, *signers: NoteSigner) -> bytes:
    """The note with that text and a signature of each, in their order. ValueError for a text that no note can have."""
    check_text(text)
    return (text + "\n" + "".join(signature_line(text, signer) for signer in signers)).encode()


def signature_line(text: str, signer: NoteSigner) -> str:
    """A signer's line for a note with that text, with its newline."""
    return Signature(signer.name, signer.key_id, signer.sign(text)).line


def add_signatures(note: bytes, signatures: Sequence[Signature]) -> bytes:
    """The note with these too: one of a key that is in the note already takes its place. Malformed for what is no note."""
    text, there = split_note(note)
    newer = {(one.name, one.key_id): one for one in signatures}
    kept = [newer.pop((one.name, one.key_id), one) for one in there]
    return (text + "\n" + "".join(one.line for one in [*kept, *newer.values()])).encode()


def check_text(text: str) -> str:
    """`text`, where a note may have it: lines that end, without control characters. ValueError otherwise."""
    if not text.endswith("\n"):
        raise ValueError("a note's text ends with a newline")
    if any(c < " " and c != "\n" for c in text):
        raise ValueError("a note holds no control characters")
    return text


def split_note(data: bytes) -> tuple[str, list[Signature]]:
    """Text and signatures of a note, nothing of it verified: to look who should have signed it. Malformed for another form."""
    try:
        if len(data) > NOTE_BYTES_MAX:
            raise ValueError(f"it has {len(data):,} bytes, and {NOTE_BYTES_MAX:,} is the most")
        whole = data.decode("utf-8")
        head, blank, tail = whole.rpartition("\n\n")
        if not blank or not tail.endswith("\n"):
            raise ValueError("it has no signatures")
        text = check_text(head + "\n")
        lines = tail[:-1].split("\n")
        if len(lines) > SIGNATURES_MAX:
            raise ValueError(f"it has {len(lines):,} signatures, and {SIGNATURES_MAX} is the most")
        return text, [parse_signature(line) for line in lines]
    except ValueError as error:
        raise Malformed(f"not a signed note: {error}") from error


def parse_signature(line: str) -> Signature:
    """One signature line, without its newline. ValueError for another form."""
    if not line.startswith(_DASH):
        raise ValueError("a signature line begins with an em dash and a blank")
    name, blank, text = line[len(_DASH) :].partition(" ")
    check_key_name(name)
    material = decode64(text)
    if not blank or len(material) < 5:
        raise ValueError(f"the signature line of {name} is cut")
    return Signature(name, int.from_bytes(material[:4], "big"), material[4:])


def open_note(data: bytes, verifiers: Sequence[NoteVerifier]) -> Opened:
    """The note that at least one of these keys signed. Signatures of other keys are left aside (`unknown`).

    NoteRejected where none of the keys signed it, or the signature of one does not hold; Malformed for what is no note."""
    text, signatures = split_note(data)
    known = {(one.name, one.key_id): one for one in verifiers}
    held: dict[tuple[str, int], Signature] = {}
    unknown = []
    for signature in signatures:
        place = (signature.name, signature.key_id)
        if place not in known:
            unknown.append(signature)
        elif not known[place].holds(text, signature.signature):
            raise NoteRejected(f"the signature of {signature.name} ({signature.key_id:08x}) does not hold")
        else:
            held.setdefault(place, signature)
    if not held:
        wanted = ", ".join(f"{one.name} ({one.key_id:08x})" for one in verifiers) or "nobody: no key was given"
        found = ", ".join(f"{one.name} ({one.key_id:08x})" for one in signatures)
        raise NoteRejected(f"signed by {found}, not by {wanted}")
    return Opened(text, tuple(held.values()), tuple(unknown))


def encode64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode64(text: str) -> bytes:
    """Standard base64, in the one way it can be written. ValueError for anything else."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("it is not base64") from error
    if encode64(data) != text:
        raise ValueError("it is not base64 as it is written")
    return data
