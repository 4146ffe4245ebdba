"""Sealing frames: AES-256-GCM under a key of each commit's own, bound to the place in which a frame belongs.

One rule: randomness is an argument. A data key encrypts nothing itself: every (volume, generation) has a subkey of its own
(HKDF-Expand, RFC 5869 section 2.3; the data key is uniformly random, so section 3.3 lets Extract be left out). A random 96-bit
nonce is safe for 2^32 frames of one key (NIST SP 800-38D section 8.3); a commit has some ten thousand.
Format: docs/formats/frame.md. What is not hidden: docs/design/0008-encryption.md.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

Buffer = bytes | bytearray | memoryview

Random = Callable[[int], bytes]
"""So many random bytes; os.urandom in production."""

CIPHER = "aes-256-gcm"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
"""What sealing adds to a payload."""
KEY_CHECK_BYTES = 16
SUBKEYS_KEPT = 1024
"""Ready subkeys, about 2 KiB each: cold reads come back to the same commits."""

_FRAME_INFO = b"bucketworks frame 1"
_CHECK_INFO = b"bucketworks key check 1"


class Cipher(Protocol):
    """Seals and opens payloads of frames. Safe to call from several threads at once."""

    def seal(self, volume: bytes, gen: int, header: Buffer, plain: Buffer) -> bytes:
        """`plain` as it is stored, OVERHEAD_BYTES longer, bound to the volume's UUID, the generation and `header`."""
        ...

    def open(self, volume: bytes, gen: int, header: Buffer, sealed: Buffer) -> bytes:
        """What was sealed. ValueError unless it was, with this key, for exactly this volume, generation and header."""
        ...


class FrameCipher:
    """`Cipher` with a volume's data key. The volume is an argument of each call: a clone reads its ancestor's frames, which
    are bound to the ancestor's UUID, with the key they share."""

    def __init__(self, data_key: bytes, random: Random) -> None:
        if len(data_key) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes, not {len(data_key)}")
        self._data_key = data_key
        self._random = random
        self._subkey = lru_cache(SUBKEYS_KEPT)(self._derive)

    def _derive(self, volume: bytes, gen: int) -> AESGCM:
        info = _FRAME_INFO + volume + gen.to_bytes(8, "little")
        return AESGCM(HKDFExpand(SHA256(), KEY_BYTES, info).derive(self._data_key))

    def seal(self, volume: bytes, gen: int, header: Buffer, plain: Buffer) -> bytes:
        nonce = self._random(NONCE_BYTES)
        return nonce + self._subkey(volume, gen).encrypt(nonce, plain, volume + header)

    def open(self, volume: bytes, gen: int, header: Buffer, sealed: Buffer) -> bytes:
        if len(sealed) < OVERHEAD_BYTES:
            raise ValueError(f"{len(sealed)} bytes are too few for a sealed payload")
        view = memoryview(sealed)
        try:
            return self._subkey(volume, gen).decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], volume + header)
        except InvalidTag as error:
            raise ValueError("it was not sealed with this volume's key for this place") from error


def key_check(data_key: bytes, volume: bytes) -> str:
    """What vol.json keeps of a data key, to tell it from any other: hexadecimal. Says nothing about the key, nor that two
    volumes share one."""
    return HKDFExpand(SHA256(), KEY_CHECK_BYTES, _CHECK_INFO + volume).derive(data_key).hex()
