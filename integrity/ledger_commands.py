"""`s3integrity init|join|enrol|retire|rotate|slots|status|record|seal|serve`: a ledger, its writers and what keeps it going.

One rule: what a command prints on standard output is its answer; advice goes beside it. Where a step was done before, doing it
again is fine and says so.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import orjson
import typer

from integrity.cosigning import Network, cosign_newest, raise_evidence
from integrity.enrolment import Enrolled, Request, Roster, make_slots, parse_request, request_of
from integrity.enrolment import enrol as enrol_request
from integrity.enrolment import retire as retire_writer
from integrity.errors import Malformed
from integrity.keys import LedgerKey, epoch_of
from integrity.layout import LEDGER_JSON
from integrity.place import Ledger, host_name, opened_ledger
from integrity.seal import Sealed, raise_altered
from integrity.seal import seal as seal_now
from integrity.slots import is_taken, ledger_log, open_slot, open_writer, slot_folder, try_lock, writers_here
from integrity.verification.trust import Member
from integrity.writer import Writer
from s3core.build import parse_store_url
from s3core.config_file import Values, change_file, with_table
from s3core.console import (
    Column,
    JsonOption,
    size_column,
    write_json,
    write_line,
    write_note,
    write_record,
    write_records,
)
from s3core.endpoint_commands import ConfigOption, writable
from s3core.errors import NotFound
from s3core.exit_codes import ExitCode
from s3core.logs import configure_logging
from s3core.service_manager import ServiceManager
from s3core.settings import Config, ConfigError, load_config

BATCH_LINES = 1000
"""Lines of `record` that are made durable together."""

LedgerArgument = Annotated[
    str, typer.Argument(metavar="LEDGER", help="A ledger of the configuration file.", show_default=False)
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The ledger key [STATE_DIR/ledger.key].", show_default=False),
]


def init(
    name: Annotated[str, typer.Argument(metavar="LEDGER", help="What to call it.", show_default=False)],
    url: Annotated[
        str, typer.Argument(help="Where it lies: s3://ENDPOINT/BUCKET/PREFIX, a bucket of its own.", show_default=False)
    ],
    origin: Annotated[str, typer.Option("--origin", help="Its name in proofs [bucketworks/LEDGER].")] = "",
    covers: Annotated[
        list[str] | None,
        typer.Option("--covers", metavar="URL", help="A bucket whose operations are recorded; may be repeated."),
    ] = None,
    state_dir: Annotated[str, typer.Option("--state-dir", help="Folder for the local log and keys.")] = "",
    writer: Annotated[str, typer.Option("--writer", metavar="HOST", help="This host's name as a writer.")] = "",
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a ledger: its key, its table in the configuration file, its first records; and make this host a writer of it.

    Whatever was done before, by an init that was interrupted, is left as it is."""
    try:
        parse_store_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    path = writable(config_path)
    before = load_config(path) if path.exists() else Config(path=path)
    values: dict[str, Any] = {"url": url, "origin": origin or f"bucketworks/{name}"}
    values |= {"covers": list(covers)} if covers else {}
    values |= {"state_dir": os.path.abspath(state_dir)} if state_dir else {}
    values |= {"writer": writer} if writer else {}
    made = Config.model_validate({"ledger": {name: values}}).ledger(name)
    host_name(name, made)
    key_file = key or Path(made.state_dir) / "ledger.key"
    found = before.ledgers.get(name)
    if found is not None and (
        found.url != url or before.ledger(name).origin != values["origin"] or not key_file.exists()
    ):
        raise ConfigError(f"{path}: [ledger.{name}] is there already", hint="choose another name, or remove the table")
    signer = (LedgerKey.load(key_file) if key_file.exists() else LedgerKey.create(key_file, values["origin"])).signer
    if signer.name != values["origin"]:
        raise ConfigError(f"{key_file} is the key of ledger {signer.name}", hint="name another file with --key")
    values["vkey"] = signer.vkey
    if found is None:
        table: Values = values
        change_file(path, lambda text: with_table(text, "ledger", name, table))
    with opened_ledger(name, load_config(path)) as ledger:
        _say_what_it_is(ledger)
        make_slots(ledger, ledger.settings.slots)
        told, _ = _enrol(ledger, request_of(ledger), key)
    answer: dict[str, object] = {"ledger": name, "origin": ledger.origin, "vkey": signer.vkey, "key": str(key_file)}
    answer |= {"config": str(path), "writers": [*told.new, *told.there]}
    if as_json:
        write_json(answer)
        return
    write_line(f"ledger {name} written to {path}; its public key, for every host that verifies:")
    write_line(signer.vkey)
    write_note(
        f"keep {key_file} and a copy of it where neither this host nor the bucket's provider can lose it;\n"
        f"next: s3integrity serve {name}        seals the ledger every {ledger.settings.seal_s:g} s\n"
        f"      s3integrity verify {name}       and shows that it holds"
    )


def join(
    name: LedgerArgument,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the request there.")] = None,
    config_path: ConfigOption = None,
) -> None:
    """Make the keys of this host's slots and print the request to be enrolled (JSON; nothing in it is secret).

    Take it to the host with the ledger key: s3integrity enrol LEDGER FILE. Records can be written before that."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        made = make_slots(ledger, ledger.settings.slots)
        request = request_of(ledger)
    write_note(f"{len(made)} slots made, {len(request.writers) - len(made)} were there")
    data = request.encode()
    if out is None:
        sys.stdout.write(data.decode())
        return
    out.write_bytes(data)
    write_note(f"request written to {out}; next, where the ledger key is: s3integrity enrol {name} {out.name}")


def enrol(
    name: LedgerArgument,
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="FILE", help="What `join` wrote; - for standard input.")
    ],
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol the writers of a request: where the ledger key is."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        told, size = _enrol(ledger, parse_request(file.read()), key)
    if as_json:
        write_json({"ledger": name, "enrolled": told.new, "there": told.there, "size": size})
        return
    for writer in told.new:
        write_line(f"{writer} enrolled")
    for writer in told.there:
        write_line(f"{writer} was enrolled before")


def retire(
    name: LedgerArgument,
    writer: Annotated[str, typer.Argument(metavar="WRITER", help="Such as pve1.3.", show_default=False)],
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retire a writer: it is sealed once more, and whatever it writes after that is not of the ledger. Its name is never used
    again. Where the ledger key is."""
    retired = False

    def inside(own: Writer, roster: Roster) -> None:
        nonlocal retired
        retired = retire_writer(own, roster, writer)

    with opened_ledger(name, load_config(config_path)) as ledger:
        seal_now(ledger, key=key, inside=inside)
    if as_json:
        write_json({"ledger": name, "writer": writer, "retired": retired})
        return
    write_line(f"{writer} retired" if retired else f"{writer} was retired before")


def rotate(
    name: LedgerArgument,
    writers: Annotated[list[str] | None, typer.Argument(metavar="[WRITER]...", help="Slots of this host; all.")] = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a new epoch in slots of this host: a new key is introduced by the old one, which is erased.

    A slot that a process has is left alone: that process changes the key when it is time (`epoch_s`, `epoch_records`)."""
    told: list[dict[str, object]] = []
    with opened_ledger(name, load_config(config_path)) as ledger:
        for writer in writers or writers_here(ledger):
            slot = try_lock(ledger, writer)
            if slot is None:
                told.append(
                    {"writer": writer, "epoch": epoch_of(slot_folder(ledger, writer) / "key.json"), "new": False}
                )
                continue
            with open_slot(ledger, slot) as opened:
                opened.change_key()
                told.append({"writer": writer, "epoch": opened.status.epoch, "new": True})
    columns = [Column("writer", "WRITER"), Column("epoch", "EPOCH", justify="right")]
    columns.append(Column("new", "", lambda new: "" if new else "in use, left alone"))
    write_records(told, columns, as_json=as_json)
    if not all(one["new"] for one in told):
        raise typer.Exit(ExitCode.PARTIAL)


def slots(name: LedgerArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the slots of this host: who is at work, what is left to be published. Nothing is contacted."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        records = [slot_record(ledger, writer) for writer in writers_here(ledger)]
    if not records and not as_json:
        write_note(f"this host is no writer of {name}: s3integrity join {name}")
        return
    columns = [Column("writer", "WRITER"), Column("epoch", "EPOCH", justify="right"), Column("state", "STATE")]
    columns.append(size_column("wal_bytes", "LOCAL LOG"))
    write_records(records, columns, as_json=as_json)


def slot_record(ledger: Ledger, writer: str) -> dict[str, object]:
    """What a slot's folder tells."""
    folder = slot_folder(ledger, writer)
    left = (folder / "open").exists()
    state = "in use" if is_taken(ledger, writer) else "left behind: not all is published" if left else "free"
    return {
        "writer": writer,
        "epoch": epoch_of(folder / "key.json"),
        "state": state,
        "wal_bytes": sum(path.stat().st_size for path in folder.glob("wal/*.wal")),
    }


def status(name: LedgerArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a ledger: what it covers, its writers and the newest heads that were sealed, believed from the configured key."""
    from integrity.verification.trust import Members, ledger_log, read_members

    with opened_ledger(name, load_config(config_path)) as ledger:
        here = [slot_record(ledger, writer) for writer in writers_here(ledger)]
        try:
            members = read_members(ledger_log(ledger.store, ledger.origin, ledger.vkey, None), Members())
        except NotFound:
            members = Members()
        settings = ledger.settings
        record: dict[str, object] = {
            "ledger": name,
            "origin": ledger.origin,
            "url": settings.url,
            "covers": list(settings.covers),
            "vkey": settings.vkey,
            "state_dir": str(ledger.state_dir),
            "sealing": ledger.key_file.exists(),
            "size": members.size,
            "sealed": members.sealed,
            "writers": [_member(one) for one in members.by_name.values()],
            "slots": here,
        }
    if as_json:
        write_json(record)
        return
    lines = [Column(key, key) for key in ("ledger", "origin", "url")]
    lines += [Column("covers", "covers", lambda urls: ", ".join(urls) or "nothing: set `covers`")]
    lines += [Column("vkey", "public key"), Column("sealing", "ledger key here", lambda here: "yes" if here else "no")]
    lines.append(Column("sealed", "last sealed (UTC)", lambda at: at or "never: s3integrity serve, or seal"))
    write_record(record, lines, as_json=False)
    write_line()
    columns = [Column("writer", "WRITER"), Column("state", "STATE"), Column("size", "RECORDS", _number, "right")]
    columns += [Column("epoch", "EPOCH", justify="right"), Column("at", "SEALED (UTC)")]
    write_records([_member(one) for one in members.by_name.values()], columns, as_json=False)


def record(
    name: LedgerArgument,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record events from standard input, one JSON object a line, with the members of docs/formats/ledger.md.

    `op` must be there; `phase` is done and `source` is client where they are not. All lines before one that is no event are
    recorded; what is printed last is durable on this host, and published where the store answers."""
    first, count = -1, 0
    with opened_ledger(name, load_config(config_path)) as ledger, open_writer(ledger) as writer:
        batch: list[tuple[int, dict[str, object]]] = []
        try:
            for line in _events(sys.stdin.buffer):
                batch.append(line)
                if len(batch) >= BATCH_LINES:
                    ready, batch = batch, []
                    first, count = _recorded(writer, ready, first, count)
        finally:
            # Also where a line cannot be read: what came before it counts.
            first, count = _recorded(writer, batch, first, count)
        answer = {"ledger": name, "writer": writer.name, "first": first if count else None, "records": count}
    if as_json:
        write_json(answer)
        return
    write_line(
        f"{count:,} {'record' if count == 1 else 'records'} in {answer['writer']}"
        + (f", from number {first:,} on" if count else "")
    )


def seal(
    name: LedgerArgument, key: KeyOption = None, config_path: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Write the heads of all writers into the ledger's own log and publish it, once: where the ledger key is.

    Then the witnesses are asked, where there are some; one that does not answer is told and asked again next time."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        sealed = seal_now(ledger, key=key)
        cosigned = cosign_newest(ledger, Network())
    if as_json:
        write_json(sealed_record(name, sealed))
    else:
        active = sum(1 for one in sealed.members.by_name.values() if not one.retired)
        write_line(
            f"{len(sealed.changed)} of {active} writers have new heads; the ledger's log has {sealed.checkpoint.size:,}"
        )
        for writer, error in sealed.unread.items():
            write_note(f"{writer}: not sealed this time: {error}")
        for one in cosigned.told if cosigned else ():
            write_note(f"witness {one.witness.name}: {one.message}")
    raise_altered(sealed)
    if cosigned is not None:
        raise_evidence(cosigned)
    if sealed.unread:
        raise typer.Exit(ExitCode.PARTIAL)


def serve(name: LedgerArgument, key: KeyOption = None, config_path: ConfigOption = None) -> None:
    """Seal the ledger every `seal_s` and look after this host's slots, until SIGTERM or Ctrl-C.

    Where the ledger key is not, only the slots are looked after. With `listen`: `/healthz`, `/metrics`, and feeds that
    servers push (as `webhook`), for which it takes one of this host's slots."""
    from integrity.ingest.intake import opened_intake
    from integrity.service import Service, listening, new_service, run
    from integrity.webhook import Door, webhook_router

    config = load_config(config_path)
    with opened_ledger(name, config) as ledger, ExitStack() as stack:
        configure_logging(ledger.settings.log_level, ledger.settings.log_format)
        stop = threading.Event()
        stack.enter_context(_stopping(stop))
        service = Service(ledger, key=key)
        manager = ServiceManager(os.environ)
        if ledger.settings.listen:
            routers = []
            if writers_here(ledger):
                intake, quarantine, _ = stack.enter_context(opened_intake(ledger))
                door = Door.of(ledger, intake, quarantine, endpoints=frozenset(config.endpoints))
                routers = [webhook_router(door)]
            at = stack.enter_context(listening(new_service(service, routers), ledger.settings.listen))
            write_note(f"ledger {name}: health at {at}/healthz, metrics at {at}/metrics")
        if not service.seals:
            write_note(f"the ledger key is not on this host ({service.key}): only its slots are looked after")
        manager.ready()

        told = ""

        def alive(text: str) -> None:
            nonlocal told
            manager.alive()
            if text != told:
                told = text
                manager.status(f"ledger {name}: {text}")

        run(service, stop, alive)
        manager.stopping()


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`. From the main thread only."""

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def adopt(
    name: LedgerArgument, key: KeyOption = None, config_path: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Go on with the ledger's own log on this host, from what the store has: where sealing moves to another host, or its
    local state was lost. The ledger key must be here, and no other host may seal any more."""
    from integrity.adopting import adopt as adopt_log

    with opened_ledger(name, load_config(config_path)) as ledger:
        found = adopt_log(ledger, key=key)
    if as_json:
        write_json({"ledger": name, "size": found.size, "root": found.root.hex()})
        return
    write_line(f"the ledger's own log is taken over with {found.size:,} records; next: s3integrity verify {name}")


def sealed_record(name: str, sealed: Sealed) -> dict[str, object]:
    return {
        "ledger": name,
        "size": sealed.checkpoint.size,
        "root": sealed.checkpoint.root.hex(),
        "changed": sealed.changed,
        "unread": {writer: str(error) for writer, error in sealed.unread.items()},
        "altered": {writer: str(error) for writer, error in sealed.altered.items()},
    }


def _enrol(ledger: Ledger, request: Request, key: Path | None) -> tuple[Enrolled, int]:
    roster = Roster()
    with ledger_log(ledger, roster, key=key) as own:
        told = enrol_request(own, roster, ledger.origin, request)
        own.publish()
        return told, own.status.size


def _say_what_it_is(ledger: Ledger) -> None:
    """`ledger.json`: for people. What is there already is left alone."""
    try:
        ledger.store.get(LEDGER_JSON)
    except NotFound:
        document = {"v": 1, "origin": ledger.origin, "vkey": ledger.vkey}
        note = "A Bucketworks ledger. For people only: a verifier takes the key from its own configuration."
        ledger.store.put(LEDGER_JSON, orjson.dumps(document | {"note": note}, option=orjson.OPT_INDENT_2) + b"\n")


def _events(stream: Any) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            event = orjson.loads(line)
            if not isinstance(event, dict):
                raise ValueError("is not a JSON object")
        except ValueError as error:
            raise Malformed(f"line {number:,} of standard input: {error}") from error
        yield number, {"source": "client", **event}


def _recorded(writer: Writer, batch: list[tuple[int, dict[str, object]]], first: int, count: int) -> tuple[int, int]:
    for line, event in batch:
        try:
            number = writer.record(event, wait=False)
        except ValueError as error:
            writer.flush()
            raise Malformed(
                f"line {line:,} of standard input: {error}", hint=f"the {count:,} events before it are recorded"
            ) from error
        first, count = number if first < 0 else first, count + 1
    writer.flush()
    return first, count


def _member(member: Member) -> Mapping[str, object]:
    head = member.head
    return {
        "writer": member.writer,
        "state": "retired" if member.retired else "enrolled",
        "size": head.size if head else None,
        "epoch": head.epoch if head else None,
        "at": head.at if head else "",
    }


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
