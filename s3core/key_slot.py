"""Key slots: the data key of a volume or of a mirror, wrapped by a secret that somebody keeps. Format: docs/formats/key.md.

One rule: pure. Secrets and randomness come as arguments, and neither a message nor a `repr` shows one. A slot is worth
nothing without its secret; any number of slots may hold the same data key, each under another secret.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from crc32c import crc32c
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3core.credentials import CredentialsError

Random = Callable[[int], bytes]
"""So many random bytes; os.urandom in production."""

FORMAT = 1
CIPHER = "aes-256-gcm"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
CHECKSUM = "crc32c"
ID_BYTES = 4
SALT_BYTES = 16
ARGON2ID, HKDF_SHA256 = "argon2id", "hkdf-sha256"
# RFC 9106 section 4, the second recommended option. A stored slot may ask for more, within reason: what a damaged or
# hostile one asks for is not what this program allocates.
ARGON2_PASSES, ARGON2_LANES, ARGON2_MEMORY_KIB = 3, 4, 64 * 1024
ARGON2_PASSES_MAX, ARGON2_LANES_MAX, ARGON2_MEMORY_KIB_MAX = 16, 16, 1024 * 1024

_WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES
_WRAP_INFO = b"bucketworks wrapping key 1"
_SLOT_INFO = b"bucketworks key slot 1"


class DamagedSlot(ValueError):
    """What lies there is no slot, or none that this program knows. `hint` is a cure, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens a slot. `kind`: "passphrase" is what people remember (Argon2id), "key" is 32 random bytes or more."""

    kind: Literal["passphrase", "key"]
    material: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a slot's wrapping key comes from the secret. The Argon2id fields are 0 for HKDF."""

    name: str
    salt: bytes
    passes: int = 0
    lanes: int = 0
    memory_kib: int = 0


@dataclass(frozen=True, slots=True)
class KeySlot:
    """`volume`: whose data key it is: a volume's UUID, or the one that a mirror's data key was given."""

    id: str
    volume: UUID
    derivation: Derivation
    wrapped: bytes
    """Nonce, encrypted data key, tag."""
    created: float
    creator: str

    @property
    def kind(self) -> Literal["passphrase", "key"]:
        """Which kind of secret opens it."""
        return "passphrase" if self.derivation.name == ARGON2ID else "key"


def wrap(data_key: bytes, secret: Secret, *, volume: UUID, random: Random, created: float, creator: str) -> KeySlot:
    """A new slot of `volume`; its id is random."""
    slot = random(ID_BYTES).hex()
    salt = random(SALT_BYTES)
    if secret.kind == "passphrase":
        derivation = Derivation(ARGON2ID, salt, ARGON2_PASSES, ARGON2_LANES, ARGON2_MEMORY_KIB)
    else:
        derivation = Derivation(HKDF_SHA256, salt)
    nonce = random(NONCE_BYTES)
    sealed = AESGCM(_wrapping_key(derivation, secret, volume)).encrypt(nonce, data_key, _bound_to(volume, slot))
    return KeySlot(slot, volume, derivation, nonce + sealed, created, creator)


def unwrap(slot: KeySlot, secret: Secret) -> bytes | None:
    """The data key, or None when this is not the slot's secret. Argon2id takes some tenths of a second; CredentialsError
    where this host does not have it."""
    if secret.kind != slot.kind:
        return None
    key = AESGCM(_wrapping_key(slot.derivation, secret, slot.volume))
    try:
        return key.decrypt(slot.wrapped[:NONCE_BYTES], slot.wrapped[NONCE_BYTES:], _bound_to(slot.volume, slot.id))
    except InvalidTag:
        return None


def _bound_to(volume: UUID, slot: str) -> bytes:
    return _SLOT_INFO + volume.bytes + slot.encode()


def _wrapping_key(derivation: Derivation, secret: Secret, volume: UUID) -> bytes:
    if derivation.name == HKDF_SHA256:
        return HKDF(SHA256(), KEY_BYTES, derivation.salt, _WRAP_INFO + volume.bytes).derive(secret.material)
    try:
        function = Argon2id(
            salt=derivation.salt,
            length=KEY_BYTES,
            iterations=derivation.passes,
            lanes=derivation.lanes,
            memory_cost=derivation.memory_kib,
        )
    except UnsupportedAlgorithm as error:
        raise CredentialsError(
            "passphrases need Argon2id, which the cryptography library of this host lacks: install its wheel from the"
            " package index, or use a key file"
        ) from error
    return function.derive(secret.material)


def encode(slot: KeySlot) -> bytes:
    kdf: dict[str, Any] = {"name": slot.derivation.name, "salt": slot.derivation.salt.hex()}
    if slot.derivation.name == ARGON2ID:
        kdf |= {
            "passes": slot.derivation.passes,
            "lanes": slot.derivation.lanes,
            "memory_kib": slot.derivation.memory_kib,
        }
    document: dict[str, Any] = {
        "format": FORMAT,
        "id": slot.id,
        "uuid": str(slot.volume),
        "cipher": CIPHER,
        "kdf": kdf,
        "wrapped": slot.wrapped.hex(),
        "created": slot.created,
        "creator": slot.creator,
    }
    document[CHECKSUM] = checksum(document)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def decode(blob: bytes) -> KeySlot:
    """Raises DamagedSlot: not a slot, a checksum that does not hold, a format, cipher or derivation nobody here knows, or
    costs beyond reason."""
    try:
        document = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise DamagedSlot(f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedSlot("is not a JSON object")
    for name, known in (("format", FORMAT), ("cipher", CIPHER)):
        if document.get(name) != known:
            raise DamagedSlot(
                f"key slot {name} {document.get(name)!r} is not known to this program (it knows {known})",
                hint="use a newer version of the program",
            )
    if document.get(CHECKSUM) != checksum(document):
        raise DamagedSlot("the checksum does not hold")
    try:
        return KeySlot(
            id=_checked(document["id"], str, lambda text: 0 < len(text) <= 64),
            volume=UUID(_checked(document["uuid"], str)),
            derivation=_derivation(document["kdf"]),
            wrapped=bytes.fromhex(_checked(document["wrapped"], str, lambda t: len(t) == 2 * _WRAPPED_BYTES)),
            created=float(_checked(document["created"], (int, float))),
            creator=_checked(document["creator"], str),
        )
    except DamagedSlot:
        raise
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedSlot(f"makes no sense: {error}") from error


def checksum(document: dict[str, Any]) -> str:
    """CRC32C, as eight hex digits, of the document without its checksum in canonical JSON."""
    meaning = {key: value for key, value in document.items() if key != CHECKSUM}
    return f"{crc32c(json.dumps(meaning, sort_keys=True, separators=(',', ':')).encode()):08x}"


def _derivation(value: Any) -> Derivation:
    name = _checked(value, dict)["name"]
    salt = bytes.fromhex(_checked(value["salt"], str, lambda text: 16 <= len(text) <= 128))
    if name == HKDF_SHA256:
        return Derivation(HKDF_SHA256, salt)
    if name != ARGON2ID:
        raise DamagedSlot(
            f"key derivation {name!r} is not known to this program",
            hint="use a newer version of the program",
        )
    lanes = _checked(value["lanes"], int, lambda n: 1 <= n <= ARGON2_LANES_MAX)
    return Derivation(
        ARGON2ID,
        salt,
        _checked(value["passes"], int, lambda n: 1 <= n <= ARGON2_PASSES_MAX),
        lanes,
        _checked(value["memory_kib"], int, lambda n: 8 * lanes <= n <= ARGON2_MEMORY_KIB_MAX),
    )


def _checked(value: Any, kind: type | tuple[type, ...], holds: Callable[[Any], bool] = lambda value: True) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or not holds(value):
        raise ValueError(f"{value!r} cannot be right")
    return value
