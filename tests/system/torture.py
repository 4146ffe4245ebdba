"""Torture: `kill -9` of real servers under real initiators, again and again, and a judge of what is left.

    make torture RUNS=1000 LANES=2 SEED=1

One rule: whatever is chosen comes from the seed, and whatever is asserted comes from `stamps.Judge`, which knows only what
an initiator knows. When a kill falls is up to the machine: the same seed gives the same choices, not the same crash.

A run is: serve, compare the disk with the judge, write, kill. Runs come in episodes of about twelve: one volume, one draw
of settings. After a kill the next run is served from what the host kept ("keep", sometimes without map or cache) or from an
empty directory ("drop": with --accept-loss; "move": without, which must be refused or lose nothing). Half of the volumes are
encrypted. Now and then a snapshot is made or deleted under the load, or orphans are looked for; a kill may fall into any of
it. An episode ends with an orderly stop, `s3block check --deep`, and `s3block export` of the volume and of each snapshot
against the judge of its moment; then snapshots go, orphans are collected, the volume is rolled back, and all is looked at
again. Finished episodes are noted in DIRECTORY/finished.jsonl: the same command again goes on after them. A failed episode
keeps its directory.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, missing_binaries
from tests.system.conftest import make_bucket
from tests.system.machine import Server, ServerEnded, Write, Writer, s3block
from tests.system.raw_initiator import (
    BUSY,
    CHECK_CONDITION,
    GOOD,
    NOT_READY,
    UNIT_ATTENTION,
    Answer,
    Gone,
    RawInitiator,
)
from tests.system.stamps import BLOCK_UNITS, UNIT, Judge, Sent, Violated, stamp

EPISODE_RUNS = 12
MIB = 1 << 20
PHASES = {"write": 44, "checkpoint": 10, "snapshot": 8, "gc": 4, "drain": 12, "detach": 12, "attach": 16}
"""What the server is in the middle of when it is killed, and how often."""
KILLS = {"both": 8, "daemon": 1, "worker": 1}
FATES = {"keep": 9, "keep without map": 1, "keep without cache": 1, "drop": 5, "move": 2}
REFUSED = 7
"""Exit code of a refused attach."""
LEASE = "5s"
"""Shorter than any patience here, longer than any pause of a busy machine."""
SNAPSHOTS_MAX = 6
PATIENCE_S = 900.0
"""For whatever ends by itself: a long run shares its machine, and says nothing of speed."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The settings of one episode."""

    store: str
    size_mib: int
    sector_bytes: int
    extent_bytes: int
    frame_bytes: int
    compression: str
    encrypted: bool
    flush: str
    journal_mib: int
    cache_mib: int
    commit_bytes: int
    commit_interval_ms: int

    @staticmethod
    def of(rng: random.Random, stores: list[str], *, encryption: bool) -> "Draw":
        extent = rng.choice([128, 128, 256, 1024, 4096]) << 10
        return Draw(
            store=rng.choice(stores),
            size_mib=rng.choice([4, 8, 16]),
            sector_bytes=rng.choice([512, 512, 4096]),
            extent_bytes=extent,
            frame_bytes=rng.choice([16 << 10, 64 << 10, 64 << 10]),
            compression=rng.choice(["zstd", "zstd", "none"]),
            encrypted=encryption and rng.random() < 0.5,
            flush=rng.choice(["local", "local", "s3"]),
            journal_mib=rng.choice([1, 2, 4, 16]),
            cache_mib=rng.choice([1, 2, 16]),
            commit_bytes=rng.choice([64 << 10, 256 << 10, MIB]),
            commit_interval_ms=rng.choice([20, 100, 500]),
        )

    def create_options(self) -> list[str]:
        options = ["--size", f"{self.size_mib}M", "--sector-size", str(self.sector_bytes)]
        options += ["--extent-size", str(self.extent_bytes), "--frame-size", str(self.frame_bytes)]
        options += ["--compression", self.compression]
        return options

    def serve_options(self) -> list[str]:
        options = ["--journal-size", f"{self.journal_mib}M", "--cache-size", f"{self.cache_mib}M", "--lease", LEASE]
        options += ["--commit-bytes", str(self.commit_bytes), "--commit-interval", f"{self.commit_interval_ms}ms"]
        return [*options, "--flush", self.flush]


@dataclass(slots=True)
class Kept:
    """A snapshot as it was asked for: whatever it holds, `judge`, a copy of that moment, says whether it may."""

    name: str
    judge: Judge
    floor: int
    made: bool
    """It was answered, so it is there; else it may be."""
    deleted: bool | None = False
    """None: that was asked for and not answered."""


class Question(threading.Thread):
    """A request on a volume's control socket, answered or not while other things go on."""

    def __init__(self, server: Server, do: str, **arguments: object) -> None:
        super().__init__(daemon=True)
        self.do = do
        self.result: dict[str, Any] | None = None
        """None while there is no answer, and when none can come any more."""
        self._path = server.state_dir / "control"
        self._request = json.dumps({"do": do} | arguments).encode() + b"\n"
        self.start()

    def run(self) -> None:
        answer = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(PATIENCE_S)
            line.connect(str(self._path))
            line.sendall(self._request)
            with line.makefile("rb") as lines:
                answer = lines.readline()
        if answer.endswith(b"\n"):
            self.result = json.loads(answer)

    @property
    def over(self) -> bool:
        return not self.is_alive()

    @property
    def granted(self) -> bool:
        """Answered, and done. Raises Violated when it was refused by a server that was to do it."""
        if self.result is None:
            return False
        if not self.result["ok"] and self.result["kind"] != "NotReady":
            raise Violated(f"{self.do} is answered {self.result}")
        return bool(self.result["ok"])


def choose(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


class Load:
    """Writes, discards, flushes and verified reads on one connection, several in flight, told to the judge."""

    def __init__(
        self, rng: random.Random, url: str, judge: Judge, *, durable_flush: bool, counts: Counter[str]
    ) -> None:
        self._rng = rng
        self._judge = judge
        self._durable_flush = durable_flush
        self._counts = counts
        self.initiator = RawInitiator(url)
        self._per_sector = self.initiator.sector_bytes // UNIT
        self._depth = rng.choice([1, 2, 4, 8, 16])
        self._sizes = rng.choice([[1, 1, 2, 8], [8, 8, 16, 64], [8, 128, 512], [1, 8, 33, 256]])
        self._hot = rng.random() < 0.4
        self._flying: dict[int, tuple[str, int, int, Sent | None, int]] = {}
        self._ended: Exception | None = None

    def run(self, until: Callable[[], bool], seconds: float) -> None:
        """Until `until`, or so long, or until the target goes."""
        give_up = time.monotonic() + seconds
        while not until() and time.monotonic() < give_up:
            while len(self._flying) < min(self._depth, self.initiator.window):
                self._issue()
            if not self._collect(0.2):
                return

    def drain(self) -> None:
        """The target has been killed: take what it had answered, give the rest up."""
        while self._collect(5.0):
            pass
        self._flying.clear()
        self.initiator.close()

    def finish(self) -> None:
        """Wait for all that is in flight."""
        while self._flying and self._collect(60.0):
            pass

    def _place(self) -> tuple[int, int] | None:
        """(first unit, units) of whole sectors that nothing in flight touches."""
        judge, rng, per = self._judge, self._rng, self._per_sector
        sectors = judge.units // per
        for _ in range(8):
            count = max(1, min(rng.choice(self._sizes) // per, sectors))
            span = max(count, sectors // 16) if self._hot else sectors
            first = rng.randrange(span - count + 1)
            low, high = first * per, (first + count) * per
            if all(at + units <= low or high <= at for _, at, units, _, _ in self._flying.values()):
                return low, high - low
        return None

    def _issue(self) -> None:
        judge, rng, target = self._judge, self._rng, self.initiator
        roll = rng.random()
        if roll < 0.06:
            self._flying[target.flush()] = ("flush", 0, 0, None, judge.acknowledged)
            return
        place = self._place()
        if place is None:
            self._flying[target.flush()] = ("flush", 0, 0, None, judge.acknowledged)
            return
        first, units = place
        lba, count = first // self._per_sector, units // self._per_sector
        if roll < 0.14:
            self._flying[target.read(lba, count)] = ("read", first, units, None, 0)
        elif roll < 0.18 and first % BLOCK_UNITS == 0 and units % BLOCK_UNITS == 0:
            write = judge.sent(first, units, zeros=True)
            self._flying[target.unmap(lba, count)] = ("unmap", first, units, write, 0)
        else:
            write = judge.sent(first, units)
            fua = rng.random() < 0.04
            tag = target.write(lba, stamp(write.number, first, units), fua=fua)
            self._flying[tag] = ("fua" if fua else "write", first, units, write, judge.acknowledged)

    def _collect(self, seconds: float) -> bool:
        """Take answers; False once the target has gone."""
        try:
            answers = self.initiator.poll(seconds)
        except Gone:
            return False
        for answer in answers:
            self._take(answer)
        return True

    def _take(self, answer: Answer) -> None:
        kind, first, units, write, before = self._flying.pop(answer.tag)
        judge = self._judge
        if answer.status != GOOD:
            self._counts[f"{kind} refused"] += 1
            nothing_happened = answer.status == BUSY or answer.sense[0] == UNIT_ATTENTION
            if not nothing_happened and not (answer.status == CHECK_CONDITION and answer.sense[0] == NOT_READY):
                raise Violated(f"{kind} of unit {first}: status {answer.status:#x}, sense {answer.sense}")
            if nothing_happened and write is not None:
                judge.refused(write)
            return
        if kind == "read":
            self._counts["reads"] += 1
            if answer.data != judge.expected(first, units):
                raise Violated(f"a read of {units} units from {first} on gave something else than was written")
            return
        if write is not None:
            self._counts["writes"] += 1
            judge.acked(write)
            if kind == "fua" and self._durable_flush:
                judge.durable = max(judge.durable, before)
                self._counts["flushed"] += 1
        else:
            self._counts["flushes"] += 1
            if self._durable_flush:
                judge.durable = max(judge.durable, before)


class QemuLoad:
    """The same promises under qemu-io (libiscsi): one write after the other, each from a file of its own."""

    WRITES = 400

    def __init__(self, rng: random.Random, url: str, judge: Judge, directory: Path, *, durable_flush: bool) -> None:
        self._judge = judge
        self._durable_flush = durable_flush
        self._flush_every = rng.choice([2, 8, 32])
        folder = directory / "patterns"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._planned: list[tuple[int, int, int]] = []
        lines: list[Write | str] = []
        number = judge.next_number
        for index in range(self.WRITES):
            units = rng.choice([8, 8, 16, 64, 1024])
            first = rng.randrange((judge.units - units) // 8 + 1) * 8
            (folder / str(index)).write_bytes(stamp(number + index, first, units))
            self._planned.append((first, units, number + index))
            lines.append(f"write -s {folder / str(index)} {first * UNIT} {units * UNIT}")
        self._writer = Writer(url, lines, directory, flush_every=self._flush_every)

    def run_to(self, acknowledged: int) -> None:
        self._writer.wait_for(acknowledged)

    def drain(self) -> None:
        self._writer.kill()
        judge, done = self._judge, self._writer.acknowledged
        begin = judge.acknowledged
        offsets = self._writer.acknowledged_offsets
        assert offsets == [first * UNIT for first, _, _ in self._planned[:done]], "qemu-io skipped a write"
        for index, (first, units, number) in enumerate(self._planned[: done + 1]):
            write = judge.sent(first, units)
            assert write.number == number
            if index < done:
                judge.acked(write)
        if self._durable_flush:
            judge.durable = max(judge.durable, begin + self._writer.flushed)

    @property
    def acknowledged(self) -> int:
        return self._writer.acknowledged


class Episode:
    """One volume through some runs. `figures` count what happened."""

    def __init__(self, directory: Path, seed: str, draw: Draw, place: str, config: Path | None, qemu: bool) -> None:
        self.directory = directory
        self.draw = draw
        self.figures: Counter[str] = Counter()
        self.slowest_start = 0.0
        self._rng = random.Random(seed)
        self._volume = place
        self._config = config
        self._qemu = qemu
        self._judge = Judge(draw.size_mib * MIB)
        self._host = 0
        self._story = (directory / "story.log").open("a", buffering=1)
        self._server: Server | None = None
        self._begin = time.monotonic()
        self._snapshots: list[Kept] = []
        self._named = 0
        self._key: list[str] = []
        if draw.encrypted:
            key = directory / "key"
            key.write_bytes(self._rng.randbytes(32))
            key.chmod(0o600)
            self._key = ["--key", f"file:{key}"]

    def tell(self, text: str) -> None:
        self._story.write(f"{time.monotonic() - self._begin:8.3f} {text}\n")

    def play(self, runs: int) -> None:
        """Raises Violated, or an AssertionError of the harness."""
        self.tell(json.dumps(asdict(self.draw)))
        self._command("create", self._volume, *self.draw.create_options(), *self._key)
        fate, in_order = "keep", True
        try:
            for number in range(runs):
                server = self._serve(fate, in_order)
                fate = choose(self._rng, FATES)
                in_order = self._one_run(number, server, fate)
                self.figures["runs"] += 1
            server = self._serve(fate, in_order)
            self._one_snapshot_at_least(server)
            assert server.stop() == 0, server.log()
            self._last_look(server.state)
        finally:
            if self._server is not None:
                self._server.kill()
            self._story.close()

    def _command(self, *arguments: str) -> str:
        """What `s3block` prints; it must succeed."""
        done = s3block(*arguments, config=self._config, seconds=PATIENCE_S)
        assert done.code == 0, f"{arguments} ends with {done.code}:\n{done.out}{done.err}"
        return done.out

    # --- serving

    def _new_server(self) -> Server:
        return Server(
            self.directory,
            self._volume,
            *self.draw.serve_options(),
            *self._key,
            state=f"host-{self._host}",
            config=self._config,
            seconds=PATIENCE_S,
        )

    def _serve(self, fate: str, in_order: bool) -> Server:
        """Serve after `fate` and compare the disk with the judge. `in_order`: the bucket must have everything."""
        judge, rng = self._judge, self._rng
        if fate.startswith("keep"):
            self._server = server = self._server if self._server is not None else self._new_server()
            if fate == "keep without map":
                shutil.rmtree(server.state_dir / "map", ignore_errors=True)
            elif fate == "keep without cache":
                shutil.rmtree(server.state_dir / "cache", ignore_errors=True)
                shutil.rmtree(server.state_dir / "objects", ignore_errors=True)
            self._start(server)
            self._compare(server, judge.acknowledged, lost_host=False)
            return server
        old = self._server
        self._host += 1
        self._server = server = self._new_server()
        floor = judge.acknowledged if in_order else judge.durable
        if fate == "drop" and old is not None and rng.random() < 0.2:
            self._kill_while_attaching(server, rng.uniform(0.4, 0.9), "--accept-loss")
            # A take-over was killed. Where the first host still has the volume, it has everything. Where nothing was
            # promised but what the bucket has, it may come back without its journal.
            journal = _identity(old.state_dir / "journal")
            if self._granted(old):
                self.figures["ways back"] += 1
                self._server = old
                if _identity(old.state_dir / "journal") == journal:
                    self._compare(old, judge.acknowledged, lost_host=False)
                else:
                    assert self.draw.flush == "s3", "another journal, and nobody accepted a loss"
                    self._compare(old, floor, lost_host=True)
                return old
            self.figures["ways back refused"] += 1
        if fate == "move":
            if self._granted(server):
                self.figures["moves granted"] += 1
                if self.draw.flush == "local":
                    floor = judge.acknowledged
            else:
                assert not in_order, "refused although the last host had stopped in order"
                self.figures["moves refused"] += 1
                self._start(server, "--accept-loss")
        else:
            self._start(server, "--accept-loss")
        self._compare(server, floor, lost_host=True)
        return server

    def _granted(self, server: Server) -> bool:
        """Start it without accepting a loss; False when that is refused."""
        try:
            self._start(server)
        except ServerEnded as ended:
            refused = ended.answer
        else:
            return True
        assert refused.code == REFUSED, refused.err
        return False

    def _start(self, server: Server, *options: str) -> None:
        begin = time.monotonic()
        server.start(*options)
        took = time.monotonic() - begin
        self.figures["starts"] += 1
        self.figures["start ms"] += int(took * 1000)
        self.slowest_start = max(self.slowest_start, took)

    def _compare(self, server: Server, floor: int, *, lost_host: bool) -> None:
        initiator = RawInitiator(server.url)
        content = initiator.read_all()
        initiator.close()
        judge = self._judge
        try:
            verdict = judge.check(content, floor)
        except Violated:
            (self.directory / "found.raw").write_bytes(content)
            raise
        self.tell(f"host {self._host}: {verdict.acknowledged} acknowledged, floor {floor}, {verdict.lost} lost")
        if lost_host:
            self.figures["lost legally"] += verdict.lost
            judge.settled(content)
        else:
            judge.kept(content)

    # --- one run

    def _one_run(self, number: int, server: Server, fate: str) -> bool:
        """Write and kill. True when the server had ended in order before: the bucket has everything."""
        rng = self._rng
        phase, kill = choose(rng, PHASES), choose(rng, KILLS)
        self.tell(f"run {number}: kill {kill} during {phase}, then {fate}")
        in_order = self._kill_in(phase, kill, server)
        self.figures[f"kill during {phase}" if not in_order else "stopped in order"] += 1
        self.figures[f"kill of {kill}"] += 1
        self.figures[f"then {fate}"] += 1
        return in_order

    def _kill_in(self, phase: str, kill: str, server: Server) -> bool:
        rng, judge = self._rng, self._judge
        durable_flush = self.draw.flush == "s3"
        if phase == "write" and self._qemu and rng.random() < 0.3:
            qemu = QemuLoad(rng, server.url, judge, self.directory, durable_flush=durable_flush)
            qemu.run_to(rng.randrange(2, qemu.WRITES // 2))
            self._kill(server, kill)
            qemu.drain()
            self.figures["writes"] += qemu.acknowledged
            self.figures["qemu runs"] += 1
            return False
        load = Load(rng, server.url, judge, durable_flush=durable_flush, counts=self.figures)
        target = judge.acknowledged + rng.choice([5, 50, 200, 600])
        load.run(lambda: judge.acknowledged >= target, rng.uniform(0.1, 1.2))
        asking: Question | None = None
        kept: Kept | None = None
        if rng.random() < 0.25:
            answered, about = self._ask_about_snapshots(server)
            load.run(lambda: answered.over, PATIENCE_S)
            self._answered(answered, about)
        if phase == "detach" or phase == "attach":
            load.finish()
        if phase in ("drain", "detach"):
            server.terminate()
            wait = rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.4)])
            if phase == "drain":
                load.run(lambda: False, wait)
            else:
                self._until_written(rng.choice(["log", "page", "root", "head", ""]), wait)
        elif phase in ("checkpoint", "snapshot", "gc"):
            written = self._written(rng.choice(["page", "root", "head", "log"]))
            seconds = rng.uniform(0, 0.3)
            if phase == "snapshot":
                asking, kept = self._ask_about_snapshots(server)
            else:
                asking = Question(server, phase, **({"orphans": True} if phase == "gc" else {}))
            if rng.random() < 0.4:
                load.run(lambda: asking.over, PATIENCE_S)
                assert asking.granted, f"{phase} was not done: {asking.result}"
            else:
                load.run(lambda: asking.over or written(), seconds)
        self._kill(server, kill)
        load.drain()
        if asking is not None:
            asking.join()
            self._answered(asking, kept)
        if phase == "attach":
            self._kill_while_attaching(server, rng.uniform(0, 0.9))
        return server.code == 0

    def _kill_while_attaching(self, server: Server, after: float, *options: str) -> None:
        timer = threading.Timer(after, server.kill_group)
        timer.start()
        try:
            self._start(server, *options)
        except ServerEnded:
            self.figures["killed before it listened"] += 1
        timer.join()
        server.kill()

    def _kill(self, server: Server, kind: str) -> None:
        if kind == "both":
            server.kill()
        else:
            server.kill_one(kind)

    # --- snapshots

    def _ask_about_snapshots(self, server: Server) -> tuple[Question, Kept]:
        """Begin to make one, or to delete one."""
        rng, judge = self._rng, self._judge
        there = [kept for kept in self._snapshots if kept.made and kept.deleted is False]
        if there and (len(self._snapshots) >= SNAPSHOTS_MAX or rng.random() < 0.25):
            kept = rng.choice(there)
            kept.deleted = None
            return Question(server, "snapshot-delete", name=kept.name), kept
        self._named += 1
        kept = Kept(f"s{self._named}", judge, judge.acknowledged, made=False)
        self._snapshots.append(kept)
        return Question(server, "snapshot", name=kept.name), kept

    def _one_snapshot_at_least(self, server: Server) -> None:
        """An episode that deleted them all, or lost each to a kill, would look at none, delete none and roll back to none."""
        if not any(kept.made and kept.deleted is False for kept in self._snapshots):
            asking, kept = self._ask_about_snapshots(server)
            asking.join()
            self._answered(asking, kept)
            assert asking.granted, f"nothing was killed, and no snapshot was made: {asking.result}"

    def _answered(self, asking: Question, kept: Kept | None) -> None:
        """What an answer promises, or the lack of one allows. Call before anything else is written."""
        self.figures[f"{asking.do} asked"] += 1
        granted = asking.granted
        self.figures[f"{asking.do} answered"] += granted
        if kept is None:
            return
        if asking.do == "snapshot-delete":
            kept.deleted = True if granted else None
            return
        kept.judge, kept.made = self._judge.copy(), granted
        if granted:
            # All that was acknowledged before is in the bucket with it.
            self._judge.durable = max(self._judge.durable, kept.floor)
        self.tell(f"snapshot {kept.name} of {kept.floor} acknowledged or more, made: {granted}")

    def _check_snapshots(self) -> None:
        """Those that must be there are, those that must not are not, and each holds what it may."""
        listed = {item["name"] for item in json.loads(self._command("snapshot", "list", self._volume, "--json"))}
        for kept in self._snapshots:
            if kept.made and kept.deleted is False and kept.name not in listed:
                raise Violated(f"snapshot {kept.name} is gone")
            if kept.deleted and kept.name in listed:
                raise Violated(f"snapshot {kept.name} was deleted and is there")
            kept.made, kept.deleted = kept.name in listed, kept.name not in listed
        if unknown := listed - {kept.name for kept in self._snapshots}:
            raise Violated(f"nobody made the snapshots {unknown}")
        self._snapshots = [kept for kept in self._snapshots if kept.made]
        for kept in self._snapshots:
            self._check_export(kept.judge, kept.floor, "--snapshot", kept.name)
            self.figures["snapshots compared"] += 1

    def _check_export(self, judge: Judge, floor: int, *options: str) -> bytes:
        image = self.directory / "export.raw"
        self._command("export", self._volume, str(image), "--force", *options, *self._key)
        content = image.read_bytes()
        judge.check(content, floor)
        return content

    def _written(self, part: str) -> Callable[[], bool]:
        """Whether something new lies in that part of the volume, where the store is a directory."""
        if not self._volume.startswith("file://") or not part:
            return lambda: False
        place = Path(self._volume.removeprefix("file://"))
        folder = place.parent / "objects" / "v1" / place.name
        before = _newest(folder, part)
        return lambda: _newest(folder, part) != before

    def _until_written(self, part: str, seconds: float) -> None:
        written = self._written(part)
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and not written():
            time.sleep(0.001)

    # --- the end

    def _last_look(self, state: Path) -> None:
        """The bucket alone: whole by `check --deep`, and equal to what the judge knows, by `export`. Then less and less of
        it: what was deleted takes nothing else along."""
        judge, rng, volume = self._judge, self._rng, self._volume
        here = (volume, *self._key, "--state-dir", str(state))
        self._command("check", volume, "--deep", *self._key)
        self._check_export(judge, judge.acknowledged)
        self._check_snapshots()
        for kept in rng.sample(self._snapshots, len(self._snapshots) // 2):
            self._command("snapshot", "delete", here[0], kept.name, *here[1:])
            kept.deleted = True
        self._command("gc", "--orphans", *here)
        self._command("check", volume, "--deep", *self._key)
        self._check_export(judge, judge.acknowledged)
        self._check_snapshots()
        if self._snapshots:
            back = rng.choice(self._snapshots)
            content = self._check_export(back.judge, back.floor, "--snapshot", back.name)
            self._command("rollback", here[0], back.name, "--yes", "--no-keep", *here[1:])
            if self._check_export(back.judge, back.floor) != content:
                raise Violated(f"a volume that was rolled back is not its snapshot {back.name}")
            self._command("check", volume, "--deep", *self._key)
            self.figures["rolled back"] += 1
        for kept in self._snapshots:
            self._command("snapshot", "delete", here[0], kept.name, *here[1:])
        self._command("delete", volume, "--yes")


def _identity(path: Path) -> int:
    """Another one when another file has taken its place; 0 when there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return 0


def _newest(folder: Path, part: str) -> object:
    """Something that changes when an object is written in that part of a volume in a `file://` store."""
    if part == "head":
        with contextlib.suppress(FileNotFoundError):
            return (folder / "head=").stat().st_ino
        return None
    return max((name for _, _, names in os.walk(folder / part) for name in names if name.endswith("=")), default="")


# --- lanes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    directory: Path
    runs: int
    lanes: int
    seed: int
    stores: list[str]
    encryption: bool
    qemu: bool

    @property
    def episodes(self) -> int:
        return -(-self.runs // EPISODE_RUNS)

    def runs_of(self, episode: int) -> int:
        return min(EPISODE_RUNS, self.runs - episode * EPISODE_RUNS)


class Stores:
    """Places for volumes; a server is started when the first volume wants one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._radosgw: Radosgw | None = None

    def place(self, kind: str, directory: Path) -> tuple[str, Path | None]:
        """(volume URL, configuration file)."""
        if kind == "file":
            return f"file://{directory}/store/vm", None
        assert kind == "radosgw", f"no store called {kind}"
        if self._radosgw is None:
            self._files = self._directory / f"radosgw-{uuid4().hex[:8]}"
            self._radosgw = Radosgw(self._files)
        config = directory / "config.toml"
        config.write_text(
            f'[endpoint.rgw]\npreset = "ceph"\nurl = "http://127.0.0.1:{self._radosgw.http_port}"\n'
            f'region = "us-east-1"\naddressing = "path"\n'
            f'access_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET_KEY}"\n'
        )
        config.chmod(0o600)
        return f"s3://rgw/{make_bucket(self._radosgw)}/vm", config

    def close(self) -> None:
        if self._radosgw is not None:
            self._radosgw.stop()
            shutil.rmtree(self._files)


def play_episode(plan: Plan, number: int, stores: Stores) -> dict[str, Any]:
    """One line for finished.jsonl. A failed episode leaves its directory, with failure.txt in it."""
    directory = plan.directory / f"episode-{plan.seed}-{number}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seed = f"{plan.seed}/{number}"
    draw = Draw.of(random.Random(f"draw {seed}"), plan.stores, encryption=plan.encryption)
    begin = time.monotonic()
    failure = ""
    figures: Counter[str] = Counter()
    slowest = 0.0
    try:
        place, config = stores.place(draw.store, directory)
        episode = Episode(directory, seed, draw, place, config, plan.qemu)
        figures = episode.figures
        try:
            episode.play(plan.runs_of(number))
        finally:
            slowest = episode.slowest_start
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this episode's failure, and others go on
        failure = f"{type(error).__name__}: {error}"
        (directory / "failure.txt").write_text(traceback.format_exc())
    else:
        shutil.rmtree(directory)
    took = time.monotonic() - begin
    line = {"episode": number, "seconds": round(took, 2), "slowest start s": round(slowest, 2), "store": draw.store}
    return line | {"failure": failure, "figures": dict(figures)}


def play_lane(plan: Plan, lane: int, finished: set[int]) -> None:
    """Every lanes-th episode that is not finished."""
    stores = Stores(plan.directory)
    try:
        for number in range(lane, plan.episodes, plan.lanes):
            if number not in finished:
                line = play_episode(plan, number, stores)
                with (plan.directory / "finished.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
    finally:
        stores.close()


def read_finished(plan: Plan) -> list[dict[str, Any]]:
    path = plan.directory / "finished.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(lines: list[dict[str, Any]]) -> str:
    total: Counter[str] = Counter()
    for line in lines:
        total.update(line["figures"])
    starts = max(1, total["starts"])
    failures = [line for line in lines if line["failure"]]
    seconds = sum(line["seconds"] for line in lines)
    slowest = max((line["slowest start s"] for line in lines), default=0.0)
    rest = ", ".join(f"{name} {total[name]}" for name in sorted(total) if name not in ("runs", "start ms"))
    return (
        f"{total['runs']} runs in {len(lines)} episodes, {len(failures)} failed; {seconds / max(1, total['runs']):.2f} s "
        f"a run, start {total['start ms'] / starts / 1000:.2f} s (slowest {slowest:.2f} s); {rest}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="kill -9 of real servers under real initiators", allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("build/torture"))
    parser.add_argument("--stores", default="file,file,radosgw", help="drawn from: file, radosgw")
    parser.add_argument("--no-encryption", action="store_true", help="encrypt none of the volumes")
    parser.add_argument("--no-qemu", action="store_true", help="only the harness's own initiator")
    parser.add_argument("--episode", type=int, help="only this one, even if it is finished")
    given = parser.parse_args(arguments)
    directory = given.directory.absolute() / f"seed-{given.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    qemu = not given.no_qemu and shutil.which("qemu-io") is not None
    stores = given.stores.split(",")
    if "radosgw" in stores and missing_binaries():
        print(f"without radosgw (missing: {', '.join(missing_binaries())}): volumes lie in directories", flush=True)
        stores = ["file"]
    plan = Plan(directory, given.runs, given.lanes, given.seed, stores, not given.no_encryption, qemu)
    if not qemu:
        print("without qemu-io: all load comes from the harness's own initiator", flush=True)
    if given.episode is not None:
        places = Stores(directory)
        try:
            line = play_episode(plan, given.episode, places)
        finally:
            places.close()
        print(json.dumps(line, indent=1))
        return bool(line["failure"])
    finished = {line["episode"] for line in read_finished(plan)}
    context = multiprocessing.get_context("spawn")
    lanes = [context.Process(target=play_lane, args=(plan, lane, finished)) for lane in range(plan.lanes)]
    for process in lanes:
        process.start()
    told = time.monotonic()
    while any(process.is_alive() for process in lanes):
        time.sleep(0.2)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(summary(read_finished(plan)), flush=True)
    lines = read_finished(plan)
    for line in lines:
        if line["failure"]:
            print(
                f"FAILED: episode {line['episode']} (--seed {plan.seed} --episode {line['episode']}): {line['failure']}"
            )
            print(f"  kept: {plan.directory}/episode-{plan.seed}-{line['episode']}")
    print(summary(lines))
    whole = len({line["episode"] for line in lines}) >= plan.episodes
    return 0 if whole and not any(line["failure"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
