"""`s3integrity verify|prove|check|fsck|pins`: whether a ledger is to be believed, and proof of it for others.

One rule: the first line is the verdict, and the exit code says the same; what could not be read is neither good nor bad.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from integrity.errors import Rejected
from integrity.layout import LEDGER_WRITER
from integrity.place import opened_ledger
from integrity.record import decode, timestamp, unix_of
from integrity.reports.told import visible
from integrity.tlog.cosignature import parse_cosigner
from integrity.verification.evidence import evidence_of
from integrity.verification.findings import EMPTY, Finding, Kind, LogResult, Outcome, Verdict
from integrity.verification.fsck import fsck as fsck_of
from integrity.verification.full import full as full_of
from integrity.verification.pins import PinMoved, forget_pins, load_pins, pins_path, save_pins
from integrity.verification.prove import check as check_of
from integrity.verification.prove import prove as prove_of
from integrity.verification.quick import quick as quick_of
from integrity.verification.ranges import between, since
from integrity.verification.trust import believed
from s3core.console import (
    Column,
    JsonOption,
    new_app,
    write_json,
    write_line,
    write_note,
    write_records,
)
from s3core.endpoint_commands import ConfigOption
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.settings import load_config

LedgerArgument = Annotated[
    str, typer.Argument(metavar="LEDGER", help="A ledger of the configuration file.", show_default=False)
]
FIRST_NOTE_S = 1.0
NOTE_EVERY_S = 5.0

pins_app = new_app("pins", "What this host has verified of a ledger, kept outside of the bucket.")


def verify(
    name: LedgerArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Keys, signatures, pins and the newest records; this is the default.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read and hash every record of every writer.")] = False,
    since_time: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME", help="As --quick, and read every record since (2026-01-31[T12:00:00Z])."
        ),
    ] = "",
    records: Annotated[
        str, typer.Option("--range", metavar="WRITER:A-B", help="As --quick, and read these records of one writer.")
    ] = "",
    processes: Annotated[
        int, typer.Option("--processes", min=0, help="Processes that read and hash with --full; 0: one for each core.")
    ] = 0,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the ledger is whole and as it was signed: VERIFIED, ANOMALIES, TAMPERED or INCOMPLETE.

    Ends with 0, 1, 12 and 11 (6 where nothing could be read). What was verified is pinned."""
    if sum((quick, full, bool(since_time), bool(records))) > 1:
        raise typer.BadParameter("--quick, --full, --since and --range exclude each other")
    with opened_ledger(name, load_config(config_path)) as ledger, _rate(as_json) as advance:
        evidence = evidence_of(ledger, config_path)
        try:
            if full:
                outcome, pins = full_of(evidence, lanes=processes or os.cpu_count() or 1, advance=advance)
            elif since_time:
                outcome, pins = since(evidence, _time(since_time), advance)
            elif records:
                writer, first, last = _range(records)
                try:
                    outcome, pins = between(evidence, writer, first, last, advance)
                except ValueError as error:
                    raise typer.BadParameter(f"--range: {error}") from error
            else:
                outcome, pins = quick_of(evidence)
        except StoreError as error:
            if not error.temporary:
                raise
            outcome, pins = Outcome("quick"), evidence.pins
            outcome.results.append(LogResult(LEDGER_WRITER))
            outcome.add(Finding(Kind.UNREAD, LEDGER_WRITER, f"could not be read: {error}", where=error.key))
            outcome.settle()
        if pins.logs != evidence.pins.logs or pins.members != evidence.pins.members:
            try:
                save_pins(pins_path(ledger), pins)
            except PinMoved as error:
                write_note(f"not pinned: {error}")
    show(name, outcome, as_json=as_json)
    if outcome.exit_code is not ExitCode.OK:
        raise typer.Exit(outcome.exit_code)


def prove(
    name: LedgerArgument,
    writer: Annotated[str, typer.Argument(metavar="WRITER", help="The log: a writer's name, or `ledger`.")],
    number: Annotated[int, typer.Argument(metavar="N", help="The record's number in it.", min=0)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to; WRITER-N.tlog-proof here by default.")
    ] = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a file that proves one record to anybody who has the log's public key, offline; the record beside it.

    The proof is under the log's newest checkpoint, so it is only as new as that."""
    path = out or Path(f"{writer}-{number}.tlog-proof")
    with opened_ledger(name, load_config(config_path)) as ledger:
        evidence = evidence_of(ledger, config_path)
        ledger_log, members, logs = believed(
            evidence.store, evidence.origin, evidence.vkey, evidence.pins.logs, only=writer
        )
        found = next((log for log in (ledger_log, *logs) if log.writer == writer), None)
        if found is None:
            known = ", ".join(sorted(members.by_name))
            raise typer.BadParameter(f"{writer} has no log in {name}; writers are ledger, {known}")
        with found.reader as reader:
            try:
                record, proof = prove_of(reader, number)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
    beside = path.with_name(path.name.removesuffix(".tlog-proof") + ".json")
    path.write_bytes(proof)
    beside.write_bytes(record)
    vkey = found.keys[found.epoch]
    if as_json:
        write_json({"proof": str(path), "record": str(beside), "vkey": vkey, "size": found.checkpoint.size})
        return
    write_line(f"{path} proves record {number:,} of {writer} under {found.checkpoint.size:,} records")
    write_line(f"{beside} is the record")
    write_line(f"check it anywhere: s3integrity check {path} {beside} --vkey '{vkey}'")


def check(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="The file that `prove` wrote.")],
    record: Annotated[
        Path | None, typer.Argument(metavar="[RECORD]", help="The record's bytes; the one in the proof by default.")
    ] = None,
    vkey: Annotated[str, typer.Option("--vkey", help="The log's public key, had from somewhere else.")] = "",
    witness: Annotated[
        list[str] | None, typer.Option("--witness", metavar="VKEY", help="A witness's public key; may be repeated.")
    ] = None,
    needed: Annotated[int, typer.Option("--needed", min=0, help="So many of the witnesses must have cosigned.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check a proof offline: no configuration, no network. Ends with 0 where it holds, with 12 where it does not."""
    if not vkey:
        raise typer.BadParameter("--vkey is needed: a proof proves nothing by a key that came with it")
    data = record.read_bytes() if record is not None else None
    cosigners = [parse_cosigner(one) for one in witness or []]
    proven = check_of(proof.read_bytes(), data, vkey, cosigners=cosigners, needed=needed)
    facts = decode(proven.record)
    writer = facts["writer"]
    if facts["n"] != proven.index or (writer != LEDGER_WRITER and not proven.origin.endswith(f"/{writer}")):
        raise Rejected(
            f"the record calls itself {writer} {facts['n']:,}, and is number {proven.index:,} of {proven.origin}",
            hint="somebody with that log's key signed it in another's name",
        )
    if as_json:
        answer = {"origin": proven.origin, "n": proven.index, "size": proven.size, "root": proven.root}
        write_json({"verdict": Verdict.VERIFIED.value, **answer, "cosigned": proven.cosigned, "record": facts})
        return
    write_line(f"{Verdict.VERIFIED}: record {proven.index:,} of {proven.origin}, under {proven.size:,} records")
    for by in proven.cosigned:
        write_line(f"  cosigned by {by}")
    about = [facts["phase"], facts["op"], *(str(facts[one]) for one in ("bucket", "key") if one in facts)]
    write_line(visible(f"  {facts['at']}  {' '.join(about)}"))


def fsck(name: LedgerArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare the names in the ledger's place with those that its sizes demand. No key is asked for, nothing is repaired.

    Ends with 0, with 12 where something is missing, with 1 where something is there that does not belong."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        logs = fsck_of(ledger.store)
    missing = any(log.missing for log in logs)
    sound = all(log.sound for log in logs)
    if as_json:
        write_json({"sound": sound, "logs": [asdict(log) for log in logs]})
    else:
        write_line("SOUND: every name that the sizes demand is there" if sound else "NOT SOUND")
        columns = [Column("log", "log")]
        columns += [_number(one, one) for one in ("size", "objects", "missing", "beyond", "unknown", "older")]
        counts = [
            {**asdict(log), **{one: len(getattr(log, one)) for one in ("missing", "beyond", "unknown")}} for log in logs
        ]
        write_records(counts, [*columns, Column("trouble", "")], as_json=False)
        for log in logs:
            for kind in ("missing", "beyond", "unknown"):
                for key in getattr(log, kind):
                    write_line(visible(f"{kind}: {key}"))
    if not sound:
        raise typer.Exit(ExitCode.TAMPERED if missing else ExitCode.FINDING)


@pins_app.command("show")
def pins_show(name: LedgerArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what was verified last of every log, and is held against what the bucket shows from now on."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        pins = load_pins(pins_path(ledger), ledger.origin, ledger.vkey)
    records = [{"log": log, **asdict(pin)} for log, pin in sorted(pins.logs.items())]
    columns = [
        Column("log", "log"),
        _number("size", "records"),
        _number("epoch", "epoch"),
        Column("root", "root", lambda root: str(root)[:16]),
        Column("at", "verified"),
    ]
    write_records(records, columns, as_json=as_json)


@pins_app.command("forget")
def pins_forget(
    name: LedgerArgument,
    log: Annotated[str, typer.Argument(metavar="[LOG]", help="One log; all by default.")] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget what was verified. Whatever the bucket shows next, if it is signed, will be believed: know why."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        gone = forget_pins(pins_path(ledger), log or None, origin=ledger.origin, vkey=ledger.vkey)
    if as_json:
        write_json({"forgotten": gone})
    else:
        write_line(f"forgotten: {', '.join(gone) or 'nothing, there was no pin'}")


def show(name: str, outcome: Outcome, *, as_json: bool) -> None:
    """The answer: the verdict, a row for each log, the findings, what was read."""
    if as_json:
        write_json({"ledger": name, **outcome.json()})
        return
    write_line(visible(f"{outcome.verdict}: ledger {name}, {outcome.mode}{_why(outcome)}"))
    columns = [
        Column("log", "log"),
        Column("state", "state"),
        _number("size", "records"),
        _number("hashed", "hashed"),
        _number("parsed", "parsed"),
        _number("checkpoints", "checkpoints"),
        _number("epoch", "epoch"),
        Column("age_s", "age", lambda age: "" if age is None else f"{age:,.0f} s", "right"),
        _number("unfinished", "unfinished"),
        Column("note", ""),
    ]
    silent = [result for result in outcome.results if result.state == EMPTY]
    write_records([asdict(result) for result in outcome.results if result.state != EMPTY], columns, as_json=False)
    if silent:
        write_line(f"enrolled, and nothing was published yet: {', '.join(result.log for result in silent)}")
    for finding in outcome.findings:
        write_line()
        for line in finding.sentences():
            # A name in a bucket may hold a line's end, and what looks like the next line would be its author's.
            write_line(visible(line))
    if outcome.left_out:
        write_line(f"and {outcome.left_out:,} more findings")
    if outcome.unfinished:
        write_line()
        write_line("begun, and nobody knows whether they were done (`none`: no outcome was recorded):")
        for one in outcome.unfinished:
            what = " ".join(str(one[part]) for part in ("op", "bucket", "key") if part in one)
            write_line(visible(f"  {one['log']} {one['n']:,}  {one['at']}  {one['outcome']}  {what}  by {one['who']}"))
    write_line()
    for line in outcome.coverage:
        write_line(line)


def _why(outcome: Outcome) -> str:
    match outcome.verdict:
        case Verdict.TAMPERED:
            return f": {outcome.of(Kind.TAMPERED)[0].what}"
        case Verdict.INCOMPLETE:
            return ": not everything could be read; this says nothing about the rest"
        case Verdict.ANOMALIES:
            return ": the evidence holds, and somebody should look"
    return ""


def _number(key: str, heading: str) -> Column:
    return Column(key, heading, lambda value: "" if value is None else f"{value:,}", "right")


def _time(text: str) -> str:
    """A time as records have it. A usage error for another text."""
    short = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)Z?)?", text)
    if short is not None:
        clock = short[2] or "00:00:00"
        text = f"{short[1]}T{clock if clock.count(':') == 2 else clock + ':00'}.000000Z"
    try:
        return timestamp(unix_of(text))
    except ValueError as error:
        raise typer.BadParameter(
            f"--since: {text!r} is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from error


def _range(text: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"([^:]+):(\d+)(?:-(\d+))?", text)
    if found is None:
        raise typer.BadParameter(f"--range must be WRITER:FIRST-LAST, such as pve1.1:0-999, not {text!r}")
    return found[1], int(found[2]), int(found[3] or found[2])


@contextmanager
def _rate(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Tells how many records were read and how many a second, on standard error, from the first second on."""
    begun = time.monotonic()
    done, next_note = 0, FIRST_NOTE_S

    def advance(records: int) -> None:
        nonlocal done, next_note
        done += records
        elapsed = time.monotonic() - begun
        if not quiet and elapsed >= next_note:
            next_note = elapsed + NOTE_EVERY_S
            write_note(f"{done:,} records, {done / elapsed:,.0f} a second")

    yield advance
