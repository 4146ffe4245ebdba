"""The run beside the peers, as far as a test may go: what is asked of fio and of each system, and what is made of answers.

One rule: peers are run where they are installed, for a moment; figures are the benchmark's business and none is asserted.
"""

import contextlib
import http.client
import math
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from bench.peers import __main__ as peers
from bench.peers import block, figures, names, nbdkit, publish, s3backer, table, warm
from bench.peers.context import CUT, Context, kept
from bench.peers.figures import CPU_US, DOLLARS_PER_GIB, GETS_PER_GIB, P50_US, PUTS_PER_GIB, UP_PER_BYTE, Figure, Part
from bench.peers.load import Door, Job, Ran, door_command, parse
from bench.peers.systems import Place, System, drained_s
from bench.processes import BenchFailed, end, start
from bench.store import Client, Stats

MIB = 1 << 20
GOLDEN = Path(__file__).with_name("fio_mix.txt")
"""What fio 3.33 said of a mix of 70 % reads with a flush per 16 writes; the line before the report is its too."""


def test_report_of_fio_is_read() -> None:
    ran = parse(GOLDEN.read_text())
    assert ran.operations == 1222 + 528
    assert ran.moved_bytes == 5005312 + 2162688
    assert ran.seconds == 0.308
    assert ran.percentiles_us == (244.736, 6848.512, 11993.088)
    assert ran.flush_us is not None
    assert ran.flush_us[0] < ran.flush_us[1]
    assert ran.per_second == pytest.approx(5682, abs=1)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("fio: pid=1, err=5/file:engines/nbd.c", "fio failed"),
        (GOLDEN.read_text().replace('"error" : 0', '"error" : 5'), "fio failed"),
        (
            GOLDEN.read_text()
            .replace('"total_ios" : 1222', '"total_ios" : 0')
            .replace('"total_ios" : 528', '"total_ios" : 0'),
            "did nothing",
        ),
        (GOLDEN.read_text()[:2000], "cannot be read"),
    ],
)
def test_what_fio_did_not_do_is_no_figure(output: str, reason: str) -> None:
    with pytest.raises(BenchFailed, match=reason):
        parse(output)


def test_one_job_for_all() -> None:
    job = Job("randwrite", 4096, 8, 0, MIB, 1.5, flush_every=16)
    words = job.words()
    for word in (
        "--buffer_compress_percentage=50",
        "--refill_buffers",
        "--time_based",
        "--runtime=1500ms",
        "--fsync=16",
    ):
        assert word in words
    assert Door("/run/nbd").words(8) == ["--ioengine=nbd", "--uri=nbd+unix:///?socket=/run/nbd"]
    assert "--ioengine=psync" in Door(file=Path("/mnt/file")).words(1)
    assert {"--ioengine=libaio", "--direct=1"} < set(Door(file=Path("/mnt/file")).words(8))
    # A load with a number of operations is over with them, and not begun again.
    assert "--time_based" not in replace(job, operations=100).words()
    assert door_command("iscsi://127.0.0.1:1/iqn/1", "S")[-1] == "iscsi://127.0.0.1:1/iqn/1"


def _place(directory: Path, port: int = 9) -> Place:
    return Place(directory, Client(port), "bucket", 64 * MIB, 32 * MIB)


def test_settings_of_s3backer(tmp_path: Path) -> None:
    place = _place(tmp_path)
    tuned = s3backer.tuned(place)
    for word in (
        "--blockSize=64k",
        f"--blockCacheFile={tmp_path / 'cache'}",
        "--blockCacheSize=512",
        "--blockCacheRecoverDirtyBlocks",
        "--listBlocks",
        "--md5CacheSize=0",
        "--md5CacheTime=0",
        "--minWriteDelay=0",
        "--blockCacheThreads=64",
        "--compress",
    ):
        assert word in tuned
    assert {"--blockCacheSync", "--blockCacheWriteDelay=0"} < set(s3backer.sync(place))
    # 4 KiB blocks: the same bytes of cache.
    assert s3backer.packaged(place) == ["--blockCacheSize=8192"]
    command = s3backer.command(place, tuned, tmp_path / "mount", tmp_path / "access")
    assert command[-2:] == ["bucket", str(tmp_path / "mount")]
    assert "--force" not in command
    assert f"--size={64 * MIB}" in command


def test_settings_of_nbdkit(tmp_path: Path) -> None:
    plain = nbdkit.command(_place(tmp_path), "S", cached=False)
    assert {"object-size=65536", f"size={64 * MIB}", "bucket=bucket"} < set(plain)
    assert {"--filter=blocksize-policy", "blocksize-minimum=1"} < set(plain)
    assert not any("cache" in word for word in plain)
    cached = nbdkit.command(_place(tmp_path), "S", cached=True)
    assert {"--filter=cache", f"cache-max-size={32 * MIB}", "cache-on-read=true"} < set(cached)


def test_every_system_of_the_report_is_known() -> None:
    assert set(table.NAMES) == set(names.SYSTEMS) - {names.BARE_CLIENT}
    assert set(block.SCOPES) == set(table.NAMES)


def test_plans() -> None:
    for plan in (block.FULL, block.QUICK):
        eighth = plan.volume_bytes // 8
        # Of the parts of 64 KiB that a row of cold reads has for itself, no more than half are asked for.
        assert plan.cold_reads <= 2 * eighth // (64 << 10) // 2
        assert plan.sequential_bytes <= plan.volume_bytes
        assert plan.sequential_bytes % MIB == plan.few_bytes % MIB == 0
    for sizes in (warm.FULL, warm.QUICK):
        rows = {row.name: row.load for row in warm.rows(sizes)}
        assert rows[names.warm_write(1, names.FLUSH_EACH) + names.QEMU_IMG].flush_every == 1
        assert rows[names.warm_write(16, names.FLUSH_PER_16) + names.QEMU_IMG].depth == 16
        written = sum(load.count * load.size_bytes for load in rows.values() if load.write)
        # Three runs of each must find room in the journal, also if nothing is carried away meanwhile.
        assert written * 3 < warm.JOURNAL_BYTES


def test_what_targets_name_comes_first() -> None:
    assert block.in_order((0, 5, 20, 50)) == [20, 0, 5, 50]
    assert block.in_order((50, 5)) == [50, 5]
    assert list(block.SCOPES)[:3] == [names.OURS, names.S3BACKER_TUNED, names.TGT]


def test_facts_are_per_unit() -> None:
    ran = Ran(256, MIB, 2.0, (1.0, 2.0, 3.0), None)
    taken = block.Taken(ran, Stats(puts=10, gets=4, heads=1, bytes_in=MIB // 2), 0.256, 0.0, 64 * MIB, 2.0)
    found = block.facts([taken, taken], [ran, ran], stored=True, reads=False)
    assert found[CPU_US] == pytest.approx(1000)
    assert found[PUTS_PER_GIB] == 10 * 1024
    assert found[GETS_PER_GIB] == 5 * 1024
    assert found[UP_PER_BYTE] == 0.5
    assert found[P50_US] == 1.0
    assert found[DOLLARS_PER_GIB] > 0
    assert PUTS_PER_GIB not in block.facts([taken], [ran], stored=False, reads=False)
    assert PUTS_PER_GIB not in block.facts([taken], [ran], stored=True, reads=True)


def _failing(context: Context | None = None) -> Part:
    raise BenchFailed("no disk\nits log")


def _context(directory: Path, port: int) -> Context:
    return Context(directory, Client(port), os.getpid(), True, (0,), [], 1, 0.2, print)


def test_a_part_that_fails_is_a_line_of_the_report(
    tmp_path: Path, store: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "measure_of", lambda where: _failing)
    part = peers._part("block", _context(tmp_path, store.port))
    assert part.missing == ["the whole part: no disk"]
    assert not (tmp_path / "block").exists()


@pytest.mark.parametrize("name", list(peers.PARTS))
def test_every_part_is_there(name: str) -> None:
    assert callable(peers.measure_of(peers.PARTS[name]))


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--parts", "block,blok"])
    assert "there is no blok" in capsys.readouterr().err


def _keeps(system: System, command: list[str]) -> None:
    """Written, stopped, forgotten, read again: all of it came from the bucket."""
    with system:
        system.start()
        assert system.pids()
        assert "wrote 65536" in _io(system, "write -P 7 1M 64k")
        system.stop()
        assert not system.pids()
        assert system.cpu_s() > 0
        system.forget()
        system.start()
        assert "read 65536" in _io(system, "read -P 7 1M 64k")
        system.kill()
        assert not system.pids()
    assert not any(command[0] in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _io(system: System, command: str) -> str:
    disk = system.url or str(system.path)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-t", "none", "-c", command, disk], capture_output=True, text=True, check=True
    )
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.initiator
@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io not installed (qemu-utils)")
@pytest.mark.parametrize("name", [names.OURS, names.S3BACKER_TUNED, names.NBDKIT_CACHE])
def test_a_system_keeps_what_it_was_given(name: str, tmp_path: Path, store: Client) -> None:
    known = table.known(name)
    if absent := known.missing():
        pytest.skip(f"{name}: {absent}")
    directory = tmp_path / "system"
    _keeps(known.make(Place(directory, store, "kept", 64 * MIB, 64 * MIB)), [str(directory)])
    assert not directory.exists()


@pytest.mark.initiator
def test_a_row_is_measured(tmp_path: Path, store: Client) -> None:
    """One group of the matrix, for real, on ours."""
    if shutil.which("fio") is None:
        pytest.skip("fio not installed")
    context = _context(tmp_path, store.port)
    plan = block.Plan(64 * MIB, 64, 8 * MIB, 8 * MIB)
    known = table.known(names.OURS)
    place = Place(tmp_path / "row", store, "row", 64 * MIB, 64 * MIB)
    with known.make(place) as system:
        scope = block.Scope((block.FLUSHES,))
        one = block.Measuring(context, plan, system, scope, 0, place, known)
        one.run()
    loads = {figure.load: figure for figure in one.figures}
    assert set(loads) == {names.random_write(1, names.FLUSH_EACH), names.random_write(1, names.FLUSH_PER_16)}
    each = loads[names.random_write(1, names.FLUSH_EACH)]
    assert each.value > 0
    assert each.facts[PUTS_PER_GIB] > 0
    assert each.facts[block.FLUSH_P50_US] > 0
    figures.dump(figures.Run("now", {}, {}, [Part("block", "blocks", one.figures)]), tmp_path / "run.json")
    assert figures.load(tmp_path / "run.json").find(each.load, names.OURS, 0) == each


# --- a run that is bounded or interrupted --------------------------------------------------------------------


def test_what_the_verdict_rests_on_is_visited_first() -> None:
    found = block.visits([names.OURS, names.S3BACKER_SYNC, names.TGT], (0, 20))
    judged = [(20, names.BARE_CLIENT), (20, names.OURS), (20, names.TGT)]
    assert found[:3] == judged
    assert found[-2:] == [(20, names.S3BACKER_SYNC), (0, names.S3BACKER_SYNC)]


def test_time_is_shared_among_the_parts_that_are_left() -> None:
    assert set(peers.SHARES) == set(peers.PARTS)
    assert peers.give_up(["ledger"], 100.0, 160.0) == 160.0
    assert peers.give_up(["warm", "block"], 0.0, 375.0) == 75.0
    assert peers.give_up(["block"], 0.0, math.inf) == math.inf


def _endless(context: Context) -> Part:
    figure = Figure("load", names.OURS, 20, names.OPS, (1.0,))
    with kept(lambda: Part("warm", "Warm", [figure], missing=["before"])):
        time.sleep(3600)
    raise AssertionError("not cut off")


def test_a_part_that_takes_too_long_is_cut_off_and_gives_what_it_has(
    tmp_path: Path, store: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "measure_of", lambda where: _endless)
    monkeypatch.setattr(peers, "LATE_S", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    context = replace(_context(tmp_path, store.port), give_up=time.monotonic())
    part = peers._part("warm", context)
    assert len(part.figures) == 1
    assert part.missing == ["before", CUT]
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_part_without_time_is_not_begun(tmp_path: Path, store: Client) -> None:
    now = time.monotonic()
    part = peers._part("warm", replace(_context(tmp_path, store.port), give_up=now), now)
    assert part.missing == ["the whole part: no time left"]


def test_an_interrupted_run_is_kept_drawn_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(context: Context) -> Part:
        if context.directory.name == "block":
            return Part("block", "Blocks", measured)
        raise KeyboardInterrupt

    load = names.random_write(1)
    measured = [Figure(load, name, 20, names.OPS, (2.0,)) for name in (names.OURS, names.S3BACKER_TUNED)]
    published: list[figures.Run] = []

    def kept_there(run: figures.Run, root: Path, folder: Path) -> list[Path]:
        published.append(run)
        return []

    monkeypatch.setattr(peers, "measure_of", lambda where: interrupted)
    monkeypatch.setattr(peers, "_machine", lambda directory: {})
    monkeypatch.setattr(peers, "_notes", lambda directory, client: [])
    monkeypatch.setattr(publish, "publish", kept_there)
    words = ["--quick", "--parts", "warm,block", "--systems", "none", "--dir", str(tmp_path), "--publish", "docs/peers"]
    # 130: as a shell tells of a Ctrl-C.
    assert peers.main([*words, "--results", str(tmp_path / "results")]) == 130
    (run,) = published
    assert [part.name for part in run.parts] == ["block", "warm"]
    assert run.parts[1].missing
    assert "The run was interrupted." in run.notes
    assert (tmp_path / "results" / "peers.md").exists()
    assert not list(tmp_path.glob("bucketworks-peers-*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # One that has nothing to show leaves what is published as it is.
    measured.clear()
    assert peers.main([*words, "--results", str(tmp_path / "results")]) == 130
    assert published == [run]


def test_what_was_started_does_not_hear_a_terminals_interrupt(tmp_path: Path) -> None:
    process = start(["sleep", "60"], tmp_path / "log")
    try:
        assert os.getpgid(process.pid) != os.getpgid(0)
    finally:
        end(process)


def test_a_matrix_without_time_says_what_it_left_out(tmp_path: Path, store: Client) -> None:
    context = replace(_context(tmp_path, store.port), give_up=time.monotonic(), systems=[names.OURS])
    part = block.run(context)
    assert not part.figures
    assert part.missing == [f"{names.OURS} at 0 ms: no time left"]


class _Late:
    """A system that has everything in its bucket long before it says so."""

    bucket = "late"

    def __init__(self, store: Client) -> None:
        self._store = store

    def drain(self) -> None:
        time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", self._store.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("PUT", "/late/key", b"body")
            assert connection.getresponse().status == 200
        time.sleep(1.0)


def test_draining_lasts_until_the_last_byte_is_there_and_no_longer(store: Client) -> None:
    system = cast(System, _Late(store))
    begin = time.monotonic()
    took = drained_s(system, store)
    assert 0.2 <= took <= time.monotonic() - begin - 0.5
    store.remove("late")


def test_a_run_that_cannot_begin_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "wait_for_line", lambda log, marker, process: _failing())
    monkeypatch.setattr(peers, "_machine", lambda directory: {})
    assert peers.main(["--dir", str(tmp_path)]) == 1
    assert "nothing can be measured: no disk" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_mount_that_was_left_is_taken_down(tmp_path: Path) -> None:
    mount = tmp_path / "left"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    peers._unmount_below(tmp_path)
    assert str(mount) not in Path("/proc/self/mountinfo").read_text()
