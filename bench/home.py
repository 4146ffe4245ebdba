"""What saving a home costs: the agent as guests run it, against the console's own guest API and homes on loopback.

One rule: the figure is of the whole command, `envctl-agent.pyz backup`, from its start to its exit; the bucket is a folder
behind the console, so packs go over HTTP and to a disk, and no network is in it.

`python -m bench.home` measures this alone: `--files` and `--bytes` say how large the homes are.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.processes import BenchFailed, end, start, wait_for_line
from bench.report import DASH, TableOf

MIB: Final = 1024 * 1024
UNCHANGED_AIM_S: Final = 10.0
CHANGED_AIM_S: Final = 30.0
READY: Final = "console ready"
FILES_A_DIRECTORY: Final = 1000
LARGE_FILE_BYTES: Final = 4 * MIB
CHANGED_PART: Final = 0.01
SETTLE_S: Final = 2.1
"""Until the clock's tick in which the last file was made is surely over: only then the cache can speak for it."""


@dataclass(frozen=True, slots=True)
class HomePlan:
    """`files`: how many small ones a home has that does not change; `size`: bytes of one of which a hundredth changes."""

    files: int
    size: int
    repeats: int = 3


FULL: Final = HomePlan(1_000_000, 10 * 1024 * MIB)
QUICK: Final = HomePlan(50_000, 512 * MIB, 2)


@dataclass(frozen=True, slots=True)
class Saved:
    """One run. `cpu_s`: of the agent, which a busy machine changes less than `seconds`; `puts`: objects put by the guest;
    `memory_mib`: the most that the agent held."""

    name: str
    files: int
    size: int
    seconds: float
    cpu_s: float
    puts: int
    put_bytes: int
    memory_mib: float
    aim_s: float = 0.0


class HomeBench:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say

    def run(self, plan: HomePlan) -> list[Saved]:
        """Both homes. BenchFailed where a backup is not what it must be."""
        return [*self._unchanged(plan), *self._changed(plan)]

    def _unchanged(self, plan: HomePlan) -> list[Saved]:
        with Site(self._directory / "many") as site:
            self._say(f"home: make {plan.files:,} files")
            for number in range(plan.files):
                if number % FILES_A_DIRECTORY == 0:
                    folder = site.home / "user" / f"d{number // FILES_A_DIRECTORY:05}"
                    folder.mkdir(parents=True)
                (folder / f"file{number % FILES_A_DIRECTORY:04}.txt").write_text(f"{number}\n")
            self._say("home: save all of them")
            first = site.save("first backup", plan.files)
            time.sleep(SETTLE_S)
            site.save("again", plan.files)
            runs = [site.save("unchanged", plan.files) for _ in range(plan.repeats)]
            if any(run.puts for run in runs):
                raise BenchFailed(f"an unchanged home put {[run.puts for run in runs]} objects")
            middle = replace(runs[0], seconds=median(run.seconds for run in runs), aim_s=UNCHANGED_AIM_S)
            return [first, middle]

    def _changed(self, plan: HomePlan) -> list[Saved]:
        with Site(self._directory / "large") as site:
            count = plan.size // LARGE_FILE_BYTES
            self._say(f"home: make {count:,} files of {LARGE_FILE_BYTES // MIB} MiB")
            drawn = random.Random(1)
            for number in range(count):
                (site.home / f"{number:05}").write_bytes(drawn.randbytes(LARGE_FILE_BYTES))
            self._say("home: save all of it")
            first = site.save("first backup", count, plan.size)
            time.sleep(SETTLE_S)
            site.save("again", count, plan.size)
            for number in drawn.sample(range(count), max(1, int(count * CHANGED_PART))):
                (site.home / f"{number:05}").write_bytes(drawn.randbytes(LARGE_FILE_BYTES))
            changed = site.save("1 % rewritten", count, plan.size)
            if not changed.puts:
                raise BenchFailed("a changed home put nothing")
            return [first, replace(changed, aim_s=CHANGED_AIM_S)]


class Site:
    """A console in a process of its own and a machine, both in `folder`, gone at the end. `store`: the port of a `bench.store`
    that homes lie in; 0: in a folder behind the console."""

    def __init__(self, folder: Path, store: int = 0) -> None:
        self._folder = folder
        self._store = store
        self.home = folder / "disk" / "home"

    def __enter__(self) -> "Site":
        self.home.mkdir(parents=True)
        for name in ("etc", "state", "run", "console"):
            (self._folder / name).mkdir()
        log = self._folder / "console.log"
        words = [
            sys.executable,
            "-m",
            "bench.home",
            "--serve",
            str(self._folder / "console"),
            "--store",
            str(self._store),
        ]
        self._console = start(words, log)
        try:
            facts = json.loads(wait_for_line(log, READY, self._console).split(READY)[1])
            self._address = facts["console"]
            (self._folder / "etc" / "seed.json").write_text(json.dumps(facts))
            with urllib.request.urlopen(f"{self._address}/guest/v1/agent.pyz") as answer:
                (self._folder / "agent.pyz").write_bytes(answer.read())
            self.agent("restore")
        except BaseException:
            end(self._console)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        end(self._console)
        shutil.rmtree(self._folder)

    def anew(self) -> None:
        """Another machine in the place of this one: a disk without a home, and a seed to enrol with."""
        with urllib.request.urlopen(urllib.request.Request(f"{self._address}/bench/anew", method="POST")) as answer:
            token = json.load(answer)
        for name in ("state", "run", "disk"):
            shutil.rmtree(self._folder / name)
        for folder in (self._folder / "state", self._folder / "run", self.home):
            folder.mkdir(parents=True)
        (self._folder / "etc" / "seed.json").write_text(json.dumps({"console": self._address, "token": token}))

    def command(self, *verb: str) -> list[str]:
        """Of the agent as this machine has it."""
        places = [f"--{name}={self._folder / name}" for name in ("etc", "state", "run")]
        return [sys.executable, str(self._folder / "agent.pyz"), *places, f"--base={self._folder / 'disk'}", *verb]

    def agent(self, *verb: str) -> tuple[float, float, float]:
        """(seconds, of them on a processor, MiB at the most) of one command."""
        command = self.command(*verb)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if process.returncode:
            console = (self._folder / "console.log").read_text()[-2000:]
            raise BenchFailed(f"the agent ended with {process.returncode}: {said.strip()}; the console said {console}")
        return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024

    def save(self, name: str, files: int, size: int = 0) -> Saved:
        before = self._counts()
        seconds, cpu_s, memory_mib = self.agent("backup", "--now")
        after = self._counts()
        return Saved(name, files, size, seconds, cpu_s, after[0] - before[0], after[1] - before[1], memory_mib)

    def _counts(self) -> tuple[int, int]:
        with urllib.request.urlopen(f"{self._address}/bench/counts") as answer:
            puts, size = json.load(answer)
        return int(puts), int(size)


def endpoint_settings(port: int) -> str:
    """The endpoint `bench` of a configuration: a `bench.store`."""
    return (
        f'[endpoint.bench]\nurl = "http://127.0.0.1:{port}"\nregion = "us-east-1"\naddressing = "path"\n'
        'preset = "ceph"\naccess_key = "bench"\nsecret_key = "bench"\n'
    )


def serve(folder: Path, port: int = 0) -> None:
    """The console's side, until the process is ended: guest API, database and homes as they are, and a count of PUTs. Homes
    are in the `bench.store` at `port`, to which guests are sent by signed addresses; 0: in a folder behind this API."""
    import uvicorn
    from fastapi import FastAPI, Request

    from envctl.agent.enrolment import machine_uuid
    from envctl.database.models import Environment
    from envctl.homes import requests
    from envctl.homes.opening import open_homes
    from envctl.web.guest import router
    from s3core.clock import SystemClock
    from s3core.settings import load_config
    from tests.envctl.world import make_world

    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    clock = SystemClock()
    settings = folder / "console.toml"
    settings.touch(mode=0o600)
    settings.write_text(endpoint_settings(port) if port else "")
    url = "s3://bench/homes" if port else f"file://{folder / 'bucket'}"
    store = open_homes(url, secret=os.urandom(32), config=load_config(settings), clock=clock)
    world = make_world(folder, homes=store, url=address)
    world.context = replace(world.context, clock=clock)
    environment = world.add_environment("alice", "work", world.add_template(), generation=1)
    store.fence(environment.id, 1)
    token = requests.seed(world.context, environment, 1, machine_uuid())[0]
    app = FastAPI()
    counts = [0, 0]

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Any:
        if request.method == "PUT":
            counts[0] += 1
            counts[1] += int(request.headers.get("content-length", "0"))
        return await call_next(request)

    app.get("/bench/counts")(lambda: counts)

    @app.post("/bench/anew")
    def anew() -> str:
        with world.context.database.write() as session:
            row = session.get(Environment, environment.id)
            assert row is not None
            row.generation += 1
            generation = row.generation
        store.fence(environment.id, generation)
        return requests.seed(world.context, environment, generation, machine_uuid())[0]

    app.include_router(router(lambda: world.context))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=60))

    def tell() -> None:
        while not server.started:
            time.sleep(0.01)
        print(f"{READY}{json.dumps({'console': address, 'token': token})}", flush=True)

    threading.Thread(target=tell).start()
    server.run(sockets=[listener])


def tables(runs: list[Saved]) -> list[TableOf]:
    return [
        (
            "Homes: one backup by the agent, from its start to its exit",
            ["home", "files", "GB", "s", "s of processor", "PUTs", "MB put", "MiB of memory", "aim s"],
            [
                [
                    run.name,
                    f"{run.files:,}",
                    f"{run.size / 1e9:.2f}" if run.size else DASH,
                    f"{run.seconds:.1f}",
                    f"{run.cpu_s:.1f}",
                    f"{run.puts:,}",
                    f"{run.put_bytes / 1e6:,.1f}",
                    f"{run.memory_mib:,.0f}",
                    f"{run.aim_s:g}" if run.aim_s else DASH,
                ]
                for run in runs
            ],
        )
    ]


def lines(runs: list[Saved]) -> list[str]:
    """What a reader must know of homes that were smaller than the aim speaks of."""
    said = []
    for run in runs:
        if run.aim_s == UNCHANGED_AIM_S and run.files < FULL.files:
            said.append(
                f"the aim of {run.aim_s:g} s is for {FULL.files:,} unchanged files; this home had {run.files:,}"
            )
        if run.aim_s == CHANGED_AIM_S and run.size < FULL.size:
            said.append(f"the aim of {run.aim_s:g} s is for 10 GB; this home had {run.size / 1e9:.2f} GB")
    return said


def document(runs: list[Saved]) -> list[dict[str, object]]:
    return [asdict(run) for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.home", description="Measure the agent's backups.")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=int, default=FULL.files, help="of the home that does not change")
    parser.add_argument("--bytes", type=int, default=FULL.size, help="of the home of which 1 %% changes")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where homes and bucket are (/var/tmp)")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.store)
        return
    folder = Path(tempfile.mkdtemp(prefix="bucketworks-home-", dir=options.dir))
    try:
        runs = HomeBench(folder, lambda line: print(line, file=sys.stderr)).run(HomePlan(options.files, options.bytes))
    finally:
        shutil.rmtree(folder)
    for title, header, cells in tables(runs):
        print(title)
        for row in (header, *cells):
            print("  ".join(f"{cell:>14}" for cell in row))
    for line in lines(runs):
        print(line)


if __name__ == "__main__":
    main()
