"""`s3integrity ingest` and `s3integrity webhook`: feeds into a ledger.

One rule: commands only: what an entry says is `ingest.feeds`' to know, what is new `ingest.intake`'s.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from types import FrameType
from typing import Annotated

import typer
import uvicorn

from integrity.ingest.batch_reports import OPERATIONS
from integrity.ingest.events import Event, Options
from integrity.ingest.feeds import FEEDS, Feed
from integrity.ingest.intake import Intake, Quarantine, opened_intake
from integrity.ingest.sources import STANDARD_INPUT, Batch, OpenBucket, read_sources
from integrity.place import Ledger, opened_ledger
from integrity.webhook import HEADERS_BYTES_MAX, Door, webhook_app
from s3core.bucket_stack import open_bucket
from s3core.console import JsonOption, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.logs import configure_logging
from s3core.settings import Config, load_config

SHOWN_MAX = 5
LOOK_S = 1.0
"""Between two looks at files that are followed."""
LOOK_BUCKET_S = 60.0
IDLE_S = 75
"""A connection of the webhook that is kept alive is closed after so long without a request."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What became of the entries of a feed. `left`: understood and not taken. `files_known`: read to their end before."""

    entries: int = 0
    recorded: int = 0
    repeated: int = 0
    left: int = 0
    malformed: int = 0
    files_known: int = 0
    complaints: list[str] = field(default_factory=list)

    def complain(self, what: str) -> None:
        self.malformed += 1
        if len(self.complaints) < SHOWN_MAX:
            self.complaints.append(what)


def take_batch(
    batch: Batch, feed: Feed, options: Options, intake: Intake, quarantine: Quarantine, tally: Tally
) -> None:
    """Record what the batch says; what cannot be understood is in quarantine before its place moves."""
    events: list[Event] = []
    for piece in batch.pieces:
        tally.entries += 1
        if piece.data is None:
            tally.complain(f"{piece.where}: is too long")
            quarantine.put(feed.name, piece.where, ["is too long"], b"")
            continue
        found = feed.parse(piece.data, options)
        events += found.events
        tally.left += found.left
        if found.wrong:
            for why in found.wrong:
                tally.complain(f"{piece.where}: {why}")
            quarantine.put(feed.name, piece.where, found.wrong, piece.data)
    taken = intake.take(events, batch.places)
    tally.recorded += taken.recorded
    tally.repeated += taken.repeated
    tally.left += taken.own
    tally.files_known += batch.known
    for why in taken.refused:
        tally.complain(f"{batch.pieces[0].where} and on: cannot be a record: {why}")
    for why in filter(None, (batch.unreadable, batch.lost and f"{batch.lost}: its place was not found; read anew")):
        if why is batch.unreadable:
            tally.complain(why)
        else:
            log.warning("%s", why)


def ingest(
    name: Annotated[str, typer.Argument(metavar="LEDGER", help="The ledger, as in [ledger.NAME].", show_default=False)],
    feed: Annotated[str, typer.Argument(metavar="FEED", help=f"One of {', '.join(FEEDS)}.", show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, patterns, s3://ENDPOINT/BUCKET/PREFIX of log objects, or - for standard input;"
            " .gz and .zst are unpacked.",
            show_default=False,
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until SIGTERM or Ctrl-C: files that grow, new files and objects.")
    ] = False,
    endpoint: Annotated[
        str, typer.Option(help="Whose feed it is: an endpoint of the configuration; records name it.")
    ] = "",
    reads: Annotated[
        bool | None,
        typer.Option(
            "--reads/--no-reads", help="Whether reading is recorded [the ledger's setting].", show_default=False
        ),
    ] = None,
    operation: Annotated[
        str, typer.Option(help=f"What the job of a batch report did: one of {', '.join(OPERATIONS)} [control].")
    ] = "",
    target: Annotated[str, typer.Option(metavar="BUCKET/PREFIX", help="Where a job that copied put its objects.")] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record in a ledger what a server's feed tells.

    What was recorded before is known again and not recorded twice. Entries that cannot be understood are kept in
    STATE_DIR/feeds/quarantine.jsonl, and end the command with code 11. Records are durable before a place moves on."""
    config = load_config(config_path)
    known = _feed(feed)
    if operation not in ("", *OPERATIONS):
        raise typer.BadParameter(f"{operation!r} is none of {', '.join(OPERATIONS)}", param_hint="--operation")
    if follow and STANDARD_INPUT in sources and len(sources) > 1:
        raise typer.BadParameter("standard input is followed alone", param_hint="--follow")
    if endpoint and endpoint not in config.endpoints:
        raise typer.BadParameter(f"no [endpoint.{endpoint}] in {config.path}", param_hint="--endpoint")
    tally = Tally()
    with opened_ledger(name, config) as ledger:
        settings = ledger.settings
        configure_logging(settings.log_level, settings.log_format)
        bucket, _, prefix = target.partition("/")
        options = Options(endpoint, settings.reads if reads is None else reads, operation, bucket, prefix)
        stop = threading.Event()
        with ExitStack() as stack:
            if follow:
                stack.enter_context(_stopped_by_signals(stop))
            intake, quarantine, cursors = stack.enter_context(opened_intake(ledger))
            take = partial(take_batch, feed=known, options=options, intake=intake, quarantine=quarantine, tally=tally)
            read = partial(read_sources, sources, known, cursors, _bucket_opener(config))
            if follow:
                _follow(partial(read, follow=True), take, stop, sources)
            else:
                for batch in read():
                    take(batch)
    _tell(tally, ledger, as_json=as_json)


def webhook(
    name: Annotated[str, typer.Argument(metavar="LEDGER", help="The ledger, as in [ledger.NAME].", show_default=False)],
    listen: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where to listen [the ledger's setting `listen`].", show_default=False),
    ] = "",
    config_path: ConfigOption = None,
) -> None:
    """Take notifications and audit entries over HTTP, until SIGTERM or Ctrl-C: POST /feeds/FEED[/TOKEN][?endpoint=NAME].

    Answers 200 when the records are durable on this host, 503 while the ledger cannot take them: senders try again.
    `s3integrity serve` does the same beside its other work."""
    config = load_config(config_path)
    with opened_ledger(name, config) as ledger:
        settings = ledger.settings
        configure_logging(settings.log_level, settings.log_format)
        address = listen or settings.listen
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise typer.BadParameter(f"give HOST:PORT, or set `listen` in [ledger.{name}]", param_hint="--listen")
        with opened_intake(ledger) as (intake, quarantine, _):
            door = Door.of(ledger, intake, quarantine, endpoints=frozenset(config.endpoints))
            server = uvicorn.Server(
                uvicorn.Config(
                    webhook_app(door),
                    host=host.strip("[]"),
                    port=int(port),
                    log_config=None,
                    # It would write tokens out of paths.
                    access_log=False,
                    timeout_keep_alive=IDLE_S,
                    h11_max_incomplete_event_size=HEADERS_BYTES_MAX,
                    server_header=False,
                )
            )
            log.info("ledger %s: feeds are taken at http://%s/feeds/", name, address)
            server.run()


def _feed(name: str) -> Feed:
    if name not in FEEDS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(FEEDS)}", param_hint="FEED")
    return FEEDS[name]


def _bucket_opener(config: Config) -> OpenBucket:
    return lambda url: open_bucket(url, config)


def _follow(
    read: Callable[[], Iterator[Batch]], take: Callable[[Batch], None], stop: threading.Event, sources: Sequence[str]
) -> None:
    """Look again and again. A store that is away is asked again; a ledger that cannot take records ends it."""
    pause = LOOK_BUCKET_S if any(source.startswith("s3://") for source in sources) else LOOK_S
    while not stop.is_set():
        try:
            for batch in read():
                take(batch)
                if stop.is_set():
                    return
        except StoreError as error:
            log.warning("a source does not answer, asked again in %g s: %s", pause, error)
        if STANDARD_INPUT in sources:
            return
        stop.wait(pause)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for an orderly stop; a second SIGINT is KeyboardInterrupt."""

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    former = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _tell(tally: Tally, ledger: Ledger, *, as_json: bool) -> None:
    kept = ledger.state_dir / "feeds" / "quarantine.jsonl"
    if as_json:
        write_json(asdict(tally) | {"quarantine": str(kept) if tally.malformed else None})
    else:
        write_line(
            f"{tally.recorded:,} recorded, {tally.repeated:,} known before,"
            f" {tally.left:,} left out (reads, parts, the ledger's own objects), "
            f"{tally.malformed:,} not understood; {tally.entries:,} entries"
            + (f", {tally.files_known:,} files read before" if tally.files_known else "")
        )
        for complaint in tally.complaints:
            write_note(complaint)
        if tally.malformed:
            write_note(f"kept in {kept}")
    if tally.malformed:
        raise typer.Exit(ExitCode.PARTIAL)
