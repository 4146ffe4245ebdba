"""A report comes in time and never raises; a published one is told as what it is worth; endpoints are judged by answers."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core.cli import app
from s3core.console import run
from s3core.endpoint import Endpoint, Prices
from s3core.errors import Misconfigured, Unavailable
from s3core.exit_codes import ExitCode
from s3core.memory import MemoryStore
from s3core.s3_http import Answer
from s3core.settings import Config, ConfigError, parse_config
from s3core.spending import Account, Spent
from s3core.status import (
    DOCUMENT_BYTES_MAX,
    FACTS_MAX,
    HEALTHS,
    DocumentDamaged,
    Fact,
    Health,
    HostStatus,
    Item,
    Money,
    decode,
    encode,
    exit_code,
    published,
    with_storage,
    worst,
)
from s3core.status_collector import GROUP, Collector, InstalledProvider, Look
from s3core.status_endpoints import endpoint_looks, judge, look_at
from s3core.status_publishing import ALL_BYTES_MAX, FOLDER, host_name, publish, read_all

AT = 1_795_000_000.0
ITEM = Item(
    "volume",
    "vm1",
    "critical",
    "ready, portal",
    "the store does not answer",
    "runbook/store-unreachable.md",
    ExitCode.UNAVAILABLE,
    {"rpo_seconds": 3.5, "sessions": 1, "served": True, "url": "s3://a/b/vm1", "none": None},
)
STATUS = HostStatus("pve1", AT, "0.1.0", (ITEM,), "2026-11", (Money("aws", 5, 6, 7, 0, "USD", 0.5, 1 << 30, 0.023),))


# --- health ----------------------------------------------------------------------------------------------------------


def item(health: Health, code: ExitCode = ExitCode.UNAVAILABLE) -> Item:
    return Item("volume", "x", health, code=code)


def test_the_worst_decides_the_exit_code() -> None:
    assert exit_code([]) is ExitCode.OK
    assert exit_code([item("ok"), item("warning")]) is ExitCode.FINDING
    assert exit_code([item("warning"), item("unknown")]) is ExitCode.PARTIAL
    assert exit_code([item("unknown"), item("critical")]) is ExitCode.UNAVAILABLE
    assert exit_code([item("critical"), item("critical", ExitCode.TAMPERED)]) is ExitCode.TAMPERED
    assert exit_code([item("critical", ExitCode.REFUSED), item("critical", ExitCode.CORRUPT)]) is ExitCode.CORRUPT
    assert worst(HEALTHS) == "critical"


# --- the collector ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_what_hangs_is_unknown_in_time_and_not_asked_again_while_it_does(hung: threading.Event) -> None:
    asked: list[str] = []

    def ask_hung() -> Item:
        asked.append("hung")
        hung.wait(300)
        return Item("volume", "hung", "ok")

    looks = [Look("volume", "hung", ask_hung), Look("volume", "well", lambda: Item("volume", "well", "ok"))]
    collector = Collector({"volume": lambda config: looks})
    began = time.monotonic()
    first = collector.collect(Config(), 0.5)
    assert time.monotonic() - began < 60
    assert [(one.name, one.health) for one in first] == [("hung", "unknown"), ("well", "ok")]
    assert first[0].reason == "no answer within 0.5 s"
    second = collector.collect(Config(), 0.5)
    assert second[0].health == "unknown"
    assert "no answer for" in second[0].reason
    assert asked == ["hung"]
    hung.set()
    until = time.monotonic() + 60
    while collector.collect(Config(), 5.0)[0].health != "ok":
        assert time.monotonic() < until
    assert len(asked) == 2


def test_a_package_is_imported_before_the_time_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host that takes longer than anything may that is asked; nothing hangs, and nothing is told to hang."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os\nos.environ['IT_TOOK'] = '1000'\ndef report(config):\n    return []\n"
    )
    (tmp_path / "broken_to_import.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IT_TOOK", "0")
    points = {
        "console": EntryPoint("console", "slow_to_import:report", GROUP),
        "storage": EntryPoint("storage", "broken_to_import:report", GROUP),
    }
    providers = {name: InstalledProvider(point) for name, point in points.items()}
    collector = Collector(providers, now=lambda: time.monotonic() + float(os.environ["IT_TOOK"]))
    (told,) = collector.collect(Config(), 60.0)
    assert (told.kind, told.health) == ("storage", "unknown")
    assert "broken_to_import:report cannot be imported" in told.reason
    assert "nothing_of_that_name" in told.reason


def test_a_provider_that_hangs_or_raises_keeps_nothing_else_from_being_told(hung: threading.Event) -> None:
    def hangs(config: Config) -> list[Look]:
        hung.wait(300)
        return []

    def raises(config: Config) -> list[Look]:
        raise PermissionError(13, "Permission denied", "/var/lib/bucketworks")

    def broken() -> Item:
        raise ZeroDivisionError("a fault of ours")

    providers = {
        "mirror": hangs,
        "ledger": raises,
        "volume": lambda config: [Look("volume", "a", broken), Look("volume", "b", lambda: Item("volume", "b", "ok"))],
    }
    told = {(one.kind, one.name): one for one in Collector(providers).collect(Config(), 1.0)}
    assert {key: one.health for key, one in told.items()} == {
        ("volume", "a"): "unknown",
        ("volume", "b"): "ok",
        ("mirror", "-"): "unknown",
        ("ledger", "-"): "unknown",
    }
    assert told["volume", "a"].reason == "a fault of ours"
    assert "/var/lib/bucketworks" in told["ledger", "-"].reason


# --- the document ----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
ITEMS = st.builds(
    Item,
    st.sampled_from(["volume", "mirror"]),
    TEXT,
    st.sampled_from(HEALTHS),
    TEXT,
    TEXT,
    st.sampled_from(["", "runbook/README.md", "plugin/troubleshooting.md"]),
    st.sampled_from([ExitCode.UNAVAILABLE, ExitCode.TAMPERED]),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True),
        st.none() | st.booleans() | TEXT | st.integers(-(1 << 50), 1 << 50) | st.floats(-1e15, 1e15),
        max_size=5,
    ),
)


@given(st.lists(ITEMS, max_size=5))
def test_what_was_decoded_is_harmless_and_stays_as_it_is(items: list[Item]) -> None:
    once = decode(encode(HostStatus("h", AT, "1", tuple(items))), host="h")
    assert len(once.items) == len(items)
    assert sorted(one.health for one in once.items) == sorted(one.health for one in items)
    again = decode(encode(once), host="h")
    assert sorted(map(repr, again.items)) == sorted(map(repr, once.items))
    assert all(text.isprintable() for one in once.items for text in (one.name, one.summary, one.reason))


def test_what_was_published_reads_back() -> None:
    assert decode(encode(STATUS), host="pve1") == STATUS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.data())
def test_a_document_with_anything_in_a_field_is_believed_or_told_as_damaged(data: st.DataObject) -> None:
    document = json.loads(encode(STATUS))
    place = document
    path = data.draw(
        st.sampled_from(
            [
                *((name,) for name in document),
                *(("items", 0, name) for name in document["items"][0]),
                *(("spending", "endpoints", 0, name) for name in document["spending"]["endpoints"][0]),
                ("items", 0, "facts", "rpo_seconds"),
            ]
        )
    )
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = data.draw(JSON)
    found = published("pve1", json.dumps(document).encode(), now=AT, stale_s=900)
    assert (found.status is None) == bool(found.problem)
    assert found.problem.isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_told_as_damaged(data: bytes) -> None:
    found = published("pve1", data, now=AT, stale_s=900)
    assert found.status is None
    assert found.health == "unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host": "pve2"}, "pve2"),
        ({"version": 2}, "version 2"),
        ({"at": AT + 3600}, "clocks"),
        ({"at": float("nan")}, "number"),
        ({"at": 10**400}, "number"),
        ({"at": -1e18}, "moment"),
        ({"items": [{**json.loads(encode(STATUS))["items"][0], "facts": {"sessions": -(10**400)}}]}, "number"),
        ({"items": [{"kind": "volume"}]}, "damaged"),
        ({"items": [{**json.loads(encode(STATUS))["items"][0], "runbook": "../../etc/passwd"}]}, "page"),
        ({"items": [{**json.loads(encode(STATUS))["items"][0], "runbook": "javascript:alert(1)"}]}, "page"),
    ],
)
def test_what_cannot_be_true_is_told(change: dict[str, object], said: str) -> None:
    document = json.loads(encode(STATUS)) | change
    found = published("pve1", json.dumps(document).encode(), now=AT, stale_s=900)
    assert found.status is None
    assert said in found.problem


def test_text_that_would_steer_a_terminal_or_turn_a_page_around_is_left_out() -> None:
    nasty = Item("volume", "vm\x1b[2J1\u202e", "warning", "a\nb", "<script>\x00")
    (told,) = decode(encode(HostStatus("h", AT, "1", (nasty,))), host="h").items
    assert (told.name, told.summary, told.reason) == ("vm[2J1", "a b", "<script>")


def test_a_document_is_bounded_and_keeps_the_ill() -> None:
    many = [Item("volume", f"v{number}", "ok", "x" * 900) for number in range(3000)]
    data = encode(HostStatus("h", AT, "1", (*many, ITEM)))
    assert len(data) <= DOCUMENT_BYTES_MAX
    told = decode(data, host="h")
    assert any(one.health == "critical" for one in told.items)
    assert any("did not fit" in one.reason for one in told.items)
    with pytest.raises(DocumentDamaged, match="bytes"):
        decode(data + b" " * DOCUMENT_BYTES_MAX, host="h")


def test_what_a_service_says_does_not_cost_the_whole_document() -> None:
    """A console that was taken over answers for itself, and writes the file of its own counts."""
    facts: dict[str, Fact] = {"oldest_seconds": float("inf"), "late_seconds": float("nan"), "homes": 10**30, "fine": 1}
    loud = Item("console", "envctl", "ok", facts=facts | {"environments_\x1b x": 1})
    noisy = Item("console", "many", "ok", facts={f"environments_{number}": number for number in range(500)})
    most = Spent(put=1 << 62, list=1 << 62, get=1 << 62, delete=1 << 62, up=1 << 62, down=1 << 62)
    prices = Prices(currency="€", per_1000_put=0.005)
    forged = [Account("\u202e" * 1000 + f"{number:04}", most, prices) for number in range(1200)]
    told = HostStatus("h", AT, "1", (ITEM, loud, noisy), "2026-11", with_storage(forged, ()))
    found = published("h", encode(told), now=AT, stale_s=900)
    assert found.status is not None, found.problem
    items = {one.name: one for one in found.status.items}
    assert items["vm1"] == ITEM
    assert items["envctl"].facts == {"oldest_seconds": None, "late_seconds": None, "homes": None, "fine": 1}
    assert len(items["many"].facts) == FACTS_MAX
    assert {one.currency for one in found.status.money} == {"€"}


def test_an_old_one_is_stale_and_never_well() -> None:
    well = HostStatus("pve1", AT, "1", (item("ok"),))
    assert published("pve1", encode(well), now=AT + 900, stale_s=900).health == "ok"
    stale = published("pve1", encode(well), now=AT + 901, stale_s=900)
    assert (stale.stale, stale.health, stale.age_s) == (True, "unknown", 901)
    assert published("pve1", encode(STATUS), now=AT + 901, stale_s=900).health == "critical"


# --- publishing ------------------------------------------------------------------------------------------------------


def test_all_hosts_are_read_and_what_is_hostile_is_told() -> None:
    store = MemoryStore("")
    assert publish(store, STATUS) == f"{FOLDER}pve1.json"
    store.put(f"{FOLDER}pve2.json", encode(STATUS))
    store.put(f"{FOLDER}pve3.json", b"x" * (DOCUMENT_BYTES_MAX + 1))
    store.put(f"{FOLDER}pve4.json", b"")
    store.put(f"{FOLDER}../../evil\x1b.json", b"{}")
    found = {one.host: one for one in read_all(store, now=AT + 1, stale_s=900)}
    assert found["pve1"].status == STATUS
    assert "calls its host 'pve1'" in found["pve2"].problem
    assert "more than a status may have" in found["pve3"].problem
    assert "damaged" in found["pve4"].problem
    (evil,) = [one for host, one in found.items() if "evil" in host]
    assert evil.host.isprintable()
    assert "no status of a host" in evil.problem


def test_large_ones_do_not_hide_the_others_nor_take_all_memory() -> None:
    store = MemoryStore("")
    publish(store, STATUS)
    bomb = encode(replace(STATUS, host="aaa")).rstrip().ljust(DOCUMENT_BYTES_MAX)
    for number in range(ALL_BYTES_MAX // DOCUMENT_BYTES_MAX + 3):
        store.put(f"{FOLDER}bomb{number:02}.json", bomb)
    found = read_all(store, now=AT + 1, stale_s=900)
    assert [one.host for one in found] == sorted(one.host for one in found)
    assert found[-1].status == STATUS
    assert sum("was not read" in one.problem for one in found) == 4


def test_a_host_has_a_name_that_fits() -> None:
    assert host_name(parse_config('[status]\nhost = "pve7"\n')) == "pve7"
    with pytest.raises(ConfigError, match="host"):
        parse_config('[status]\nhost = "../x"\n')


def test_stored_bytes_that_items_know_are_priced() -> None:
    account = Account("aws", Spent(put=1000), Prices(per_1000_put=0.005, per_gib_month=0.023))
    stored = Item("volume", "v", "ok", facts={"endpoint": "aws", "stored_bytes": 2 << 30})
    (money,) = with_storage([account], [stored, stored, item("ok")])
    assert money.stored_bytes == 4 << 30
    assert money.storage_per_month == pytest.approx(0.092)
    assert money.total == pytest.approx(0.005)
    (bare,) = with_storage([Account("x", Spent(put=1))], [])
    assert (bare.total, bare.currency, bare.stored_bytes, bare.storage_per_month) == (None, None, None, None)


# --- endpoints -------------------------------------------------------------------------------------------------------

ENDPOINT = Endpoint("aws", "https://s3.example.com")


def answered(status: int = 403, *, skew: float = 0.0, took: float = 0.02, past: Spent | None = None) -> Item:
    from email.utils import formatdate

    answer = Answer(status, {"date": formatdate(AT + skew, usegmt=True)}, b"")
    return judge(ENDPOINT, answer, took, AT, past or Spent())


def test_an_endpoint_is_judged_by_its_answer() -> None:
    assert answered().health == "ok"
    assert answered().facts["latency_seconds"] == 0.02
    assert answered(503).health == "critical"
    assert answered(skew=120).health == "warning"
    refused = answered(skew=-1000)
    assert (refused.health, refused.code) == ("critical", ExitCode.CONFIGURATION)
    assert "ahead of the server's" in refused.reason
    assert answered(took=3).reason == "it is slow"
    failing = answered(past=Spent(errors=3, failed_at=int(AT) - 60, failure="access denied"))
    assert failing.health == "warning"
    assert "access denied" in failing.reason
    assert answered(past=Spent(errors=3, failed_at=int(AT) - 6000, failure="access denied")).health == "ok"
    away = judge(ENDPOINT, Unavailable("cannot connect", hint="is the server running?"), 1.0, AT, Spent())
    assert (away.health, away.code, away.facts["reachable"]) == ("critical", ExitCode.UNAVAILABLE, False)
    assert judge(ENDPOINT, Misconfigured("pin"), 1.0, AT, Spent()).code is ExitCode.CONFIGURATION


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def configured(tmp_path: Path, port: int, more: str = "") -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'[endpoint.hung]\nurl = "http://127.0.0.1:{port}"\ncredentials = "none"\n'
        f'[status]\ndeadline_s = 1\nhost = "h"\nspending_dir = "{tmp_path}/spending"\n{more}'
    )
    return path


def test_an_endpoint_that_never_answers_is_told_in_time(tmp_path: Path, silent: int) -> None:
    config = parse_config(configured(tmp_path, silent).read_text())
    began = time.monotonic()
    (told,) = Collector({"endpoint": endpoint_looks}).collect(config, 1.0)
    assert time.monotonic() - began < 60
    assert told.health in ("critical", "unknown")
    assert look_at(config, "hung").health == "critical"


def test_the_command_tells_ends_with_the_code_and_publishes(
    tmp_path: Path, silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(tmp_path, silent, f'publish = "file://{tmp_path}/fleet"\n')
    codes = (ExitCode.UNAVAILABLE, ExitCode.PARTIAL)  # of a machine that is slow, the latter
    assert run(app, "bucketworks", ["status", "--json", "--config", str(path)]) in codes
    told = json.loads(capsys.readouterr().out)
    assert told["host"] == "h"
    assert [one["kind"] for one in told["items"] if one["kind"] == "endpoint"] == ["endpoint"]
    assert run(app, "bucketworks", ["status", "--config", str(path)]) in codes
    table = capsys.readouterr().out
    assert "hung" in table
    assert "docs/runbook/store-unreachable.md" in table
    assert run(app, "bucketworks", ["status", "--publish", "--config", str(path)]) == 0
    capsys.readouterr()
    assert (tmp_path / "fleet").is_dir()
    assert run(app, "bucketworks", ["status", "--all", "--json", "--config", str(path)]) in codes
    (host,) = json.loads(capsys.readouterr().out)["hosts"]
    assert (host["host"], host["stale"], host["problem"]) == ("h", False, "")
    assert run(app, "bucketworks", ["status", "--all", "--config", str(path)]) in codes
    assert "hung" in capsys.readouterr().out


def test_all_hosts_in_a_store_that_hangs_are_unknown_in_time(
    tmp_path: Path, silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(tmp_path, silent, 'publish = "s3://hung/fleet"\n')
    began = time.monotonic()
    assert run(app, "bucketworks", ["status", "--all", "--json", "--config", str(path)]) == ExitCode.PARTIAL
    assert time.monotonic() - began < 60
    assert "no answer within" in json.loads(capsys.readouterr().out)["problem"]


def test_all_hosts_need_a_place(tmp_path: Path, silent: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path, silent)
    assert run(app, "bucketworks", ["status", "--all", "--config", str(path)]) == ExitCode.CONFIGURATION
    assert "publish" in capsys.readouterr().err


def test_spending_is_told_with_what_is_not_known(
    tmp_path: Path, silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from s3core.spending_book import add_to_file

    path = configured(tmp_path, silent, "\n[endpoint.hung.prices]\nper_1000_put = 5.0\n")
    add_to_file(tmp_path / "spending", "2026-10", {"hung": Spent(put=2000), "gone": Spent(get=1)})
    command = ["spending", "--month", "2026-10", "--config", str(path)]
    assert run(app, "bucketworks", [*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["endpoint"], one["total"]) for one in told["endpoints"]] == [("gone", None), ("hung", 10.0)]
    assert "taxes" in told["note"]
    assert run(app, "bucketworks", command) == 0
    shown = capsys.readouterr().out
    assert "10.00 USD" in shown
    assert "not known" in shown
    assert run(app, "bucketworks", ["spending", "--month", "2026-13"]) == ExitCode.USAGE
    (tmp_path / "spending" / "2026-10.json").write_bytes(b"{")
    capsys.readouterr()
    assert run(app, "bucketworks", command) == ExitCode.PARTIAL


def test_every_page_that_is_named_is_there() -> None:
    root = Path(__file__).parents[2]
    sources = [*root.glob("*/host_status.py"), *root.glob("s3core/status*.py")]
    named = {
        page for path in sources for page in re.findall(r'"(runbook/[a-z-]+\.md)"', path.read_text(), re.IGNORECASE)
    }
    assert len(named) >= 10
    assert [page for page in sorted(named) if not (root / "docs" / page).exists()] == []
