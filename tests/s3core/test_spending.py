"""Counting what requests cost: nothing is lost between processes, nothing is counted twice, damage is told."""

import fcntl
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core.build import stack
from s3core.endpoint import Prices
from s3core.errors import Denied, Unavailable
from s3core.faulty import FaultKind, FaultPlan, FaultyStore
from s3core.memory import MemoryStore
from s3core.observe import Observer
from s3core.retry import RetryPolicy
from s3core.settings import Config, parse_config
from s3core.spending import (
    CHARGES,
    ENDPOINTS_MAX,
    Account,
    SpendingDamaged,
    Spent,
    accounts_of,
    added,
    decode_month,
    encode_month,
    estimate,
    is_month,
    month_of,
)
from s3core.spending_book import (
    DEFAULT_DIRECTORY,
    LOCK,
    MONTHS_KEPT,
    Book,
    Tally,
    add_to_file,
    directory_of,
    months_in,
    read_month,
)
from s3core.wrapper import Call, Operation
from tests.s3core.fakes import FakeClock

NOVEMBER = 1_795_000_000.0  # 2026-11-18
COUNTS = st.integers(0, 1 << 50)
SPENT = st.builds(Spent, *(COUNTS for _ in range(7)), failed_at=st.integers(0, 1 << 40), failure=st.text(max_size=20))
MONTHS = st.dictionaries(st.sampled_from(["aws", "ceph", "r2", "ü"]), SPENT, max_size=4)


def test_every_operation_is_charged_somehow() -> None:
    assert set(CHARGES) == set(Operation.__args__)  # type: ignore[attr-defined]


@given(st.lists(MONTHS, max_size=5), st.randoms())
def test_the_order_and_grouping_of_sums_do_not_matter(months: list[dict[str, Spent]], random: object) -> None:
    shuffled = list(months)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert added(*months) == added(*shuffled)
    assert added(*months) == added(added(*months[:2]), added(*months[2:]))
    for endpoint, spent in added(*months).items():
        assert spent.requests == sum(month[endpoint].requests for month in months if endpoint in month)


@given(MONTHS)
def test_a_month_reads_back_as_it_was_written(month: dict[str, Spent]) -> None:
    data = encode_month("2026-11", month)
    assert decode_month("2026-11", data) == month
    assert encode_month("2026-11", decode_month("2026-11", data)) == data


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_whatever_is_no_file_of_counts_is_told_as_damaged(data: bytes) -> None:
    with pytest.raises(SpendingDamaged):
        decode_month("2026-11", data)


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", None, 1 << 63])
def test_a_count_that_cannot_be_is_damage(value: object) -> None:
    document = json.loads(encode_month("2026-11", {"aws": Spent(put=1)}))
    document["endpoints"]["aws"]["put"] = value
    with pytest.raises(SpendingDamaged, match="put"):
        decode_month("2026-11", json.dumps(document).encode())


def test_an_estimate_is_by_the_price_table() -> None:
    prices = Prices("USD", per_1000_put=0.005, per_1000_get=0.0004, per_gib_month=0.023, per_gib_egress=0.09)
    made = estimate(Spent(put=1500, list=500, get=10_000, delete=10**9, down=10 << 30), prices)
    assert (made.put, made.get, made.egress) == pytest.approx((0.01, 0.004, 0.9))
    assert made.known
    assert made.total == pytest.approx(0.914)
    assert not estimate(Spent(put=1), Prices()).known


def test_accounts_of_a_tool_that_counts_by_itself_are_added() -> None:
    prices = Prices(per_1000_put=1.0)
    told = accounts_of(
        {"aws": Spent(put=1)}, {"aws": prices}, [Account("aws", Spent(put=2)), Account("pve", Spent(get=3))]
    )
    assert [(one.endpoint, one.spent.requests) for one in told] == [("aws", 3), ("pve", 3)]
    assert told[0].prices == prices
    assert told[1].as_record()["total"] is None
    (bare,) = accounts_of({}, {"aws": prices}, [Account("aws", Spent(put=2))])
    assert bare.prices == prices


def test_months_are_those_of_utc() -> None:
    assert month_of(1_796_083_199) == "2026-11"
    assert month_of(1_796_083_200) == "2026-12"
    assert [is_month(text) for text in ("2026-11", "2026-13", "2026-1", "2026-00", "../../x", "\uff12026-11")] == [
        True,
        *[False] * 5,
    ]


def test_a_request_counts_for_the_month_in_which_it_was_made() -> None:
    now = [1_796_083_190.0]
    tally = Tally(lambda: now[0])
    tally.add("put", up=7)
    now[0] += 20
    tally.add("get", down=9)
    assert tally.take() == {"2026-11": Spent(put=1, up=7), "2026-12": Spent(get=1, down=9)}
    assert tally.take() == {}


def test_what_is_given_back_is_not_lost() -> None:
    tally = Tally(lambda: NOVEMBER)
    tally.add("put", up=1)
    (month, spent), *_ = tally.take().items()
    tally.add("put", up=2)
    tally.give_back(month, spent)
    assert tally.take() == {month: Spent(put=2, up=3)}


def test_a_flush_adds_to_what_is_there(tmp_path: Path) -> None:
    one, two = (Book(tmp_path / "spending", now=lambda: NOVEMBER) for _ in range(2))
    for book in (one, two, one):
        book.tally("aws").add("put", up=10)
        book.flush()
    one.flush()
    assert read_month(tmp_path / "spending", "2026-11") == {"aws": Spent(put=3, up=30)}
    assert sorted(path.name for path in (tmp_path / "spending").iterdir()) == ["2026-11.json", LOCK]
    assert (tmp_path / "spending" / "2026-11.json").stat().st_mode & 0o777 == 0o600


def test_a_flush_that_fails_keeps_the_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spending").write_text("a file where the folder would be")
    book = Book(tmp_path / "spending", now=lambda: NOVEMBER)
    book.tally("aws").add("get", down=5)
    with caplog.at_level("INFO"):
        book.try_to_flush()
        book.try_to_flush()
    assert caplog.text.count("in memory alone") == 1
    (tmp_path / "spending").unlink()
    book.flush()
    assert read_month(tmp_path / "spending", "2026-11") == {"aws": Spent(get=1, down=5)}


def test_a_request_goes_on_where_no_thread_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TasksMax=, or an interpreter that ends."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    book = Book(tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(threading.Thread, "start", start)
        book.tally("a").add("put", up=5)
    assert "counted in memory until" in caplog.text
    book.tally("a").add("get")
    book.flush()
    assert read_month(tmp_path, month_of(time.time()))["a"] == Spent(put=1, get=1, up=5)


def test_a_lock_that_somebody_keeps_does_not_hold_a_flush_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3core.spending_book.LOCK_PATIENCE_S", 0.1)
    book = Book(tmp_path, now=lambda: NOVEMBER)
    book.tally("aws").add("put")
    with (tmp_path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            book.flush()
    book.flush()
    assert read_month(tmp_path, "2026-11")["aws"].put == 1


def test_a_damaged_file_is_put_aside_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "2026-11.json").write_bytes(b'{"format":1')
    with pytest.raises(SpendingDamaged):
        read_month(tmp_path, "2026-11")
    add_to_file(tmp_path, "2026-11", {"aws": Spent(put=1)})
    assert read_month(tmp_path, "2026-11") == {"aws": Spent(put=1)}
    assert (tmp_path / "2026-11.damaged").read_bytes() == b'{"format":1'
    assert "counts are lost" in caplog.text


def test_what_another_user_put_there_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    """Root reads what the console's user counted: a pipe would hold it for ever, a link would lead it elsewhere."""
    os.mkfifo(tmp_path / "2026-11.json")
    with pytest.raises(SpendingDamaged, match="plain file"):
        read_month(tmp_path, "2026-11")
    (tmp_path / "2026-12.json").mkdir()
    with pytest.raises(SpendingDamaged, match="plain file"):
        read_month(tmp_path, "2026-12")
    secret = tmp_path / "secret"
    secret.write_bytes(encode_month("2026-10", {"aws": Spent(put=1)}))
    (tmp_path / "2026-10.json").symlink_to(secret)
    with pytest.raises(OSError):
        read_month(tmp_path, "2026-10")
    # And adding writes through no link, whatever the directory is.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".2026-11.json.new").symlink_to(victim)
    add_to_file(tmp_path, "2026-11", {"aws": Spent(put=1)})
    assert victim.read_text() == "precious"
    assert read_month(tmp_path, "2026-11")["aws"].put == 1


def test_files_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    for number in range(MONTHS_KEPT + 5):
        add_to_file(tmp_path, f"{2020 + number // 12}-{number % 12 + 1:02}", {"aws": Spent(put=1)})
    assert len(months_in(tmp_path)) == MONTHS_KEPT
    assert months_in(tmp_path)[0] == "2020-06"
    add_to_file(tmp_path, "2026-11", {f"e{number}": Spent(put=1) for number in range(ENDPOINTS_MAX)})
    add_to_file(tmp_path, "2026-11", {"one-more": Spent(put=1), "e1": Spent(put=1)})
    found = read_month(tmp_path, "2026-11")
    assert len(found) == ENDPOINTS_MAX
    assert found["e1"].put == 2


def test_a_crash_while_a_file_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    add_to_file(tmp_path, "2026-11", {"aws": Spent(put=1)})
    (tmp_path / ".2026-11.json.new").write_bytes(b"half of")
    assert read_month(tmp_path, "2026-11") == {"aws": Spent(put=1)}
    add_to_file(tmp_path, "2026-11", {"aws": Spent(put=1)})
    assert read_month(tmp_path, "2026-11") == {"aws": Spent(put=2)}


def test_where_counts_are_kept(tmp_path: Path) -> None:
    named = parse_config(f'[status]\nspending_dir = "{tmp_path}"\n')
    assert directory_of(named, {"BUCKETWORKS_SPENDING_DIR": "/elsewhere"}, 0) == tmp_path
    assert directory_of(Config(), {"BUCKETWORKS_SPENDING_DIR": "/elsewhere"}, 0) == Path("/elsewhere")
    assert directory_of(Config(), {"BUCKETWORKS_SPENDING_DIR": "off"}, 0) is None
    assert directory_of(Config(), {}, 0) == DEFAULT_DIRECTORY
    assert directory_of(Config(), {"HOME": "/home/a"}, 1000) == Path("/home/a/.local/state/bucketworks/spending")
    assert directory_of(Config(), {"XDG_STATE_HOME": "/s"}, 1000) == Path("/s/bucketworks/spending")
    service = {"STATE_DIRECTORY": "/var/lib/bucketworks/envctl:/var/lib/x", "HOME": "/nonexistent"}
    assert directory_of(Config(), service, 1000) == Path("/var/lib/bucketworks/envctl/spending")
    assert directory_of(Config(), {}, 1000) is None


def test_each_attempt_counts_but_those_that_were_turned_away() -> None:
    tally = Tally(lambda: NOVEMBER)
    observer = Observer("store", tally=tally)
    observer.carry_out(Call("put", "k", 10), lambda: None)
    observer.count_retry(Call("put", "k", 10), Unavailable("slow down"))
    observer.count_retry(Call("get", "k"), Denied("no"))
    with pytest.raises(Unavailable):
        observer.carry_out(Call("list", "k"), lambda: _raise(Unavailable("away")))
    (spent,) = tally.take().values()
    assert (spent.put, spent.list, spent.get, spent.up, spent.errors) == (1, 0, 1, 10, 3)
    assert (spent.failure, spent.failed_at) == ("away", int(NOVEMBER))


def _raise(error: Exception) -> None:
    raise error


def test_what_a_store_behind_faults_was_asked_is_what_is_counted() -> None:
    """The sum of the counts is that of the attempts that the adapter saw and did not turn away."""
    clock, tally = FakeClock(), Tally(lambda: NOVEMBER)
    plan = FaultPlan(rates=FaultPlan.even(0.3, FaultKind.SLOW_DOWN))
    inner = FaultyStore(MemoryStore("", clock=clock), plan, Random(1), clock)
    store = stack(inner, clock, Random(2), RetryPolicy(attempts_max=50, deadline_s=1e9), tally=tally)
    for number in range(50):
        store.put(f"k{number}", b"x" * 100)
    (spent,) = tally.take().values()
    assert (spent.put, spent.up) == (50, 5000)
    assert spent.errors == inner.calls["put"] - 50 > 0


SPENDER = """
import sys, time
from pathlib import Path
from random import Random
from s3core.settings import parse_config
from s3core.spending_book import tally_of
config = parse_config('[status]\\nspending_dir = "%s"\\n' % sys.argv[1])
for number in range(int(sys.argv[2])):
    tally_of("aws", config).add("put", up=3)
print("counted", flush=True)
time.sleep(float(sys.argv[3]))
"""


def test_processes_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPENDER, str(tmp_path), "500", "0"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait(120) for process in running] == [0] * 6
    assert read_month(tmp_path, month_of(time.time())) == {"aws": Spent(put=3000, up=9000)}


def test_a_killed_process_loses_what_it_had_not_flushed_and_harms_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(tmp_path), "5", "600"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    add_to_file(tmp_path, "2026-11", {"aws": Spent(put=1)})
    assert read_month(tmp_path, "2026-11") == {"aws": Spent(put=1)}


def _spend(directory: str, count: int) -> None:
    from s3core.spending_book import tally_of

    config = parse_config(f'[status]\nspending_dir = "{directory}"\n')
    for _ in range(count):
        tally_of("aws", config).add("get", down=2)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_a_pool_count_too_and_a_fork_does_not_count_twice(tmp_path: Path, method: str) -> None:
    script = (
        "import multiprocessing, sys\n"
        "from tests.s3core.test_spending import _spend\n"
        "if __name__ == '__main__':\n"
        "    _spend(sys.argv[1], 10)\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    workers = [context.Process(target=_spend, args=(sys.argv[1], 5)) for _ in range(2)]\n"
        "    [one.start() for one in workers]\n"
        "    [one.join() for one in workers]\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, str(path), str(tmp_path / "s")], cwd=root, env=environ, check=True, timeout=240)
    assert read_month(tmp_path / "s", month_of(time.time())) == {"aws": Spent(get=20, down=40)}
    assert multiprocessing.parent_process() is None
