"""`s3integrity reconcile|explain`: what was changed in a bucket outside the ledger.

One rule: nothing here writes to the bucket. What is read of the ledger is verified as it is read; what was folded of it before
lies in `STATE_DIR/reconcile`, and can be thrown away.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from integrity.coverage import covered
from integrity.errors import Malformed
from integrity.place import Ledger, opened_ledger
from integrity.reconcile.actual import BucketListing, Inventory
from integrity.reconcile.findings import ADVICE, MEANINGS, Code
from integrity.reconcile.folded import Folded
from integrity.reconcile.judgement import Circumstances, judge
from integrity.reconcile.mentions import Place
from integrity.reconcile.run import Answer, Reconciliation, Wish
from integrity.reconcile.story import headline, story
from integrity.record import unix_of
from integrity.slots import open_writer
from integrity.verification.pins import load_pins, pins_path
from integrity.verification.trust import Member, Members, believed
from s3core.bucket_stack import ObservedBucket, open_bucket
from s3core.build import parse_store_url
from s3core.clock import Clock, SystemClock, system_random
from s3core.console import JsonOption, Progress, progress, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.errors import StoreError, Unavailable
from s3core.exit_codes import ExitCode, register
from s3core.s3_control import LifecycleRule, S3Control
from s3core.settings import Config, ConfigError, load_config

register(sqlite3.DatabaseError, ExitCode.LOCAL)
SKEW_S = 60.0
PUBLISHED_S = 5.0
"""Beyond `checkpoint_s`: how long a checkpoint may take to be in the store."""
SHOWN_MAX = 1000

LedgerArgument = Annotated[str, typer.Argument(help="The ledger, as in [ledger.NAME].", show_default=False)]
SkewOption = Annotated[float, typer.Option("--skew", help="Seconds by which clocks may differ.", min=0)]
FeedsOption = Annotated[
    bool | None,
    typer.Option(
        "--feeds-count/--feeds-do-not-count",
        help="Whether what feeds alone tell was done rightly; by default unless the ledger `covers` the bucket.",
        show_default=False,
    ),
]


def reconcile(
    name: LedgerArgument,
    url: Annotated[str, typer.Argument(help="s3://ENDPOINT/BUCKET or a prefix in it.", show_default=False)],
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", help="manifest.json of an S3 Inventory of all versions (CSV) in place of a listing."
        ),
    ] = None,
    content: Annotated[
        float, typer.Option("--content", help="Share of versions whose bytes are read again, 0 to 1.", min=0, max=1)
    ] = 0.0,
    since: Annotated[str, typer.Option("--since", help="Leave out what happened before, such as 2026-01-31.")] = "",
    feeds_count: FeedsOption = None,
    skew: SkewOption = SKEW_S,
    settle: Annotated[
        float | None,
        typer.Option("--settle", help="Seconds until records are published, and a key is looked at again.", min=0),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result into the ledger as a note.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a bucket against its ledger: what was put, replaced, deleted or purged that no record tells of.

    Ends with 0 where there is nothing, 1 with findings, 6 where something could not be reached, 11 where not all was looked
    at, 12 where the ledger itself was tampered with."""
    config = load_config(config_path)
    from_when = _moment(since)
    with opened_ledger(name, config) as ledger, _opened(config, url) as (bucket, place):
        _refuse_its_own(config, ledger, url)
        whole, recorded = _recorded_as(config, ledger, url, place)
        counts = feeds_count if feeds_count is not None else not recorded
        wish = Wish(
            content=content,
            since=from_when,
            settle_s=settle if settle is not None else ledger.settings.checkpoint_s + PUBLISHED_S,
        )
        with (
            closing(_folded(ledger, whole, counts, skew)) as folded,
            TemporaryDirectory(dir=_folder(ledger), prefix="inventory-") as scratch,
            _told(quiet=as_json) as told,
        ):
            listing = BucketListing(bucket, place.prefix)
            source = _inventory(inventory, place, Path(scratch)) if inventory is not None else listing
            run = Reconciliation(
                folded,
                place.prefix,
                lambda: verified_logs(ledger),
                source,
                listing,
                bucket,
                ledger.clock,
                system_random(),
                wish=wish,
                rules=_rules(config, place),
                told=told,
            )
            answer = run.run()
        if record:
            _record(ledger, place, answer)
        if as_json:
            write_json(answer.as_record() | {"ledger": name, "feeds_count": counts})
        else:
            tell(answer, keeps_versions=listing.keeps_versions)
    raise typer.Exit(answer.exit_code)


def explain(
    name: LedgerArgument,
    url: Annotated[str, typer.Argument(help="s3://ENDPOINT/BUCKET/KEY", show_default=False)],
    feeds_count: FeedsOption = None,
    skew: SkewOption = SKEW_S,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of one key in plain words, the newest first. Numbers such as pve1.1#17 are records: s3integrity prove."""
    config = load_config(config_path)
    of_bucket, key = _key_of(url)
    with opened_ledger(name, config) as ledger, _opened(config, of_bucket) as (bucket, place):
        whole, recorded = _recorded_as(config, ledger, of_bucket, Place(place.endpoint, place.bucket, key))
        counts = feeds_count if feeds_count is not None else not recorded
        with closing(_folded(ledger, whole, counts, skew)) as folded, _told(quiet=as_json) as told:
            folded.fold(verified_logs(ledger), lambda count: told("reading the ledger", count))
            around = Circumstances(
                now=ledger.clock.time(),
                began=folded.began(),
                skew_s=skew,
                looked=folded.looked(),
                rules=_rules(config, place),
                feed=folded.feed,
                suspected=folded.suspected,
            )
            acts, mentions = folded.acts(key), folded.mentions(key)
        away: Unavailable | None = None
        try:
            findings = judge(key, acts, BucketListing(bucket, key).versions_of(key), around)
        except Unavailable as error:
            away, findings = error, []
        lines = story(acts, mentions, findings)
    said = f"`{key}`: the bucket cannot be asked: {away}" if away else headline(key, findings, acts)
    if as_json:
        write_json(
            {
                "key": key,
                "said": said,
                "story": [line.as_record() for line in lines],
                "findings": [finding.as_record() for finding in findings],
            }
        )
    else:
        write_line(said)
        for line in lines:
            moment = line.as_record()["at"]
            write_line(f"  {str(moment)[:19].replace('T', ' '):<19}  {line.said}  [{', '.join(line.records)}]")
    if away:
        raise typer.Exit(ExitCode.UNAVAILABLE)
    raise typer.Exit(ExitCode.FINDING if any(not one.explained for one in findings) else ExitCode.OK)


def tell(answer: Answer, *, keeps_versions: bool = True) -> None:
    """The answer for people: a verdict, the findings, what is explained, what was not looked at."""
    count = len(answer.findings) + answer.left_out
    verdict = f"{count:,} findings" if count != 1 else "1 finding"
    write_line(
        f"{answer.place}: {verdict if count else 'nothing was changed outside the ledger'}; {answer.versions:,} versions, "
        f"{answer.records:,} records ({answer.fresh_records:,} new)"
    )
    for finding in answer.findings[:SHOWN_MAX]:
        write_line(f"{finding.code:<20} {finding.sentence}")
        write_line(f"{'':<20} -> {finding.advice or ADVICE[finding.code]}")
        if finding.records:
            write_line(f"{'':<20}    records: {', '.join(finding.records)}")
    if count > SHOWN_MAX:
        write_line(f"and {count - SHOWN_MAX:,} more (--json has up to 100,000)")
    for code in sorted({finding.code for finding in answer.findings}):
        write_note(f"{code}: {MEANINGS[Code(code)]}")
    for cause, number in sorted(answer.explained.items()):
        write_line(f"{'explained':<20} {number:,}: {cause}")
    for key in answer.in_flight:
        write_line(f"{'in flight':<20} `{key}` was changed again and again while it was looked at; run it again")
    if answer.content_read or answer.content_unknown:
        write_line(
            f"{'read again':<20} {answer.content_read:,} versions; {answer.content_unknown:,} more have nothing to compare with"
        )
    if answer.looked_once:
        write_line(f"{'looked at once':<20} {answer.looked_once:,} keys: too many differ to look at each of them again")
    for reason in answer.incomplete:
        write_line(f"{'incomplete':<20} {reason}")
    if not keeps_versions:
        write_note("the bucket keeps no versions: what was replaced and put back between two comparisons is not seen")


def verified_logs(ledger: Ledger) -> Iterator[tuple[str, int, Callable[[int, int], Iterable[tuple[int, bytes]]]]]:
    """The writers' logs as they are now: name, size, and what reads records of a range. Each record is shown to be under a
    signed root that goes on from this host's pins. Of a retired writer only what was sealed when it was retired counts: what
    its key signs later is nobody's word. Tampered; StoreErrors."""
    pins = load_pins(pins_path(ledger), ledger.origin, ledger.vkey)
    log, members, logs = believed(ledger.store, ledger.origin, ledger.vkey, pins.logs, Members.from_facts(pins.members))
    with closing(log.reader):
        for one in logs:
            with closing(one.reader):
                yield one.writer, sealed_size(members.by_name[one.writer], one.checkpoint.size), one.reader.records


def sealed_size(member: Member, size: int) -> int:
    """How many of a log's `size` records are the writer's word."""
    if not member.retired:
        return size
    return min(size, member.head.size if member.head is not None else 0)


def _record(ledger: Ledger, place: Place, answer: Answer) -> None:
    told = answer.as_record()
    kept = {name: told[name] for name in ("at", "complete", "versions", "records", "counts", "explained")}
    kept["explained"] = sum(answer.explained.values())
    event = {
        "op": "note",
        "phase": "done",
        "source": "client",
        "endpoint": place.endpoint,
        "bucket": place.bucket,
        "key": place.prefix,
        "detail": {"reconcile": kept},
        "who": {"user": os.environ.get("USER", ""), "host": ledger.host},
    }
    with open_writer(ledger) as writer:
        writer.record(event)


def _rules(config: Config, place: Place) -> list[LifecycleRule] | None:
    """The bucket's lifecycle rules; None where its key may not read them."""
    if place.endpoint == "memory":
        return []
    control = S3Control(config.endpoint(place.endpoint))
    try:
        return control.lifecycle(place.bucket)
    except StoreError as error:
        write_note(
            f"the bucket's lifecycle rules cannot be read, so nothing is explained by them, but by what feeds say: {error}"
        )
        return None
    finally:
        control.close()


def _refuse_its_own(config: Config, ledger: Ledger, url: str) -> None:
    """A ledger records nothing of what is put in itself: all of it would be findings."""
    asked, own = config.whereabouts(url), config.whereabouts(ledger.settings.url)
    if f"{asked}/".startswith(f"{own}/"):
        raise ConfigError(
            f"{url} is where the ledger {ledger.name} lies", hint=f"s3integrity verify {ledger.name} looks at it"
        )


def _recorded_as(config: Config, ledger: Ledger, url: str, place: Place) -> tuple[Place, bool]:
    """The bucket as records of it name it, and whether our own tools record all that they do there."""
    for one in covered(config, url):
        if one.ledger == ledger.name and place.prefix.startswith(one.prefix):
            return Place(one.endpoint or place.endpoint, one.bucket), True
    return Place(place.endpoint, place.bucket), False


def _inventory(manifest: Path, place: Place, folder: Path) -> Inventory:
    found = Inventory(manifest, place.prefix, folder)
    if found.bucket != place.bucket:
        raise Malformed(f"{manifest} is of the bucket {found.bucket}, not of {place.bucket}")
    return found


def _folder(ledger: Ledger) -> Path:
    folder = ledger.state_dir / "reconcile"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _folded(ledger: Ledger, place: Place, counts: bool, skew: float) -> Folded:
    name = sha256(f"{place.url}\0{ledger.vkey}".encode()).hexdigest()[:16]
    return Folded(_folder(ledger) / f"{name}.sqlite", place, observed_counts=counts, skew_s=skew)


@contextmanager
def _opened(config: Config, url: str, clock: Clock | None = None) -> Iterator[tuple[ObservedBucket, Place]]:
    parsed = parse_store_url(url)
    bucket, prefix = open_bucket(url, config, clock=clock or SystemClock())
    try:
        endpoint, name = (parsed.name, parsed.bucket) if parsed.scheme == "s3" else (parsed.scheme, parsed.name)
        yield bucket, Place(endpoint, name, prefix)
    finally:
        bucket.close()


def _key_of(url: str) -> tuple[str, str]:
    """The bucket's URL, and the key as it stands: it may begin or end with a slash."""
    scheme, separator, rest = url.partition("://" if url.startswith("s3:") else ":")
    endpoint, _, rest = rest.partition("/") if scheme == "s3" else ("", "", rest)
    bucket, _, key = rest.partition("/")
    if scheme not in ("s3", "memory") or not bucket or not key or (scheme == "s3" and not endpoint):
        raise typer.BadParameter(f"{url!r} is not s3://ENDPOINT/BUCKET/KEY")
    return f"{scheme}{separator}{endpoint}{'/' if endpoint else ''}{bucket}", key


def _moment(text: str) -> float:
    if not text:
        return 0.0
    full = text.removesuffix("Z").replace(" ", "T")
    full += "T00:00:00" if len(full) == 10 else ""
    try:
        return unix_of(f"{full if '.' in full else full + '.000000'}Z")
    except ValueError as error:
        raise typer.BadParameter(
            f"--since: {text!r} is no moment such as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from error


@contextmanager
def _told(*, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Shows how far a comparison has come, each kind of work by itself, from its beginning."""
    with progress("reconcile", None, quiet=quiet) as shown:
        yield _Told(shown, quiet)


class _Told:
    def __init__(self, shown: Progress, quiet: bool) -> None:
        self._shown = shown
        self._quiet = quiet
        self._label = ""
        self._began = time.monotonic()

    def __call__(self, label: str, count: int) -> None:
        if label != self._label and not self._quiet:
            write_note(f"{label} ({time.monotonic() - self._began:.0f} s)")
            self._label = label
        self._shown.advance(count)
