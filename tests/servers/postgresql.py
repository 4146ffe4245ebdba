"""A PostgreSQL server of the tests' own, by the binaries of Debian's package `postgresql`: a new cluster in a directory of
its own, reached by a Unix socket there, without a port.

One rule: the server never runs as root (it refuses to); where the tests do, it is `postgres`, or `nobody`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Final

from tests.servers.processes import ServerFailed, end, start, tail

ROLE: Final = "bucketworks"
_FAST_SHUTDOWN: Final = signal.SIGINT


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are, of the newest version; None: not installed."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0,
    )
    if found:
        return found[-1]
    there = shutil.which("postgres")
    return Path(there).parent if there and shutil.which("initdb") else None


class Postgresql:
    """Running on return. Each test takes a database of its own."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, "ask `binaries` first"
        self._binaries = found
        self._numbers = count(1)
        self._as = _other_user()
        # Not below pytest's directory: that is closed to the user that the server runs as.
        self._directory = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._as:
            os.chown(self._directory, self._as.pw_uid, self._as.pw_gid)
        self._log = self._directory / "log"
        self._data = self._directory / "data"
        self._initialise()
        self.start()

    def start(self) -> None:
        options = {"listen_addresses": "", "unix_socket_directories": str(self._directory), "fsync": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = start(self._command("postgres", "-D", str(self._data), *settings), self._log)
        self._wait()

    def kill(self) -> None:
        """As if the power went; `start` recovers."""
        end(self._process)

    def new_database(self) -> str:
        """Its url for SQLAlchemy."""
        name = f"test_{next(self._numbers)}"
        self._run("createdb", "-h", str(self._directory), "-U", ROLE, name)
        return f"postgresql+psycopg://{ROLE}@/{name}?host={self._directory}"

    def stop(self) -> None:
        end(self._process, _FAST_SHUTDOWN)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _initialise(self) -> None:
        self._run("initdb", "-D", str(self._data), "-U", ROLE, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")

    def _wait(self, seconds: float = 60.0) -> None:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                raise ServerFailed(f"postgres ended with {self._process.returncode}:\n{tail(self._log)}")
            if self._ask("pg_isready", "-h", str(self._directory), "-U", ROLE).returncode == 0:
                return
            time.sleep(0.05)
        raise ServerFailed(f"postgres does not answer after {seconds} s:\n{tail(self._log)}")

    def _run(self, program: str, *arguments: str) -> None:
        done = self._ask(program, *arguments)
        if done.returncode != 0:
            raise ServerFailed(f"{program} ended with {done.returncode}:\n{done.stderr}")

    def _ask(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, timeout=120, check=False, cwd="/"
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._binaries / program), *arguments]
        if self._as is None:
            return command
        # The kernel forgets what to do at the parent's death when the user changes, so it is said again here.
        identity = ["--reuid", str(self._as.pw_uid), "--regid", str(self._as.pw_gid), "--clear-groups"]
        return ["setpriv", *identity, "--pdeathsig", "KILL", "--", *command]


def _other_user() -> pwd.struct_passwd | None:
    """Whom to be in place of root; None: stay who we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerFailed("postgres does not run as root, and there is neither a user `postgres` nor `nobody`")
