"""Public SSH keys as people give them. Pure.

One rule: a key becomes a line of `authorized_keys` in a guest, so it is one line of a known kind and has no options.
"""

import base64
import binascii
import hashlib
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

KINDS: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
CHARACTERS_MAX: Final = 8192
RSA_BITS_MIN: Final = 2048


def check_key(text: str) -> str:
    """The key as kept: kind, key and comment, one blank between. ValueError says what is wrong; a private key is not
    repeated."""
    if "PRIVATE KEY" in text:
        raise ValueError("that is a private key; keep it, and give the file that ends with .pub")
    line = text.strip()
    if len(line) > CHARACTERS_MAX or any(ord(letter) < 32 or ord(letter) == 127 for letter in line):
        raise ValueError("a public key is one line")
    kind, _, rest = line.partition(" ")
    data, _, comment = rest.strip().partition(" ")
    if kind not in KINDS:
        raise ValueError(f"a public key begins with its kind, such as ssh-ed25519, not {kind[:40]!r}")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the key is not base 64") from error
    # The kind stands in the key too (RFC 4253, 6.6); where they differ, the line was put together.
    length = int.from_bytes(raw[:4], "big")
    if raw[4 : 4 + length] != kind.encode():
        raise ValueError(f"the key is not of kind {kind}")
    if not kind.startswith("sk-"):
        try:
            key = load_ssh_public_key(f"{kind} {data}".encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError("the key cannot be read") from error
        if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
            raise ValueError(f"an RSA key has at least {RSA_BITS_MIN:,} bits")
    return f"{kind} {data} {comment.strip()}".strip()


def fingerprint(key: str) -> str:
    """As `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(base64.b64decode(key.split(" ")[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
