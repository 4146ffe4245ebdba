"""`s3integrity log`, `tail` and `report`: who did what and when, as verified records say it.

One rule: records are shown only as far as signed checkpoints cover them; what this host alone says (`tail -f`) is marked.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from typer.core import TyperGroup

from integrity.errors import LedgerError, NotEnrolled
from integrity.keys import LedgerKey, SlotKeys
from integrity.place import Ledger, opened_ledger
from integrity.record import timestamp
from integrity.reports import told
from integrity.reports.choose import Choice, moment
from integrity.reports.digest import Digest
from integrity.reports.document import Subject, build, ulid
from integrity.reports.findings import taken
from integrity.reports.local import unpublished
from integrity.reports.making import check, files_of, publish, write_files
from integrity.reports.reading import Readings, problem_of
from integrity.slots import try_lock, writers_here
from integrity.tlog.note import NoteSigner, parse_vkey, split_note
from integrity.verification.evidence import evidence_of
from integrity.verification.quick import quick
from s3core.console import JsonOption, new_app, program_version, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.settings import load_config

LedgerArgument = Annotated[str, typer.Argument(metavar="LEDGER", help="A ledger of the configuration: [ledger.NAME].")]
KeyOption = Annotated[str, typer.Option("--key", help="Keys that match: `*` stands for any text, slashes too.")]
BucketOption = Annotated[str, typer.Option("--bucket", help="This bucket alone.")]
ActorOption = Annotated[str, typer.Option("--actor", help="Part of a name, access key, host or address.")]
OpOption = Annotated[list[str] | None, typer.Option("--op", help="put, delete, copy and so on; may be repeated.")]
PhaseOption = Annotated[
    list[str] | None, typer.Option("--phase", help="intent, done, not-done, unknown or observed; may be repeated.")
]
SinceOption = Annotated[str, typer.Option("--since", help="Recorded from then on: 2026-01-31T12:00 (UTC), or 2h ago.")]
UntilOption = Annotated[str, typer.Option("--until", help="Recorded before: as --since.")]
WriterOption = Annotated[str, typer.Option("--writer", help="The log of this writer alone.")]
AllOption = Annotated[bool, typer.Option("--all", help="The ledger's own housekeeping (checkpoints, keys, heads) too.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the report's files.")]

FOLLOW_S = 5.0
ORDER = "records of several writers are in the order of their hosts' clocks, which is no total order"


def log(
    name: LedgerArgument,
    key: KeyOption = "",
    bucket: BucketOption = "",
    actor: ActorOption = "",
    op: OpOption = None,
    phase: PhaseOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    writer: WriterOption = "",
    everything: AllOption = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="The newest so many; 0: all.")] = 200,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show records of all writers, verified, oldest first. --json prints each record as it is, one a line."""
    with _opened(name, config_path) as ledger:
        choice = _choice(ledger, key, bucket, actor, op, phase, since, until, everything)
        with Readings(evidence_of(ledger), writer) as readings:
            shown = readings.newest(choice, limit) if limit else readings.merged(choice)
            count = _show(shown, as_json=as_json)
            if limit and count == limit:
                write_note(f"the newest {limit:,}; there may be more (--limit 0 shows all)")
            _end(readings)


def tail(
    name: LedgerArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new records, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many to begin with.")] = 20,
    key: KeyOption = "",
    bucket: BucketOption = "",
    actor: ActorOption = "",
    op: OpOption = None,
    phase: PhaseOption = None,
    writer: WriterOption = "",
    everything: AllOption = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest records; with -f also what comes. Records that lie on this host and are not published yet are marked
    with ~: nothing has signed them so far."""
    with _opened(name, config_path) as ledger:
        choice = _choice(ledger, key, bucket, actor, op, phase, "", "", everything)
        evidence = evidence_of(ledger)
        with Readings(evidence, writer) as readings:
            _show(readings.newest(choice, lines) if lines else [], as_json=as_json)
            sizes, pins = readings.sizes(), readings.pins()
            _end(readings)
        seen = _show_local(ledger, writer, choice, sizes, {}, as_json=as_json)
        while follow:
            ledger.clock.sleep(FOLLOW_S)
            try:
                # What was shown once is a pin from then on: what comes must go on from it.
                with Readings(replace(evidence, pins=pins, now=ledger.clock.time()), writer) as readings:
                    new = readings.new_since({log: max(size, seen.get(log, 0)) for log, size in sizes.items()}, choice)
                    _show(new, as_json=as_json)
                    for log, size in readings.sizes().items():
                        if not as_json and sizes.get(log, 0) < seen.get(log, 0) <= size:
                            write_line(f"= {log}: records up to #{size - 1} are published and verified")
                    sizes |= readings.sizes()
                    pins = readings.pins()
                    _stop_if_tampered(readings)
            except StoreError as error:
                write_note(f"trying again: {error}")
            seen = _show_local(ledger, writer, choice, sizes, seen, as_json=as_json)


class _Reports(TyperGroup):
    """`report LEDGER` makes one; `report check FILE` is a command of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


report = new_app("report", "Make a signed report of a ledger (`report LEDGER`), or check one (`report check FILE`).")
report.info.cls = _Reports


@report.command("make")
def make_report(
    name: LedgerArgument,
    since: SinceOption = "",
    until: UntilOption = "",
    reconcile: Annotated[
        Path | None, typer.Option("--reconcile", help="What `s3integrity reconcile --json` found, to be taken in.")
    ] = None,
    out: OutOption = Path(),
    publishing: Annotated[bool, typer.Option("--publish", help="Put it beside the ledger too.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read and verify the ledger, and write a report: NUMBER.json, NUMBER.html and, signed over both, NUMBER.note.

    `make` can be left out. Ends with the code of the verdict: 0 verified, 1 anomalies, 12 tampered, 11 or 6 where not all or
    nothing could be read."""
    with _opened(name, config_path) as ledger:
        choice = _choice(ledger, "", "", "", None, None, since, until, False)
        found = taken(reconcile.read_bytes(), reconcile.name) if reconcile else None
        signer = _signer(ledger)
        if publishing and signer is None:
            raise NotEnrolled(
                "nothing is published unsigned, and this host has neither the ledger key nor a free slot",
                hint="run this where the ledger key is, or on a writer",
            )
        document = _document(ledger, choice, found)
        files = files_of(document, signer)
        paths = write_files(files, out, document["id"])
        keys = publish(files, ledger.store, document["id"]) if publishing else []
    verdict = document["verdict"]
    if as_json:
        write_json(
            {"verdict": verdict, "files": [str(path) for path in paths], "published": keys, "signed": bool(signer)}
        )
    else:
        write_line(f"{verdict['word']}: {verdict['said']}")
        for problem in document["problems"]:
            write_line(f"  {problem['kind']}: {problem['where']}: {problem['said']}")
        for path in paths:
            write_line(str(path))
        if signer is None:
            write_note("not signed: this host has neither the ledger key nor a free slot")
        else:
            write_note(f"signed by {signer.name}")
    raise typer.Exit(ExitCode(verdict["code"]))


@report.command("check")
def check_report(
    note: Annotated[Path, typer.Argument(metavar="FILE.note", help="A report's note; its files lie beside it.")],
    vkey: Annotated[
        str, typer.Option("--vkey", help="The ledger's public key, NAME+HEX+BASE64, or a file with it.")
    ] = "",
    ledger: Annotated[str, typer.Option("--ledger", help="Take the key from [ledger.NAME] instead.")] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a report's signature and its files. With --vkey without any network; with --ledger also where a writer signed it,
    whose keys are then looked up in the ledger."""
    if not vkey and not ledger:
        raise typer.BadParameter("name the key with --vkey, or the ledger whose key it is with --ledger")
    if not vkey:
        with _opened(ledger, config_path) as opened:
            vkeys = _keys_of(opened, note.read_bytes())
    else:
        vkeys = [Path(vkey).read_text(encoding="utf-8").strip() if Path(vkey).is_file() else vkey]
    signed, document, checked = check(note, vkeys)
    verdict = document.get("verdict", {})
    if as_json:
        answer = {"number": signed.number, "origin": signed.origin, "signers": signed.signers, "checked": checked}
        write_json(answer | {"verdict": verdict})
        return
    write_line(
        f"as it was signed by {', '.join(signed.signers)}: report {signed.number} of {signed.origin} ({', '.join(checked)})"
    )
    write_line(f"it says: {verdict.get('word', '')}: {verdict.get('said', '')}")


def _document(ledger: Ledger, choice: Choice, found: dict[str, Any] | None) -> dict[str, Any]:
    evidence = evidence_of(ledger)
    outcome, _ = quick(evidence)
    digest = Digest(choice)
    with Readings(evidence) as readings:
        readings.into(digest)
        told_already = {(problem.kind, problem.where) for problem in readings.problems}
        problems = [problem_of(finding) for finding in outcome.findings]
        problems = [one for one in problems if (one.kind, one.where) not in told_already] + readings.problems
        now = ledger.clock.time()
        subject = Subject(
            ulid(now),
            ledger.name,
            ledger.origin,
            ledger.vkey,
            ledger.store.url,
            timestamp(now),
            f"s3integrity {program_version()}",
            choice,
        )
        return build(subject, readings.parts(), problems, digest, found)


def _signer(ledger: Ledger) -> NoteSigner | None:
    """The ledger key where it is on this host, else the key of a slot that is free; None without either."""
    try:
        signer = LedgerKey.load(ledger.key_file).signer
    except NotEnrolled:
        for writer in writers_here(ledger):
            slot = try_lock(ledger, writer)
            if slot is not None:
                try:
                    return SlotKeys.load(slot.key).signer
                finally:
                    slot.release()
        return None
    if signer.key_id != parse_vkey(ledger.vkey).key_id:
        raise LedgerError(
            f"the key in {ledger.key_file} is not the one that `vkey` of [ledger.{ledger.name}] names",
            hint="find out which of the two is the ledger's",
        )
    return signer


def _keys_of(ledger: Ledger, note: bytes) -> list[str]:
    """The keys that may have signed a report: the ledger's, or, of a writer that the ledger's log enrolled, each epoch's."""
    names = {signature.name for signature in split_note(note)[1]}
    writers = [name.removeprefix(f"{ledger.origin}/") for name in names if name.startswith(f"{ledger.origin}/")]
    if ledger.origin in names or not writers:
        return [ledger.vkey]
    with Readings(evidence_of(ledger), writers[0]) as readings:
        _stop_if_tampered(readings)
        return [ledger.vkey, *readings.keys(writers[0])]


@contextmanager
def _opened(name: str, config_path: Path | None) -> Iterator[Ledger]:
    with opened_ledger(name, load_config(config_path)) as ledger:
        yield ledger


def _choice(
    ledger: Ledger,
    key: str,
    bucket: str,
    actor: str,
    op: list[str] | None,
    phase: list[str] | None,
    since: str,
    until: str,
    everything: bool,
) -> Choice:
    now = ledger.clock.time()
    try:
        return Choice(
            key, bucket, actor, tuple(op or ()), tuple(phase or ()), moment(since, now), moment(until, now), everything
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _show(records: Iterable[dict[str, Any]], *, as_json: bool, local: bool = False) -> int:
    count = 0
    for record in records:
        count += 1
        if as_json:
            write_line(orjson.dumps({"local": record} if local else record, option=orjson.OPT_SORT_KEYS).decode())
        else:
            write_line(_line(record, "~" if local else " "))
    return count


def _line(record: dict[str, Any], mark: str) -> str:
    cells = told.row(record)
    extra = f"  ({cells['extra']})" if cells["extra"] else ""
    return (
        f"{mark} {cells['when']}  {cells['who']:<20}  {cells['what']:<14}  {cells['outcome']:<12}  {cells['record']:<14}  "
        f"{cells['key']}{extra}"
    )


def _show_local(
    ledger: Ledger, writer: str, choice: Choice, sizes: dict[str, int], seen: dict[str, int], *, as_json: bool
) -> dict[str, int]:
    """Show what this host has beyond what was shown; up to where each writer's records were shown now."""
    shown = dict(seen)
    try:
        for record in unpublished(ledger.slots, sizes):
            if writer not in ("", record["writer"]) or record["n"] < shown.get(record["writer"], 0):
                continue
            shown[record["writer"]] = record["n"] + 1
            if choice.passes(record):
                _show([record], as_json=as_json, local=True)
    except PermissionError:
        if not seen:
            write_note(f"{ledger.slots}: what is not published yet is not shown: no permission")
        return seen
    return shown


def _end(readings: Readings) -> None:
    """Say what was shown up to where; raise for what did not hold."""
    for head in readings.heads():
        write_note(f"verified up to {head}")
    if len(readings.heads()) > 1:
        write_note(ORDER)
    _stop_if_tampered(readings)
    if any(problem.kind == "unread" for problem in readings.problems):
        raise typer.Exit(ExitCode.PARTIAL if readings.heads() else ExitCode.UNAVAILABLE)


def _stop_if_tampered(readings: Readings) -> None:
    for problem in readings.problems:
        write_note(f"{problem.kind}: {problem.where}: {problem.said}")
    if any(problem.kind == "tampered" for problem in readings.problems):
        raise typer.Exit(ExitCode.TAMPERED)
