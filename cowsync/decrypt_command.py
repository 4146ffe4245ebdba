"""`cowsync decrypt`: out of an encrypted mirror with nothing but its objects and the key; no state, no source.

One rule: nothing comes out that does not open. A file that is named appears whole or not at all; what goes to standard output
goes frame by frame, so there a failure comes after what was right so far.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cowsync.apply.copy_line import Place
from cowsync.apply.transfer import SourceMoved, Subject, Tally, TargetChanged, Transfer, TransferSettings
from cowsync.arguments import usage
from cowsync.mirror import check_apart, open_place, opened_bucket, secret_for
from cowsync.scan.listing import Listed, pages
from cowsync.scan.ranges import WHOLE
from cowsync.sealing.format import HEADER, TAG_BYTES, Facts, NotOpened, Opener, decode_header
from cowsync.sealing.keys import Keyring, keyring_of, slots_on
from s3core.console import JsonOption, progress, write_json, write_line, write_note
from s3core.credentials import KEY_SOURCES, check_key_source
from s3core.endpoint_commands import ConfigOption
from s3core.errors import Denied, Misconfigured, StoreError, Unavailable
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_size
from s3core.settings import load_config

WORKERS = 8
FAILURES_SHOWN = 100


@dataclass(slots=True)
class Decrypted:
    """`present` were at the place already, with the same size, and were left as they are."""

    objects: int = 0
    bytes: int = 0
    present: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)


def decrypt(
    key: Annotated[
        str, typer.Option("--key", metavar="SOURCE", help=f"What opens the mirror: {KEY_SOURCES}.", show_default=False)
    ],
    sealed: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A sealed object as it lies on the mirror; else standard input."),
    ] = None,
    slot: Annotated[
        list[Path] | None,
        typer.Option("--slot", metavar="FILE", help="A key slot: an object below .cowsync/keys/ of the mirror."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to, whole or not at all; else standard output.")
    ] = None,
    facts: Annotated[
        bool, typer.Option("--facts", help="Show what is sealed beside the bytes, as JSON, in place of the bytes.")
    ] = False,
    mirror: Annotated[
        str, typer.Option("--from", metavar="URL", help="A whole mirror, or what lies below a prefix of it.")
    ] = "",
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The bucket and prefix that a mirror goes to.")] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decrypt one sealed object, or with --from and --to a whole mirror into another bucket.

    Needs neither the source nor the mirror's state nor its configuration: only objects, key slots and the key."""
    try:
        source = check_key_source(key)
    except ValueError as error:
        usage(f"--key: {error}")
    if not source:
        usage(f"--key must be {KEY_SOURCES}")
    secret = secret_for(source, "the mirror")
    if mirror or to:
        if not (mirror and to) or sealed or slot or out or facts:
            usage("--from and --to belong together, and go with --key alone")
        check_apart(mirror, to)
        config = load_config(config_path)
        with open_place(config, mirror) as there, open_place(config, to) as place:
            ring = keyring_of(slots_on(there.bucket, there.prefix).values(), secret(False), mirror)
            result = decrypt_all(there, place, ring, quiet=as_json)
        if as_json:
            write_json(asdict(result))
        else:
            write_line(f"{result.objects:,} objects decrypted ({shown_size(result.bytes)})")
            if result.present:
                write_note(f"{result.present:,} were there already and were left as they are")
            for failure in result.failures:
                write_note(failure)
        raise typer.Exit(ExitCode.PARTIAL if result.failed else ExitCode.OK)
    if not slot:
        usage("name the mirror's key slots with --slot FILE; they lie below .cowsync/keys/ of the mirror")
    ring = keyring_of([path.read_bytes() for path in slot], secret(False), ", ".join(map(str, slot)))
    with ExitStack() as stack:
        reading = stack.enter_context(sealed.open("rb")) if sealed else sys.stdin.buffer
        if facts:
            write_json(asdict(next(plain_pieces(reading, ring))[0]))
            return
        writing = stack.enter_context(_whole_file(out)) if out else sys.stdout.buffer
        for _, piece in plain_pieces(reading, ring):
            writing.write(piece)
        writing.flush()


def plain_pieces(sealed: BinaryIO, keyring: Keyring) -> Iterator[tuple[Facts, bytes]]:
    """The facts and then, with each, a piece of the plain bytes; the first piece is empty. NotOpened where the stream is not
    what was sealed, to its last byte."""
    header = decode_header(_exactly(sealed, HEADER.size))
    opener = keyring.opener(header)
    facts = opener.facts(_exactly(sealed, header.facts_bytes))
    yield facts, b""
    if header.streamed:
        yield from ((facts, plain) for plain in _streamed_frames(sealed, opener))
        return
    for number in range(1, header.frames + 1):
        yield facts, opener.frame(number, _exactly(sealed, header.frame_length(number) + TAG_BYTES))
    if sealed.read(1):
        raise NotOpened("bytes lie behind the end of the sealed object")


def _streamed_frames(sealed: BinaryIO, opener: Opener) -> Iterator[bytes]:
    """The frame that nothing comes after must be the last one."""
    step = opener.header.frame_bytes + TAG_BYTES
    frame, number = sealed.read(step), 1
    while following := sealed.read(step):
        yield opener.next_frame(number, frame, last=False)
        frame, number = following, number + 1
    yield opener.next_frame(number, frame, last=True)


def decrypt_all(mirror: Place, place: Place, keyring: Keyring, *, quiet: bool = True) -> Decrypted:
    """Every object of the mirror into the place, under its own key, with what it had. What is there already with the same
    size stays, so a call that was stopped goes on when it is called again. Raises StoreErrors of the listing; those of
    single objects are counted, but for a store that is away or refuses."""
    opened = opened_bucket(mirror, keyring)
    result, lock = Decrypted(), threading.Lock()

    def one(key: str) -> None:
        tally = Tally()
        try:
            full = mirror.key(key)
            facts = opened.head(full)
            transfer = Transfer(TransferSettings(keep_parts=True), _NoLog())
            there = transfer.look(place.bucket, place.key(key))
            if there is not None and there.size == facts.size:
                with lock:
                    result.present += 1
                return
            subject = Subject(opened, full, facts.size, facts.etag)
            transfer.copy(subject, place.bucket, place.key(key), tally, before=there.etag if there else "")
        except (Denied, Misconfigured, Unavailable):
            raise
        except (StoreError, SourceMoved, TargetChanged) as error:
            with lock:
                result.failed += 1
                if len(result.failures) < FAILURES_SHOWN:
                    result.failures.append(f"{key}: {error}")
            return
        with lock:
            result.objects += 1
            result.bytes += tally.moved

    with (
        progress("decrypting", None, quiet=quiet) as shown,
        ThreadPoolExecutor(WORKERS, thread_name_prefix="decrypt") as pool,
    ):
        for page in pages(mirror.bucket, mirror.prefix, WHOLE, Listed(b"")):
            keys: Sequence[str] = [key.decode() for key in page.keys]
            for _ in pool.map(one, keys):
                shown.advance(1)
    return result


class _NoLog:
    """Uploads are aborted when they fail; those of a crash are the bucket's lifecycle rule's."""

    def upload_begun(self, key: str, upload_id: str) -> None:
        return

    def upload_over(self, key: str, upload_id: str) -> None:
        return


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise NotOpened(f"the sealed object is cut off: {len(data)} bytes where {length} belong")
    return data


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A crash leaves FILE.new beside it, which the next call overwrites."""
    staged = path.with_name(path.name + ".new")
    with staged.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
