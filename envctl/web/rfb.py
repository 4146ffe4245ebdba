"""The beginning of the RFB protocol (RFC 6143, section 7.1), as much as a bridge speaks for both ends: version and security.

One rule: the password of the far side stays here. The bridge answers its challenge, and tells the browser that none is asked
for.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from envctl.errors import DriverFailed

VERSION: Final = b"RFB 003.008\n"
NONE: Final = 1
VNC: Final = 2
CHALLENGE_BYTES: Final = 16
TEXT_BYTES_MAX: Final = 4096

Exactly = Callable[[int], Awaitable[bytes]]
Send = Callable[[bytes], Awaitable[None]]


async def open_far(read: Exactly, send: Send, password: str) -> None:
    """Be the client of the far side, up to ClientInit. DriverFailed where it speaks otherwise or refuses the password."""
    version = await read(12)
    if not version.startswith(b"RFB 003."):
        raise DriverFailed("the far side of the screen does not speak RFB")
    # QEMU speaks 3.8; older ones choose the security type themselves, and none that is met here does.
    if version < b"RFB 003.007\n":
        raise DriverFailed(f"the far side speaks {version[:11].decode('latin-1')}; 3.7 or later is needed")
    await send(VERSION)
    count = (await read(1))[0]
    if not count:
        raise DriverFailed(f"the screen was refused: {await _reason(read)}")
    offered = await read(count)
    if VNC in offered and password:
        await send(bytes([VNC]))
        await send(response(password, await read(CHALLENGE_BYTES)))
    elif NONE in offered:
        await send(bytes([NONE]))
    else:
        raise DriverFailed(f"the screen offers no security type that is known here: {list(offered)}")
    if await read(4) != b"\0\0\0\0":
        raise DriverFailed(f"the screen was refused: {await _reason(read)}")


async def open_near(read: Exactly, send: Send) -> None:
    """Be the server of the browser, up to ClientInit. DriverFailed where it speaks otherwise."""
    await send(VERSION)
    if not (await read(12)).startswith(b"RFB 003.00"):
        raise DriverFailed("the browser does not speak RFB")
    await send(bytes([1, NONE]))
    if await read(1) != bytes([NONE]):
        raise DriverFailed("the browser chose another security type than the one there is")
    await send(b"\0\0\0\0")


def response(password: str, challenge: bytes) -> bytes:
    """What answers a challenge (7.2.2): DES, each byte of the key with its bits the other way round."""
    key = password.encode("latin-1", "replace")[:8].ljust(8, b"\0")
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    # DES is what the protocol has; three times the same key is DES.
    encryptor = Cipher(TripleDES(mirrored * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()


async def _reason(read: Exactly) -> str:
    size = int.from_bytes(await read(4), "big")
    return (await read(min(size, TEXT_BYTES_MAX))).decode("utf-8", "replace")
