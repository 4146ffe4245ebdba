"""The worker's fetching thread comes first while a host waits for a read, and no longer."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import cast

import pytest

from blockdev.engine.assembly import Orders
from blockdev.engine.process import NICE, NICE_READING, Host, ReadPriority


def on_a_thread(check: Callable[[], None]) -> None:
    """On a thread of its own at the worker's priority: one that is lowered stays so where nobody may raise it."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            check()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_read_raises_it_until_none_came_between_two_looks() -> None:
    def check() -> None:
        reading = ReadPriority()
        reading.look(NICE)
        assert nice() == NICE
        reading.asked()
        reading.asked()
        assert nice() == NICE_READING
        reading.look(NICE)
        assert nice() == NICE_READING
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        reading.kept()
        assert nice() == NICE_READING
        reading.look(NICE)
        assert nice() == NICE

    on_a_thread(check)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_thread_that_is_begun_meanwhile_does_not_inherit_it() -> None:
    """What compresses and sends would run beside the front at equal priority from then on."""

    async def begun() -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            host = Host(cast(Orders, None), ours)  # nothing is attached
            host._reading.asked()
            assert nice() == NICE_READING
            return await host._execution.run(nice)

    def check() -> None:
        assert asyncio.run(begun()) == NICE

    on_a_thread(check)


def test_where_it_is_not_permitted_reads_go_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(*arguments: int) -> None:
        tries.append(arguments)
        raise PermissionError("not permitted")

    reading = ReadPriority()
    monkeypatch.setattr(os, "setpriority", refuse)
    for _ in range(3):
        reading.asked()
        reading.look(NICE)
    assert len(tries) == 1
