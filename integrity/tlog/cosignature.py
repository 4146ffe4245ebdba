"""Cosignatures (C2SP tlog-cosignature): a witness says that a checkpoint continues all it ever saw of that log, and when.

Ed25519 (type 4) signs the note's text; ML-DSA-44 (type 6, FIPS 204) signs origin, size and root, is of 2,420 bytes, and holds
against quantum computers. C2SP advises the latter for new keys.

One rule: a cosignature counts by its key. Two of one key are one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from integrity.errors import LedgerError, Malformed
from integrity.tlog.checkpoint import SIZE_MAX, parse_checkpoint
from integrity.tlog.note import Signature, check_key_name, key_id_of, open_note, split_note, split_vkey, vkey_of

COSIGNATURE_ED25519 = 0x04
COSIGNATURE_ML_DSA_44 = 0x06
KINDS = {COSIGNATURE_ED25519: "ed25519", COSIGNATURE_ML_DSA_44: "ml-dsa-44"}
_PUBLIC_BYTES = {COSIGNATURE_ED25519: 32, COSIGNATURE_ML_DSA_44: 1312}
_SIGNATURE_BYTES = {COSIGNATURE_ED25519: 64, COSIGNATURE_ML_DSA_44: 2420}
_STAMP_BYTES = 8
_LABEL = b"subtree/v1\n\x00"


@dataclass(frozen=True, slots=True)
class Cosignature:
    """What a witness said: at `unix_s` the checkpoint was the largest it knew, and continued all before."""

    name: str
    key_id: int
    unix_s: int
    """0: it says nothing about the time."""


@dataclass(frozen=True)
class Cosigner:
    """A witness's public key: opens notes like any other verifier."""

    name: str
    kind: int
    public: bytes

    @cached_property
    def key_id(self) -> int:
        return key_id_of(self.name, self.kind, self.public)

    @cached_property
    def vkey(self) -> str:
        return vkey_of(self.name, self.kind, self.public)

    def holds(self, text: str, signature: bytes) -> bool:
        """LedgerError where this host cannot verify ML-DSA at all."""
        if len(signature) != _STAMP_BYTES + _SIGNATURE_BYTES[self.kind]:
            return False
        unix_s = unix_of(signature)
        try:
            message = cosigned_message(text, self.name, self.kind, unix_s)
            if self.kind == COSIGNATURE_ED25519:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature[_STAMP_BYTES:], message)
            else:
                _mldsa().MLDSA44PublicKey.from_public_bytes(self.public).verify(signature[_STAMP_BYTES:], message)
        except (InvalidSignature, ValueError, Malformed):
            return False
        except UnsupportedAlgorithm as error:
            raise _cannot() from error
        return True


@dataclass(frozen=True, slots=True)
class Stamped:
    """A witness's key at one moment: signs notes (`integrity.tlog.note.NoteSigner`)."""

    key: "CosignerKey"
    unix_s: int

    @property
    def name(self) -> str:
        return self.key.cosigner.name

    @property
    def key_id(self) -> int:
        return self.key.cosigner.key_id

    def sign(self, text: str) -> bytes:
        return self.unix_s.to_bytes(_STAMP_BYTES, "big") + self.key.sign(text, self.unix_s)


class CosignerKey:
    """The private half of a `Cosigner`, from its 32-byte seed. LedgerError where this host cannot do ML-DSA."""

    def __init__(self, name: str, kind: int, seed: bytes) -> None:
        check_key_name(name)
        if kind == COSIGNATURE_ED25519:
            self._key = Ed25519PrivateKey.from_private_bytes(seed)
        elif kind == COSIGNATURE_ML_DSA_44:
            try:
                self._key = _mldsa().MLDSA44PrivateKey.from_seed_bytes(seed)
            except UnsupportedAlgorithm as error:
                raise _cannot() from error
        else:
            raise ValueError(f"no witness signs with keys of type {kind}")
        self.cosigner = Cosigner(name, kind, self._key.public_key().public_bytes_raw())

    @property
    def vkey(self) -> str:
        return self.cosigner.vkey

    def at(self, unix_s: int) -> Stamped:
        """What signs as of that time, in whole Unix seconds."""
        return Stamped(self, unix_s)

    def sign(self, text: str, unix_s: int) -> bytes:
        """The bare signature. ValueError for a text that is no checkpoint's, where the kind needs one."""
        try:
            message = cosigned_message(text, self.cosigner.name, self.cosigner.kind, unix_s)
        except Malformed as error:
            raise ValueError(str(error)) from error
        return self._key.sign(message)


def parse_cosigner(vkey: str) -> Cosigner:
    """The witness's key in `NAME+HEX+BASE64`. Malformed for a key of another type."""
    name, kind, public = split_vkey(vkey)
    if kind not in KINDS or len(public) != _PUBLIC_BYTES[kind]:
        known = " or ".join(f"{number} ({text})" for number, text in KINDS.items())
        raise Malformed(f"the verifier key of {name} is of type {kind}; a witness's is of type {known}")
    return Cosigner(name, kind, public)


def cosignatures(note: bytes, cosigners: Sequence[Cosigner]) -> list[Cosignature]:
    """What these witnesses say about a checkpoint, one for each of their keys that signed it; none where none did.

    NoteRejected where a signature of one of them does not hold. The log's own signature is not looked at."""
    return [Cosignature(one.name, one.key_id, unix_of(one.signature)) for one in _known_in(note, cosigners)]


def unix_of(signature: bytes) -> int:
    """The time in a cosignature, Unix seconds."""
    return int.from_bytes(signature[:_STAMP_BYTES], "big")


def cosigned_message(text: str, name: str, kind: int, unix_s: int) -> bytes:
    """The bytes that are signed. ValueError or Malformed where there are none for such a text."""
    if not 0 <= unix_s <= SIZE_MAX:
        raise ValueError(f"{unix_s} is no time that a cosignature may have")
    if kind == COSIGNATURE_ED25519:
        return f"cosignature/v1\ntime {unix_s}\n{text}".encode()
    checkpoint = parse_checkpoint(text)
    return b"".join(
        (
            _LABEL,
            _counted(name),
            unix_s.to_bytes(8, "big"),
            _counted(checkpoint.origin),
            bytes(8),
            checkpoint.size.to_bytes(8, "big"),
            checkpoint.root,
        )
    )


def _known_in(note: bytes, cosigners: Sequence[Cosigner]) -> Sequence[Signature]:
    _, there = split_note(note)
    keys = {(one.name, one.key_id) for one in cosigners}
    if not any((one.name, one.key_id) in keys for one in there):
        return ()
    return open_note(note, cosigners).signatures


def _counted(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise ValueError(f"{text[:80]!r} has {len(data)} bytes; a name or origin that is cosigned has 1 to 255")
    return bytes([len(data)]) + data


def _mldsa() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError as error:
        raise _cannot() from error
    return mldsa


def _cannot() -> LedgerError:
    return LedgerError("this host's cryptography library cannot do ML-DSA", hint="upgrade it: version 50 can")
