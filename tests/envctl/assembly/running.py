"""A console with its doors open: in a thread of the test, or as a process of its own.

    with running_console(tmp_path) as console:
        console.client(console.token("alice")).get("/api/v1/environments")

One rule: rows are put in through a second set of parts on the same database, as another worker would.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from envctl import serving
from envctl.accounts import logins, people, tokens
from envctl.calling import Context, Role
from s3core.settings import Config, parse_config
from tests.envctl.world import CHEAP, PASSWORD

START_S = 120.0
COMMAND = [sys.executable, "-c", "from envctl.cli import main; main()"]


@dataclass
class Running:
    url: str
    context: Context
    config: Config

    def add_user(self, name: str, role: Role = "user") -> str:
        """The id."""
        with self.context.database.write() as session:
            user = people.new_user(session, self.context, name, CHEAP.hash(PASSWORD), role=role, must_change=False)
        return user.id

    def token(self, name: str, *scopes: str) -> str:
        with self.context.database.write() as session:
            user = people.find_user(session, name)
            return tokens.create(session, self.context, user, "test", list(scopes) or ["*"], None).text

    def cookie(self, name: str) -> logins.NewLogin:
        """Of a browser that is signed in."""
        with self.context.database.write() as session:
            user = people.find_user(session, name)
            return logins.create(session, self.context, user, "full", address="127.0.0.1")

    def client(self, token: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60.0)

    def browser(self, name: str) -> httpx.Client:
        login = self.cookie(name)
        made = self.client()
        made.headers["Cookie"] = f"envctl={login.cookie}"
        made.headers["Origin"] = self.url
        made.headers["X-CSRF-Token"] = login.csrf
        return made


def write_config(directory: Path, text: str = "", listen: str = "127.0.0.1:0") -> Path:
    """`text`: more lines of `[envctl]`, then other tables."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.toml"
    path.write_text(
        f'[envctl]\nlisten = "{listen}"\nstate_dir = "{directory / "state"}"\nhomes = "file://{directory / "homes"}"\n'
        + text,
        encoding="utf-8",
    )
    return path


@contextmanager
def running_console(directory: Path, text: str = "", *, role: serving.Role = "all") -> Iterator[Running]:
    """In a thread."""
    path = write_config(directory, text)
    config = parse_config(path.read_text(encoding="utf-8"), path=path)
    told: queue.Queue[tuple[str, Callable[[], None]] | BaseException] = queue.Queue()

    def serve() -> None:
        try:
            serving.serve(config, role, environ={}, ready=lambda url, stop: told.put((url, stop)))
        except BaseException as error:  # the test's thread raises it
            told.put(error)
            raise

    thread = threading.Thread(target=serve, name="console")
    thread.start()
    first = told.get(timeout=START_S)
    if isinstance(first, BaseException):
        thread.join()
        raise first
    url, stop = first
    try:
        with serving.open_context(config) as context:
            yield Running(url, context, config)
    finally:
        stop()
        thread.join(START_S)
        assert not thread.is_alive(), "the console does not stop"


@contextmanager
def console_process(config: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`s3-envctl serve` and its address; ended by SIGTERM where it still runs."""
    log = config.with_name("serve.log")
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(config), *arguments], stderr=out, text=True, env=environment()
        )
    try:
        yield process, _address(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENVCTL_", "BUCKETWORKS_"))}
    return kept | more


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for line in log.read_text(encoding="utf-8").splitlines():
            if "serving at " in line:
                return line.partition("serving at ")[2].split()[0]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the console did not start:\n{log.read_text(encoding='utf-8')}")
