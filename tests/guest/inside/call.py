"""Calls one function in the guest, in a fork of the agent: to start Python and to import take seconds under emulation.

One rule: what is returned is the last line; whatever else is printed is for who looks for the cause of a failure.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from typing import IO, Any

ANSWER = "\x02answer "
"""Before the result, on a line of its own."""


def load(place: str) -> None:
    """Import the function's module, in the agent. What prevents that is told by the call itself."""
    with contextlib.suppress(Exception):
        importlib.import_module(place.partition(":")[0])


def fork(place: str, arguments: dict[str, Any]) -> tuple[int, IO[bytes]]:
    """A process, the leader of a group of its own, that calls the function; and what it prints, both streams."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, open(reader, "rb")
    status = 1
    try:
        os.setsid()
        _own_streams(writer)
        module, _, name = place.partition(":")
        result = getattr(importlib.import_module(module), name)(**arguments)
        print(f"{ANSWER}{json.dumps(result)}", flush=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  # told to the host, as the end of a process of its own would be
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _own_streams(writer: int) -> None:
    """Nothing in, both streams to `writer`, and no other file of the agent's open: others wait for the end of theirs."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (writer, 1), (writer, 2)):
        os.dup2(source, target)
    os.closerange(3, 4096)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
