"""Programs of this host: run to their end, or started so that they outlive us.

One rule: each in a session of its own: a key pressed at the console's terminal is not meant for it.
"""

import asyncio
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from envctl.errors import DriverBusy, DriverFailed

_TIMEOUT_S: Final = 60.0
_DETACHED: Final = 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null &'


async def run(*command: str, timeout_s: float = _TIMEOUT_S) -> tuple[int, str]:
    """Exit status and what it printed. In a session of its own: a key pressed at the console's terminal is not meant for it.

    DriverFailed where there is no such program; DriverBusy after `timeout_s`: it was killed, and may have done its work."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise DriverFailed(f"{command[0]} is not installed", hint="`s3-envctl doctor` says what is needed") from error
    try:
        async with asyncio.timeout(timeout_s):
            said, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise DriverBusy(f"{command[0]} took longer than {timeout_s:g} s") from error
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace").strip()


async def launch(command: Sequence[str], log: Path) -> int:
    """Start a program that is nobody's child, with its output in `log`. Gives a descriptor for `has_ended`, to be closed.

    OSError. A kill of this process before or after leaves no program, or a whole one."""
    alive, of_program = os.pipe()
    try:
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-c", _DETACHED, "sh", str(log), *command), start_new_session=True, pass_fds=(of_program,)
        )
        await shell.wait()
    except BaseException:
        os.close(alive)
        raise
    finally:
        os.close(of_program)
    return alive


def has_ended(alive: int) -> bool:
    """The program has its end of the pipe open for as long as it lives."""
    readable, _, _ = select.select([alive], [], [], 0)
    return bool(readable)
