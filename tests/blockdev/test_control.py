"""The control socket: the protocol, who may use it, and what a crash or a long path does to it."""

import asyncio
import json
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockdev.control import REQUEST_BYTES_MAX, SOCKET_PATH_BYTES_MAX, Answered, ControlClient, ControlServer, NotServed
from blockdev.control import rebuilt_error as rebuilt
from blockdev.errors import AttachRefused, Fenced, NotReady, Refused
from s3core.errors import Denied


def operate(name: str, arguments: dict[str, Any], answered: Answered) -> None:
    match name:
        case "echo":
            answered(arguments)
        case "later":
            asyncio.get_running_loop().call_later(0.05, answered, {"was": "late"})
        case "twice":
            answered({"number": 1})
            answered({"number": 2})
        case "fenced":
            raise Fenced("taken over", hint="stop")
        case "denied":
            answered(Denied("no", key="v1/vm1/log", hint="grant s3:PutObject"))
        case "bug":
            raise KeyError("gone")
        case "never":
            return
        case _:
            raise Refused(f"no operation {name}")


def serve(directory: Path, test: Callable[[], None]) -> ControlServer:
    """`test` in a thread, while a server listens in `directory`."""
    server = ControlServer(directory, operate)

    async def body() -> None:
        await server.start()
        try:
            await asyncio.to_thread(test)
        finally:
            server.close()
            server.close()

    asyncio.run(body())
    return server


def test_several_requests_on_one_connection_and_several_connections(tmp_path: Path) -> None:
    def test() -> None:
        with ControlClient(tmp_path) as one, ControlClient(tmp_path, timeout_s=10.0) as other:
            assert one.ask("echo", name="s1", note="ä\n") == {"name": "s1", "note": "ä\n"}
            assert other.ask("later") == {"was": "late"}
            assert one.ask("twice") == {"number": 1}
            assert one.ask("echo") == {}

    serve(tmp_path, test)


def test_errors_come_back_as_what_they_were_and_the_connection_goes_on(tmp_path: Path) -> None:
    def test() -> None:
        with ControlClient(tmp_path) as client:
            with pytest.raises(Fenced) as fenced:
                client.ask("fenced")
            assert (str(fenced.value), fenced.value.hint) == ("taken over (stop)", "stop")
            with pytest.raises(Denied, match="v1/vm1/log: no") as denied:
                client.ask("denied")
            assert denied.value.hint == "grant s3:PutObject"
            with pytest.raises(Refused, match="no operation dance"):
                client.ask("dance")
            with pytest.raises(NotReady, match="KeyError: 'gone'"):
                client.ask("bug")
            assert client.ask("echo", left=1) == {"left": 1}

    serve(tmp_path, test)


def test_errors_of_every_kind_keep_their_class() -> None:
    assert type(rebuilt("AttachRefused", "x")) is AttachRefused
    assert str(rebuilt("MediumError", "sector 5 is damaged")) == "MediumError: sector 5 is damaged"
    assert type(rebuilt("SystemExit", "x")) is NotReady


@pytest.mark.parametrize("sent", [b"{", b"[1]", b'{"name": 1}', b'{"do": 7}', b"\xff\xfe", b""])
def test_what_is_no_request_is_answered_and_forgotten(tmp_path: Path, sent: bytes) -> None:
    def test() -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(tmp_path / "control"))
            raw.sendall(sent + b'\n{"do": "echo", "n": 1}\n')
            with raw.makefile("rb") as lines:
                first, second = json.loads(lines.readline()), json.loads(lines.readline())
            assert (first["ok"], first["kind"]) == (False, "BadRequest")
            assert second == {"ok": True, "result": {"n": 1}}

    serve(tmp_path, test)


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    def test() -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(10.0)
            raw.connect(str(tmp_path / "control"))
            raw.sendall(b"x" * (REQUEST_BYTES_MAX + 4096))
            with raw.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        assert str(REQUEST_BYTES_MAX) in answer["error"]
        with ControlClient(tmp_path) as client, pytest.raises(Exception, match="at most"):
            client.ask("echo", much="x" * REQUEST_BYTES_MAX)

    serve(tmp_path, test)


def test_only_its_user_may_connect_and_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    def test() -> None:
        mode = (tmp_path / "control").lstat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    server = serve(tmp_path, test)
    assert not server.path.exists()
    with pytest.raises(NotServed, match="no daemon serves"):
        ControlClient(tmp_path)


def test_a_socket_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    with pytest.raises(NotServed):
        ControlClient(tmp_path)

    def test() -> None:
        with ControlClient(tmp_path) as client:
            assert client.ask("echo", alive=True) == {"alive": True}

    serve(tmp_path, test)


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep / "control")) <= SOCKET_PATH_BYTES_MAX:
        deep = deep / "directory-of-a-long-name"
    with pytest.raises(NotServed):
        ControlClient(deep)
    deep.mkdir(parents=True)
    with pytest.raises(NotServed):
        ControlClient(deep)

    def test() -> None:
        assert stat.S_ISSOCK((deep / "control").lstat().st_mode)
        with ControlClient(deep) as client:
            assert client.ask("echo", far="down") == {"far": "down"}

    for _ in range(2):
        assert not serve(deep, test).path.exists()


def test_a_daemon_that_ends_or_says_nothing_ends_the_question(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, operate)

    def ask_without_end() -> None:
        with ControlClient(tmp_path) as client:
            client.ask("never")

    def ask_for_a_while() -> None:
        with ControlClient(tmp_path, timeout_s=0.1) as client:
            client.ask("never")

    async def body() -> None:
        await server.start()
        with pytest.raises(NotReady, match="no answer"):
            await asyncio.to_thread(ask_for_a_while)
        asking = asyncio.create_task(asyncio.to_thread(ask_without_end))
        await asyncio.sleep(0.1)
        server.close()
        with pytest.raises(NotReady, match="went away"):
            await asking

    asyncio.run(body())
