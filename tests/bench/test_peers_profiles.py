"""What profilers print, reduced: by hand, and on a process that does one thing."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import profiles, sampling
from bench.processes import BenchFailed

STACKS = """\
process 7:"python -c import x; main()";<module> (x.py:9);serve (blockdev/portal.py:10);_run_once (asyncio/events.py:5);\
read (blockdev/front.py:20) 30
<module> (x.py:9);serve (blockdev/portal.py:10);read (blockdev/front.py:25);sendmsg (libc.so.6) 50
<module> (x.py:9);serve (blockdev/portal.py:11);serve (blockdev/portal.py:12) 20
0x7f7ce0e4524a (libc.so.6);thread_run (libpython3.11.so.1.0);PyThread_acquire_lock_timed (libpython3.11.so.1.0) 60
thread_run (libpython3.11.so.1.0);work (a.py:1);pthread_cond_timedwait (libc.so.6) 40

not a stack
"""

OWN = """\
# Samples: 2K of event 'cpu-clock'
#
# Overhead  Shared Object         Symbol                                IPC   [IPC Coverage]
    54.75%  [kernel.kallsyms]     [k] chacha_permute                    -      -
    22.25%  libpython3.11.so.1.0  [.] _PyEval_EvalFrameDefault          -      -
    10.00%  python3.13            [.] _PyEval_EvalFrameDefault          -      -
     8.00%  libc.so.6             [.] malloc                            -      -
     5.00%  backend_c.cpython-311-x86_64-linux-gnu.so  [.] ZSTD_compressBlock_fast  -  -
"""
TOTAL = """\
    89.39%     0.56%  [.] __GI___getrandom                  -      -
    88.27%     0.00%  [k] __x64_sys_getrandom               -      -
     3.10%     0.10%  [k] __x64_sys_sendto                  -      -
"""


def test_stacks_without_those_that_wait() -> None:
    found = sampling.reduce_stacks(STACKS, top=3)
    assert found.samples == 100
    assert found.text.splitlines() == [
        "left out: 50% of all samples, in which a thread waited (20% for the interpreter's lock)",
        "",
        "  self   total  by self",
        " 50.0%   50.0%  sendmsg (libc.so.6)",
        " 30.0%   80.0%  read (blockdev/front.py)",
        " 20.0%  100.0%  serve (blockdev/portal.py)",
        "",
        "  self   total  by total",
        # Once in a stack, however often it calls itself.
        " 20.0%  100.0%  serve (blockdev/portal.py)",
        " 30.0%   80.0%  read (blockdev/front.py)",
        " 50.0%   50.0%  sendmsg (libc.so.6)",
    ]


def test_nothing_seen_is_said() -> None:
    assert sampling.reduce_stacks("") == sampling.Reduced(0, "no sample on a processor")
    assert sampling.reduce_perf("# Samples: 0 of event 'cpu-clock'\n", "").samples == 0


def test_perf_by_whose_code_it_is() -> None:
    found = sampling.reduce_perf(OWN, TOTAL, top=2)
    assert found.samples == 2000
    assert found.text.splitlines() == [
        "kernel 55%, interpreter 32%, C library 8%, libraries 5%",
        "libraries: backend_c.so 5.0%",
        "system calls: getrandom 88.3%, sendto 3.1%",
        "",
        "  self  function",
        " 54.8%  chacha_permute (kernel)",
        " 22.2%  _PyEval_EvalFrameDefault (libpython3.11.so.1.0)",
    ]


def test_files_are_named_as_they_lie_in_the_tree() -> None:
    assert sampling.function(f"work ({Path.cwd() / 'blockdev/x.py'}:12)") == "work (blockdev/x.py)"
    assert sampling.function("work (/opt/elsewhere/deep/x.py:12)") == "work (deep/x.py)"
    assert sampling.function("<lambda> (a.py:1)") == "<lambda> (a.py)"
    assert sampling.function("0x00 (libc.so.6)") == ""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[int]:
    """A process that does nothing but one function."""
    program = tmp_path / "busy.py"
    program.write_text("import zlib\ndef worker():\n    while True:\n        zlib.crc32(bytes(65536))\nworker()\n")
    process = subprocess.Popen([sys.executable, str(program)])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_process_that_works_is_seen_by_what_is_installed(busy: int, tmp_path: Path) -> None:
    gone = sampling.missing()
    if len(gone) == 2:
        pytest.skip("; ".join(gone))
    try:
        found = sampling.watch("busy", busy, 1.0, tmp_path)
    except BenchFailed as error:
        if "ermission" in str(error) or "not permitted" in str(error).lower():
            pytest.skip(f"this host lets nobody look at a process: {error}")
        raise
    assert len(found) == 2 - len(gone)
    for one in found:
        assert one.path == "busy"
        assert one.samples > 0
        assert "crc32" in one.text or "worker" in one.text
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".raw", ".data")]


def test_a_command_that_fails_fails_the_profile(tmp_path: Path) -> None:
    gone = sampling.missing()
    if len(gone) == 2:
        pytest.skip("; ".join(gone))
    with pytest.raises(BenchFailed):
        sampling.follow("gone", [sys.executable, "-c", "import sys; sys.exit(7)"], os.environ, tmp_path)


def test_a_load_goes_on_until_the_block_is_left_and_its_failure_is_raised() -> None:
    done = []
    with profiles.again_and_again(lambda: done.append(1)):
        while len(done) < 3:
            pass
    count = len(done)
    # The thread has ended with the block.
    time.sleep(0.01)
    assert len(done) == count >= 3

    def fail() -> None:
        raise BenchFailed("no initiator")

    with pytest.raises(BenchFailed, match="no initiator"), profiles.again_and_again(fail):
        pass
