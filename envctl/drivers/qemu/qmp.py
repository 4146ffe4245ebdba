"""One command to QEMU's monitor (QMP), on a connection of its own.

One rule: connect, ask, close, within a time limit: the monitor serves one client at a time, and another worker may be waiting.
Specification: QEMU, "QEMU Machine Protocol Specification", 2.2 to 2.5.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

TIMEOUT_S: Final = 15.0
_LINE_BYTES_MAX: Final = 1 << 20


class MonitorGone(Exception):
    """Nobody listens, or the answer never came: the machine may have ended, and the command may have been carried out."""


class MonitorNotListening(MonitorGone):
    """There was nobody to connect to, so nothing was asked: a QEMU that has just been started listens a moment later."""


class MonitorRefused(Exception):
    """QEMU said no."""


async def ask(
    path: str, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
) -> Any:
    """What the command returned. MonitorGone, MonitorRefused."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(path, command, arguments)
    except TimeoutError as error:
        raise MonitorGone(f"no answer to {command} within {timeout_s:g} s") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise MonitorNotListening(f"{command}: {error}") from error
    except (OSError, EOFError, ValueError) as error:
        raise MonitorGone(f"{command}: {error or type(error).__name__}") from error


async def _ask(path: str, command: str, arguments: Mapping[str, Any] | None) -> Any:
    reader, writer = await asyncio.open_unix_connection(path, limit=_LINE_BYTES_MAX)
    try:
        json.loads(await _line(reader))  # the greeting
        await _call(reader, writer, {"execute": "qmp_capabilities"})
        question: dict[str, Any] = {"execute": command}
        if arguments:
            question["arguments"] = dict(arguments)
        return await _call(reader, writer, question)
    finally:
        writer.close()


async def _call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Mapping[str, Any]) -> Any:
    writer.write(json.dumps(question).encode() + b"\n")
    await writer.drain()
    while True:
        answer = json.loads(await _line(reader))
        if "error" in answer:
            raise MonitorRefused(str(answer["error"].get("desc", answer["error"])))
        if "return" in answer:
            return answer["return"]
        # An event: nobody here waits for one.


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the monitor closed the connection")
    return line
