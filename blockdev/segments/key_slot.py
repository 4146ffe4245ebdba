"""Key slots of volumes: `s3core.key_slot`, with this package's errors. Format: docs/formats/key.md.

One rule: nothing of the format is here.
"""

from uuid import UUID

from blockdev.errors import CorruptFormat, KeyRefused
from s3core import key_slot
from s3core.credentials import CredentialsError
from s3core.key_slot import Derivation, KeySlot, Random, Secret, encode

__all__ = ["Derivation", "KeySlot", "Secret", "decode", "encode", "unwrap", "wrap"]


def wrap(data_key: bytes, secret: Secret, *, volume: UUID, random: Random, created: float, creator: str) -> KeySlot:
    """A new slot of `volume`; its id is random. KeyRefused where this host lacks Argon2id."""
    try:
        return key_slot.wrap(data_key, secret, volume=volume, random=random, created=created, creator=creator)
    except CredentialsError as error:
        raise KeyRefused(str(error)) from error


def unwrap(slot: KeySlot, secret: Secret) -> bytes | None:
    """The data key, or None when this is not the slot's secret. Argon2id takes some tenths of a second; KeyRefused where
    this host lacks it."""
    try:
        return key_slot.unwrap(slot, secret)
    except CredentialsError as error:
        raise KeyRefused(str(error)) from error


def decode(blob: bytes, *, what: str) -> KeySlot:
    """Raises CorruptFormat: not a slot, a checksum that does not hold, a format, cipher or derivation nobody here knows, or
    costs beyond reason."""
    try:
        return key_slot.decode(blob)
    except key_slot.DamagedSlot as error:
        raise CorruptFormat(str(error), what=what, hint=error.hint) from error
