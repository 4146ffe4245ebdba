"""A core for tests, in this process: its socket is real, its buckets are in memory, and each has a gate that can be shut.

One rule: a gate does to requests what a network does: it lets them through, holds them, refuses them or slows them down.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugin.bucket import StorageBucket
from plugin.configuration import Storage
from plugin.errors import CODES
from plugin.service.command import Core
from plugin.service.files import bring_snippets
from plugin.service.mounts import Mounts
from plugin.service.storages import Attached, Storages
from s3core.bucket import Bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.errors import Denied, OutcomeUnknown, Unavailable
from s3core.memory_bucket import MemoryService
from s3core.settings import Config, load_config
from s3core.wrapper import Call, T


class Gate:
    """`state` is open, hung, refusing, denied or slow."""

    def __init__(self) -> None:
        self.state = "open"
        self.slow_s = 0.3
        self.lose: set[str] = set()
        """Of each of these operations one answer more is lost: it is done, and nobody hears of it."""
        self.requests: list[tuple[str, str]] = []
        self._freed = threading.Event()

    def free(self) -> None:
        """Open, and what hangs goes on."""
        self.state = "open"
        self._freed.set()
        self._freed = threading.Event()

    def pass_through(self, call: Call) -> None:
        self.requests.append((call.operation, call.key))
        if self.state == "hung":
            self._freed.wait()
        elif self.state == "refusing":
            raise Unavailable("connection refused")
        elif self.state == "denied":
            raise Denied("403 AccessDenied")
        elif self.state == "slow":
            time.sleep(self.slow_s)


class GatedBucket(BucketWrapper):
    def __init__(self, inner: Bucket, gate: Gate) -> None:
        super().__init__(inner)
        self._gate = gate

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        self._gate.pass_through(call)
        result = action()
        if call.operation in self._gate.lose:
            self._gate.lose.remove(call.operation)
            raise OutcomeUnknown("the answer was lost", key=call.key)
        return result


class ToldError(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        assert error["code"] in CODES
        self.code: str = error["code"]
        self.hint: str = error["hint"]


def ask(path: Path, method: str, storage: str, deadline_ms: int | None = None, **args: Any) -> dict[str, Any]:
    """One call over a socket, as the Perl side makes it. ToldError."""
    return ask_all(path, method, storage, deadline_ms, **args)[0]


def ask_all(
    path: Path, method: str, storage: str, deadline_ms: int | None = None, **args: Any
) -> tuple[dict[str, Any], list[str]]:
    """The result, and the lines of progress before it."""
    request: dict[str, Any] = {"v": 1, "id": "7", "method": method, "storage": storage, "args": args}
    if deadline_ms is not None:
        request["deadline_ms"] = deadline_ms
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        logs = []
        with connection.makefile("rb") as lines:
            for line in lines:
                answer = json.loads(line)
                assert answer["id"] == "7"
                if "log" in answer:
                    logs.append(answer["log"])
                elif "error" in answer:
                    raise ToldError(answer["error"])
                else:
                    return answer["result"], logs
    raise AssertionError("the connection ended without an answer")


class NoMounts(Mounts):
    """No processes: what is asked is noted."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, systemd=False)
        self.mounted: set[str] = set()

    def state(self, storage: Storage) -> tuple[bool, str]:
        return (True, "") if storage.id in self.mounted else (False, "the mount's process does not run")

    def activate(self, storage: Storage, deadline: float) -> tuple[bool, str]:
        self.mounted.add(storage.id)
        return True, ""

    def deactivate(self, storage: Storage, deadline: float) -> None:
        self.mounted.discard(storage.id)


class Node:
    """One node: storage.cfg, config.toml, state. Nodes with one `service` share buckets."""

    def __init__(self, directory: Path, service: MemoryService | None = None) -> None:
        self.directory = directory
        self.service = service or MemoryService()
        self.gates: dict[str, Gate] = {}
        self.settings = {"probe_s": "0.2s", "refresh_s": "1h"}
        (directory / "etc/pve/priv/storage").mkdir(parents=True)
        self.storages: dict[str, str] = {}
        self.core: Core | None = None
        self.mounts = NoMounts(directory / "run")

    def add(self, id: str, type: str = "bucketfiles", **properties: object) -> None:
        options = {
            "bw_bucket": "bucket",
            "bw_endpoint": "http://127.0.0.1:9",
            "bw_prefix": id,
            "bw_credentials": "none",
        } | properties
        lines = [f"{type}: {id}", f"\tpath {self.directory}/mnt/{id}"]
        lines += [f"\t{name.replace('_', '-')} {value}" for name, value in options.items()]
        self.storages[id] = "\n".join(lines) + "\n"
        self.gates.setdefault(id, Gate())
        self.write()

    def remove(self, id: str) -> None:
        del self.storages[id]
        self.write()

    def write(self) -> None:
        (self.directory / "etc/pve/storage.cfg").write_text("\n".join(self.storages.values()))

    @property
    def config_path(self) -> Path:
        return self.directory / "config.toml"

    def load(self) -> Config:
        lines = ["[pve]", f'state_dir = "{self.directory}/state"', f'run_dir = "{self.directory}/run"']
        lines += [f'{name} = "{value}"' for name, value in self.settings.items()]
        self.config_path.write_text("\n".join(lines) + "\n")
        return load_config(self.config_path)

    def bucket(self, name: str = "bucket") -> Bucket:
        """What the store has, past every gate."""
        return self.service.bucket(name)

    def start(self) -> "Node":
        def open_gated(
            storage: Storage, config: Config, *, deadline_s: float, around: Callable[[Bucket], Bucket]
        ) -> StorageBucket:
            gated = GatedBucket(around(self.bucket(storage.bucket)), self.gates.setdefault(storage.id, Gate()))
            return StorageBucket(gated, storage)

        def after(attached: Attached) -> None:
            bring_snippets(attached)

        storages = Storages(self.load, self.directory, opener=open_gated, after=after)
        self.core = Core(self.load, self.directory, mounts=self.mounts, storages=storages)
        self.core.start()
        return self

    def stop(self) -> None:
        for gate in self.gates.values():
            gate.free()
        if self.core is not None:
            self.core.stop()
            self.core = None

    @property
    def socket(self) -> Path:
        return self.directory / "run/pve.sock"

    def ask(self, method: str, storage: str = "s3", deadline_ms: int | None = None, **args: Any) -> dict[str, Any]:
        return ask(self.socket, method, storage, deadline_ms, **args)

    def attached(self, id: str = "s3") -> Attached:
        assert self.core is not None
        return self.core.storages.named(id)

    def names(self, storage: str = "s3", **args: Any) -> list[str]:
        """As the bucket is now: what was listed before is forgotten."""
        self.forget(storage)
        return [one["volname"] for one in self.ask("list", storage, **args)["volumes"]]

    def forget(self, storage: str = "s3") -> None:
        """What the core has listed, or lists right now. A storage that it is about to know may have its first listing begun."""
        self.attached(storage).keeper.forget()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
