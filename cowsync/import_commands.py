"""`cowsync import-inventory`: what others have listed, taken for a scan.

One rule: what is imported is believed no further than it says. An inventory is of a moment that has gone by: it never has
anything removed from the mirror, and an object that is older in it than the mirror's is no change.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from cowsync.arguments import MirrorArgument, mirror_of
from cowsync.changes import PlanLine
from cowsync.errors import Refused
from cowsync.mirror import Mirror, reader
from cowsync.plan_commands import exit_of, plan_record, scanning, tell_plan
from cowsync.scan.inventory import Inventory, inventory_rows, open_inventory
from cowsync.scan.listing import Listed
from cowsync.scan.ranges import WHOLE
from cowsync.scan.run import Scan, ScanFacts, scan_in_one
from cowsync.scan.shard import ShardTask, compared
from cowsync.work import Base, Planned, alone, plan_from, scan_json, seconds_of
from s3core.console import JsonOption, write_json
from s3core.endpoint_commands import ConfigOption


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
