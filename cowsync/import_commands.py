"""`cowsync import-inventory|import-results`: what others have listed, taken for a scan; what others have copied, noted.

One rule: what is imported is believed no further than it says. An inventory is of a moment that has gone by: it never has
anything removed from the mirror, and an object that is older in it than the mirror's is no change. A report says what
somebody believes to have done: done is what a HEAD finds on the mirror.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import typer

from cowsync.apply.journal import Journals, WorkerJournal
from cowsync.arguments import ApproveOption, MirrorArgument, mirror_of
from cowsync.changes import PlanLine
from cowsync.errors import Refused
from cowsync.mirror import Mirror, check_current, reader
from cowsync.plan.plan_file import SHOWN_DIGEST, Plan, find_plan
from cowsync.plan.results import ReportCount, ReportRow, line_results, read_report
from cowsync.plan_commands import exit_of, plan_record, scanning, tell_plan
from cowsync.scan.inventory import Inventory, inventory_rows, open_inventory
from cowsync.scan.listing import Listed
from cowsync.scan.ranges import WHOLE
from cowsync.scan.run import Scan, ScanFacts, scan_in_one
from cowsync.scan.shard import ShardTask, compared
from cowsync.work import Base, Planned, alone, base_of, check_allowed, check_base, plan_from, scan_json, seconds_of
from s3core.bucket import ObjectFacts
from s3core.console import JsonOption, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.errors import NotFound
from s3core.exit_codes import ExitCode

REPORT_ROWS = 20_000
"""Rows of reports that are looked at together."""


def import_inventory(
    name: MirrorArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST [FILE...]",
            help="manifest.json of an S3 Inventory, or its folder; then the files it names or their folders.",
            exists=True,
            show_default=False,
        ),
    ],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a plan from an S3 Inventory (CSV or Parquet) in place of a listing. Nothing moves.

    Ends as `cowsync plan`: with 0 where nothing changed, with 1 where something did, with 7 where the guard holds it."""
    with (
        mirror_of(config_path, name) as mirror,
        alone(mirror),
        scanning(name, quiet=as_json, doing="reading the inventory") as told,
    ):
        planned = plan_inventory(mirror, open_inventory(paths), progress=told)
    if as_json:
        write_json(plan_record(planned.plan) | {"scan": scan_json(planned.scan)})
    else:
        tell_plan(name, planned)
    raise typer.Exit(exit_of(planned))


def plan_inventory(
    mirror: Mirror,
    inventory: Inventory,
    *,
    now: Callable[[], float] = time.time,
    progress: Callable[[ScanFacts], None] = lambda facts: None,
) -> Planned:
    """As `work.make_plan`, with `inventory` for a listing of the source. For the holder of the lock. Nothing moves.

    Refused for an inventory of another bucket, one that was begun before the last run was published, and one that is
    not whole; then there is no plan, and nothing has changed."""
    check_current(mirror, "an inventory in place of a listing")
    bucket = mirror.source.bucket.properties.name
    if inventory.bucket != bucket:
        raise Refused(
            f"the inventory is of bucket {inventory.bucket}, the source of mirror {mirror.name} is {bucket}",
            hint=f"give an inventory of {bucket}; nothing was planned",
        )

    def scan_of(base: Base) -> Scan:
        if base.snapshot is not None and inventory.created < seconds_of(base.snapshot.facts.time):
            raise Refused(
                f"the inventory was begun at {inventory.moment}, before run {base.snapshot.facts.run} was published at "
                f"{base.snapshot.facts.time}: more is known than it says",
                hint=f"take the next inventory, or list the source: cowsync plan {mirror.name}",
            )
        layers = base.snapshot.layers if base.snapshot else ()
        # Without `remove_upto` nothing is due for removal: a key may be back since.
        task = ShardTask(WHOLE, base.run)

        def lines(listed: Listed, prefixes: dict[str, tuple[int, int]], folder: Path) -> Iterator[PlanLine]:
            rows = inventory_rows(inventory, mirror.source.prefix, listed, folder, belongs=mirror.belongs)
            known = reader(layers, mirror.state)
            return compared(task, rows, listed, prefixes, known, inventory.created, lagging=True)

        scan = scan_in_one(lines, mirror.spool, now=now, progress=progress)
        scan.facts.inventory = inventory.moment
        return scan

    return plan_from(mirror, scan_of, now=now)


def import_results(
    name: MirrorArgument,
    digest: Annotated[
        str,
        typer.Argument(metavar="DIGEST", help="The plan that the job was given, by its digest.", show_default=False),
    ],
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT...",
            help="CSV files of completion reports of S3 Batch Operations.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
    approve: ApproveOption = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Note what S3 Batch Operations did of a plan, after a look at the mirror; `cowsync apply` does what is left.

    Ends with 0 where every row of the reports is a line that is done, else with 11."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        plan = find_plan(mirror.plans, digest)
        count = note_results(mirror, plan, reports, approve=approve)
    if as_json:
        write_json({"digest": plan.digest, **asdict(count)})
    else:
        write_line(
            f"{count.rows:,} rows: {count.done:,} done, {count.moved:,} moved, {count.drifted:,} drifted, "
            f"{count.failed:,} failed"
        )
        if count.strangers:
            write_note(f"{count.strangers:,} rows are of keys that the plan does not copy")
        write_note(
            f"next: cowsync apply {name} {plan.digest[:SHOWN_DIGEST]}     carries out what is left, and publishes"
        )
    raise typer.Exit(ExitCode.OK if count.done == count.rows else ExitCode.PARTIAL)


def note_results(mirror: Mirror, plan: Plan, reports: Sequence[Path], *, approve: str = "") -> ReportCount:
    """Write what the reports say, and the mirror confirms, into the journals of the plan. For the holder of the lock.

    Durable on return: an apply of the plan takes those lines for done and publishes them, and so does the next plan. A
    crash before leaves a part of them, each as true; noting the same reports again adds the rest. Held and Refused as
    `work.apply`; Refused for a file that is no report or of another bucket, StoreErrors of the mirror."""
    check_current(mirror, "a report of S3 Batch Operations")
    mirror.check_encryption(begun=False)
    if mirror.encrypted:
        raise Refused(
            f"mirror {mirror.name} is encrypted: what another engine copied there is not sealed",
            hint=f"remove what it copied, and carry the plan out with cowsync apply {mirror.name}",
        )
    check_base(mirror, plan, base_of(mirror))
    check_allowed(plan, approve)
    plan.verify()
    directory, sha = mirror.journals(plan.digest), bytes.fromhex(plan.digest)
    before = Journals.read(directory, sha).done
    count = ReportCount()

    def look(line: PlanLine) -> ObjectFacts | None:
        try:
            return mirror.target.bucket.head(mirror.target.key(line.key))
        except NotFound as error:
            if not error.key:
                raise
            return None

    def rows() -> Iterator[ReportRow]:
        for path in reports:
            with path.open(newline="", encoding="utf-8") as file:
                yield from read_report(file)

    with closing(WorkerJournal(directory, 0, sha)) as journal, ThreadPoolExecutor(mirror.settings.copiers) as pool:
        results = line_results(plan, rows(), look, count, chunk_rows=REPORT_ROWS, pool=pool)
        while chunk := list(islice(results, REPORT_ROWS)):
            # In the order of the plan, so that a reader of the journal finds few ascending runs.
            chunk.sort(key=attrgetter("number"))
            journal.append(*(result for result in chunk if result.number not in before))
    return count
