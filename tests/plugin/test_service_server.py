"""The socket by itself: requests that are none, deadlines, heartbeats, callers who hang up, too many calls."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.errors import Busy, DeadlineOver
from plugin.service import server as server_module
from plugin.service.lanes import Lane
from plugin.service.server import Call, Result, Served, Server
from s3core.settings import ConfigError
from tests.plugin.service_world import ToldError, ask, ask_all, wait_until


class Work:
    """A method that waits until it may go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.saw_gone = threading.Event()

    def __call__(self, call: Call) -> Result:
        self.begun.release()
        while not self.go.wait(0.01):
            call.say("at it")
            if call.gone:
                self.saw_gone.set()
                return {}
        return {"done": True}


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.go.set()


def broken(call: Call) -> Result:
    raise ZeroDivisionError("secret")


@pytest.fixture
def server(tmp_path: Path, work: Work) -> Iterator[Server]:
    made = Server(
        tmp_path / "run/pve.sock",
        {
            "ping": Served(lambda call: {"n": call.number("n", 1), "t": call.text("t", "")}, quick=True),
            "list": Served(work),
            "fetch": Served(work),
            "size": Served(broken),
        },
    )
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"no json\n",
        b"[1]\n",
        b'{"v":2,"id":"7","method":"ping"}\n',
        b'{"v":1,"id":"7","method":"none","storage":"x"}\n',
        b'{"v":1,"id":"7","method":"free","storage":"x"}\n',
        b'{"v":1,"id":"7","method":"ping","storage":"x","args":{"n":"1.5"}}\n',
        b'{"v":1,"id":"7","method":"ping","storage":"x","args":{"t":[]}}\n',
        b'{"v":1,"id":"7"',
    ],
)
def test_what_is_no_request_is_told_so(server: Server, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(server.path))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = json.loads(connection.makefile("rb").readline())
    assert answer["error"]["code"] == "configuration"
    assert "\n" not in answer["error"]["message"]


def test_numbers_may_come_as_text(server: Server) -> None:
    assert ask(server.path, "ping", "", n="12", t="x") == {"n": 12, "t": "x"}


def test_an_answer_comes_by_the_deadline(server: Server, work: Work) -> None:
    began = time.monotonic()
    with pytest.raises(ToldError) as told:
        ask(server.path, "list", "s3", 200)
    assert told.value.code == "deadline"
    assert 0.2 <= time.monotonic() - began < 5


def test_long_calls_tell_progress(server: Server, work: Work) -> None:
    threading.Timer(1.5, work.go.set).start()
    result, logs = ask_all(server.path, "fetch", "s3")
    assert result == {"done": True}
    assert logs
    assert set(logs) == {"at it"}


def test_a_silent_call_has_heartbeats(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(server_module, "LOOK_S", 0.1)
    silent = threading.Event()

    def wait(call: Call) -> Result:
        silent.wait()
        return {}

    server = Server(tmp_path / "pve.sock", {"fetch": Served(wait)})
    server.start()
    threading.Timer(1.0, silent.set).start()
    _, logs = ask_all(server.path, "fetch", "s3")
    assert logs
    assert set(logs) == {"fetch: still at it"}
    server.close()


def test_who_hangs_up_is_noticed(server: Server, work: Work) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(server.path))
    connection.sendall(b'{"v":1,"id":"7","method":"fetch","storage":"s3"}\n')
    assert work.begun.acquire(timeout=20)
    connection.close()
    assert work.saw_gone.wait(20)
    wait_until(lambda: server.calls["fetch", "gone"] == 1)


def test_one_storage_has_only_so_many_calls(server: Server, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "OF_ONE_STORAGE_MAX", 2)
    threads = [threading.Thread(target=ask, args=(server.path, "fetch", "s3")) for _ in range(2)]
    for one in threads:
        one.start()
        assert work.begun.acquire(timeout=20)
    with pytest.raises(ToldError) as told:
        ask(server.path, "fetch", "s3")
    assert told.value.code == "busy"
    assert ask(server.path, "ping", "s3") == {"n": 1, "t": ""}
    work.go.set()
    for one in threads:
        one.join()
    assert ask(server.path, "fetch", "s3") == {"done": True}


def test_an_error_of_ours_tells_nothing_but_its_kind(server: Server) -> None:
    with pytest.raises(ToldError, match="ZeroDivisionError in the core") as told:
        ask(server.path, "size", "s3")
    assert told.value.code == "bug"
    assert ask(server.path, "ping", "s3") == {"n": 1, "t": ""}
    assert server.calls["size", "bug"] == 1


def test_only_one_core_serves_there(server: Server) -> None:
    with pytest.raises(ConfigError, match="another core"):
        Server(server.path, {}).start()
    assert ask(server.path, "ping", "") == {"n": 1, "t": ""}


def test_a_socket_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "pve.sock"))
    left.close()
    server = Server(tmp_path / "pve.sock", {"ping": Served(lambda call: {}, quick=True)})
    server.start()
    assert ask(server.path, "ping", "") == {}
    server.close()
    assert not server.path.exists()


def test_a_lane_has_so_many_places() -> None:
    lane, go = Lane("storage s3", 1), threading.Event()
    with pytest.raises(DeadlineOver):
        lane.run(go.wait, time.monotonic() + 0.05)
    assert lane.busy == 1
    with pytest.raises(Busy):
        lane.run(go.wait, time.monotonic() + 0.05)
    go.set()
    wait_until(lambda: lane.busy == 0)
    assert lane.run(lambda: 7, time.monotonic() + 20) == 7
    with pytest.raises(ZeroDivisionError):
        lane.run(lambda: 1 // 0, time.monotonic() + 20)
