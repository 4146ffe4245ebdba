"""What a console shows in the fake: a tiny RFB server (RFC 6143) with text on it, and a shell that repeats what it is told.

One rule: it speaks as QEMU and termproxy do, so that noVNC, xterm.js and the bridge between are really used: protocol 3.8, VNC
authentication with the ticket's password, raw 32-bit pixels in the format that was asked for; `OK` after the terminal's ticket,
and termproxy's frames (`0:LENGTH:DATA`, `1:COLUMNS:ROWS:`, `2`) from the browser.
"""

import re
import secrets
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from envctl.fake_pve.glyphs import GLYPH_HEIGHT, GLYPH_WIDTH, glyph

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]
Lines = Callable[[], list[str]]

WIDTH: Final = 640
HEIGHT: Final = 400
SCALE: Final = 3
PAPER: Final = (24, 28, 36)
INK: Final = (222, 228, 236)
_MESSAGE_BYTES: Final = {0: 20, 3: 10, 4: 8, 5: 6}
"""Length of each fixed client message by its type; 2 (encodings) and 6 (cut text) say their own."""


class _Gone(Exception):
    """The browser's side closed the connection."""


class _Reader:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._have = b""

    async def take(self, count: int) -> bytes:
        while len(self._have) < count:
            more = await self._read()
            if more is None:
                raise _Gone
            self._have += more
        taken, self._have = self._have[:count], self._have[count:]
        return taken


async def serve_vnc(read: Read, write: Write, password: str, lines: Lines) -> None:
    """Until the browser goes. A wrong password is answered as QEMU does, and ends it."""
    reader = _Reader(read)
    try:
        await write(b"RFB 003.008\n")
        await reader.take(12)
        await write(bytes([1, 2]))  # one kind of security: VNC authentication
        await reader.take(1)
        challenge = secrets.token_bytes(16)
        await write(challenge)
        if await reader.take(16) != vnc_response(password, challenge):
            reason = b"Authentication failed"
            await write(struct.pack(">II", 1, len(reason)) + reason)
            return
        await write(struct.pack(">I", 0))
        await reader.take(1)
        name = (lines() or ["machine"])[0].encode()
        pixel = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        await write(struct.pack(">HH", WIDTH, HEIGHT) + pixel + struct.pack(">I", len(name)) + name)
        await _frames(reader, write, pixel, lines)
    except _Gone:
        return


async def _frames(reader: _Reader, write: Write, pixel: bytes, lines: Lines) -> None:
    shown: list[str] | None = None
    typed = ""
    while True:
        kind = (await reader.take(1))[0]
        if kind == 0:
            pixel = (await reader.take(19))[3:]
            shown = None
        elif kind == 2:
            count = struct.unpack(">xH", await reader.take(3))[0]
            await reader.take(4 * count)
        elif kind == 3:
            incremental = (await reader.take(9))[0]
            now = [*lines(), *([f"> {typed}"] if typed else [])]
            if not incremental or now != shown:
                shown = now
                await write(
                    struct.pack(">BxH", 0, 1) + struct.pack(">HHHHi", 0, 0, WIDTH, HEIGHT, 0) + picture(now, pixel)
                )
            else:
                # Nothing changed: an update without rectangles keeps the browser asking, so a later change is seen.
                await write(struct.pack(">BxH", 0, 0))
        elif kind == 4:
            down, key = struct.unpack(">BxxI", await reader.take(7))
            if down and 32 <= key < 127:
                typed = (typed + chr(key))[-32:]
            elif down and key == 0xFF0D:
                typed = ""
        elif kind == 6:
            length = struct.unpack(">xxxI", await reader.take(7))[0]
            await reader.take(length)
        elif kind in _MESSAGE_BYTES:
            await reader.take(_MESSAGE_BYTES[kind] - 1)
        else:
            return


def vnc_response(password: str, challenge: bytes) -> bytes:
    """RFC 6143 section 7.2.2: DES with the password's first eight bytes as key, the bits of each in reverse."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()


def picture(lines: Sequence[str], pixel: bytes) -> bytes:
    """The whole screen in the client's pixel format."""
    bits, _, big, _, red_max, green_max, blue_max, red, green, blue = struct.unpack(">BBBBHHHBBBxxx", pixel)

    def packed(colour: tuple[int, int, int]) -> bytes:
        value = 0
        for part, most, shift in zip(colour, (red_max, green_max, blue_max), (red, green, blue), strict=True):
            value |= (part * most // 255) << shift
        return value.to_bytes(bits // 8, "big" if big else "little")

    paper, ink = packed(PAPER), packed(INK)
    empty = paper * WIDTH
    rows = [empty] * HEIGHT
    left = 24
    for index, line in enumerate(lines[:12]):
        top = 24 + index * (GLYPH_HEIGHT + 4) * SCALE
        for y in range(GLYPH_HEIGHT):
            row = b"".join(
                _row(glyph(letter)[y], paper, ink)
                for letter in line[: (WIDTH - 2 * left) // (GLYPH_WIDTH + 1) // SCALE]
            )
            text = paper * left + row
            for repeat in range(SCALE):
                if top + y * SCALE + repeat < HEIGHT:
                    rows[top + y * SCALE + repeat] = text + paper * (WIDTH - len(text) // len(paper))
    return b"".join(rows)


def _row(bits: int, paper: bytes, ink: bytes) -> bytes:
    dots = [ink if bits >> (GLYPH_WIDTH - 1 - x) & 1 else paper for x in range(GLYPH_WIDTH)]
    return b"".join(dot * SCALE for dot in (*dots, paper))


async def serve_terminal(read: Read, write: Write, expected: bytes, lines: Lines) -> None:
    """termproxy: the first line is `USER:TICKET`; then a shell that repeats each line and knows `help`, `status` and `exit`."""
    reader = _Reader(read)
    try:
        line = b""
        while not line.endswith(b"\n"):
            line += await reader.take(1)
            if len(line) > 4096:
                return
        if line != expected:
            return
        await write(b"OK")
        name = (lines() or ["machine"])[0]
        prompt = f"user@{name}:~$ ".encode()
        await write(b"Simulated terminal. Try: help\r\n" + prompt)
        typed = b""
        while True:
            data = await _frame(reader)
            if data is None:
                continue
            for byte in data:
                if byte in (10, 13):
                    command = typed.decode("utf-8", "replace").strip()
                    typed = b""
                    if command == "exit":
                        await write(b"\r\nlogout\r\n")
                        return
                    await write(b"\r\n" + _said(command, lines()) + prompt)
                elif byte in (8, 127):
                    if typed:
                        typed = typed[:-1]
                        await write(b"\b \b")
                elif byte == 3:
                    typed = b""
                    await write(b"^C\r\n" + prompt)
                else:
                    typed += bytes([byte])
                    await write(bytes([byte]))
    except _Gone:
        return


async def _frame(reader: _Reader) -> bytes | None:
    """The next input, or None: a new size or a sign of life. What is not of the protocol ends the connection."""
    kind = await reader.take(1)
    if kind == b"2":
        return None
    await reader.take(1)
    if kind == b"1":
        for _ in range(2):
            while await reader.take(1) != b":":
                pass
        return None
    digits = b""
    while re.fullmatch(rb"\d", letter := await reader.take(1)):
        digits += letter
    if kind != b"0" or letter != b":" or not digits or len(digits) > 6:
        raise _Gone
    return await reader.take(int(digits))


def _said(command: str, lines: list[str]) -> bytes:
    if not command:
        return b""
    if command == "help":
        return b"help, status, exit; anything else is repeated\r\n"
    if command == "status":
        return "".join(f"{line}\r\n" for line in lines).encode()
    return f"{command}\r\n".encode()
