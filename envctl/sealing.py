"""The console's key file: it seals what the database must not tell by itself, and signs what the console hands out.

One rule: every use has a purpose of its own, and a key of its own derived from it (HKDF-SHA-256, RFC 5869), so that what was
made for one is nothing to another. Sealing is AES-256-GCM with random nonces; a copy of the database without the key file
opens nothing.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3core.credentials import CredentialsError, read_key_file

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"


class NotOurs(ValueError):
    """It was not sealed or signed with this key for this purpose, or it was changed since."""


class SecretBox:
    """Threads share it. `random`: bytes that nobody can guess."""

    def __init__(self, key: bytes, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes or more")
        self._key = key
        self._random = random

    @classmethod
    def open_file(cls, path: Path, *, create: bool = True) -> "SecretBox":
        """With the key in `path`; where there is none and `create`, a new one is on disk on return, mode 0600.
        CredentialsError for a file that others may read, or that cannot be read or made.

        A crash while it is made leaves no file, or the whole key: it is linked to its name only when it is on disk. Two
        that start at once end with the same key."""
        if create and not path.exists():
            try:
                _create(path)
            except OSError as error:
                raise CredentialsError(f"{path}: cannot make the key file: {error.strerror}") from error
        return cls(read_key_file(path))

    def seal(self, plain: bytes, purpose: str) -> str:
        """Text that only `open` with the same purpose gives back. Put what it belongs to into the purpose (`totp:<user id>`),
        so that a row's secret cannot be moved to another row. It grows by 29 bytes, then by a third."""
        nonce = self._random(_NONCE_BYTES)
        box = AESGCM(self.sub_key("seal:" + purpose)).encrypt(nonce, plain, _VERSION)
        return base64.urlsafe_b64encode(_VERSION + nonce + box).decode().rstrip("=")

    def open(self, sealed: str, purpose: str) -> bytes:
        """NotOurs."""
        try:
            data = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        except (binascii.Error, ValueError) as error:
            raise NotOurs("it is not sealed text") from error
        if data[:1] != _VERSION or len(data) < 1 + _NONCE_BYTES + 16:
            raise NotOurs("it is not sealed text")
        nonce, box = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES :]
        try:
            return AESGCM(self.sub_key("seal:" + purpose)).decrypt(nonce, box, _VERSION)
        except InvalidTag as error:
            raise NotOurs("it was sealed with another key or for another purpose, or was changed") from error

    def mac(self, message: bytes, purpose: str) -> str:
        """HMAC-SHA-256, 64 hexadecimal digits."""
        return hmac.new(self.sub_key("mac:" + purpose), message, hashlib.sha256).hexdigest()

    def sub_key(self, purpose: str) -> bytes:
        """32 bytes for this purpose alone."""
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"envctl:" + purpose.encode()).derive(self._key)


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
