"""What a piece of Python costs in things that are the same on every machine: bytecodes, system calls, memory.

One rule: no clock. Bytecodes are counted by the interpreter's own tracing, one event for each instruction that Python code
executes; system calls at the functions of `os`, `socket`, `select` and `mmap` through which Python makes them, so a thread's
waking and locking are not among them; memory by `tracemalloc`, the most that was held beyond the beginning. Each is a run of
its own, since one would disturb the other. What runs in C is one bytecode, whatever it does: a guard, not a profile.
"""

import gc
import itertools
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any

FREE = frozenset(
    (
        "fspath",
        "fsencode",
        "fsdecode",
        "urandom",
        "WIFEXITED",
        "get_inheritable",
        "cpu_count",
        "getpid",
        "fileno",
        "gettimeout",
        "_path_normpath",
    )
)
"""Functions of `posix` that call no kernel, or that no operation is judged by."""
_MODULES = frozenset(("posix", "select", "_socket", "fcntl"))
_TYPES = frozenset(("socket", "epoll", "mmap", "FileIO", "DirEntry", "ScandirIterator"))
_RECEIVES = ("recv", "recv_into", "recvmsg", "recvmsg_into", "accept", "read", "readinto", "__next__")
_SENDS = ("send", "sendmsg", "sendall", "connect", "shutdown", "write", "flush", "truncate")
_OF_TYPES = frozenset((*_RECEIVES, *_SENDS, "poll", "stat", "close", "setsockopt"))
_HERE = Path(__file__).resolve().parents[1]
_LIBRARY = Path(threading.__file__).parent
NOT_COUNTED = (
    f"{_HERE / 'tests'}/",
    f"{_HERE / 'bench'}/",
    *(
        f"{_LIBRARY / name}"
        for name in ("asyncio", "concurrent", "selectors.py", "threading.py", "queue.py", "contextlib.py")
    ),
    "<frozen",
)
"""Files whose bytecodes are left out: what waits goes round as often as the machine likes, and what measures does not count."""


@dataclass(slots=True)
class Tally:
    """What was counted while `counting` was open."""

    bytecodes: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """System calls by the name of the function."""
    peak_bytes: int = 0

    @property
    def system_calls(self) -> int:
        return self.calls.total()


@contextmanager
def _no_collection() -> Iterator[None]:
    """What a collection finds to close was somebody else's."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def bytecodes(tally: Tally) -> Iterator[None]:
    """Adds the instructions of this thread, and of threads that are started meanwhile, to `tally`."""
    counter = itertools.count()

    def in_frame(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            next(counter)
        return in_frame

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename.startswith(NOT_COUNTED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return in_frame

    before = sys.gettrace()
    with _no_collection():
        threading.settrace(entered)
        sys.settrace(entered)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before)
        tally.bytecodes += next(counter)


@contextmanager
def system_calls(tally: Tally) -> Iterator[None]:
    """Adds the system calls of this thread, and of threads that are started meanwhile, to `tally`."""
    calls = tally.calls

    def called(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and isinstance(argument, BuiltinFunctionType):
            name = _system_call(argument)
            if name:
                calls[name] += 1

    with _no_collection():
        threading.setprofile(called)
        sys.setprofile(called)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def _system_call(function: BuiltinFunctionType) -> str:
    name = function.__name__
    owner = function.__self__
    kind = type(owner).__name__
    if kind == "module":
        module = getattr(owner, "__name__", "")
        return name if module in _MODULES and name not in FREE else ""
    return name if kind in _TYPES and name in _OF_TYPES else ""


@contextmanager
def memory(tally: Tally) -> Iterator[None]:
    """Raises `tally.peak_bytes` to the most that was held beyond what was held at the beginning."""
    with _no_collection():
        tracemalloc.start(1)
        before = tracemalloc.get_traced_memory()[0]
        try:
            yield
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        tally.peak_bytes = max(tally.peak_bytes, peak - before)


Counting = Callable[[Tally], AbstractContextManager[None]]
KINDS: dict[str, Counting] = {"bytecodes": bytecodes, "system_calls": system_calls, "peak_bytes": memory}
