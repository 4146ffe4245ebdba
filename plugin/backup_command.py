"""`pve-s3-backup`: an archive that somebody made becomes a backup of a storage, as vzdump would have put it there.

One rule: it ends well only when the object is in the bucket and verified. The same command goes on after a crash, and says so
when everything is there.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from plugin.archive.streams import FileRanges
from plugin.archive.view import read_head
from plugin.arguments import CredentialsOption, QuietOption, RootOption, begin_logging, named_storage
from plugin.backup_name import backup_name
from plugin.errors import BadVolume
from plugin.layout import Volume, parse_volname
from plugin.sending import Advance, Sent, send
from plugin.session import Session, opened
from s3core.console import JsonOption, VersionOption, new_app, progress, run_and_exit, write_json, write_line
from s3core.endpoint_commands import ConfigOption
from s3core.quantities import shown_size

NAME = "pve-s3-backup"
app = new_app(NAME, "Send an archive to a storage.")


@app.command()
def backup(
    storage: Annotated[str, typer.Option("--storage", metavar="STORAGE", help="The storage's id.")],
    source: Annotated[
        Path, typer.Option("--source", metavar="FILE", help="The archive: VMA or tar, compressed or not.")
    ],
    vmid: Annotated[int, typer.Option("--vmid", metavar="N", min=100, max=999_999_999, help="Whose backup it is.")],
    notes: Annotated[str, typer.Option("--notes", metavar="TEXT", help="What Proxmox VE shows beside it.")] = "",
    quiet: QuietOption = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
    show_version: VersionOption = False,
) -> None:
    """Send an archive to a storage as a backup of a guest: verified, with its index, under the name that vzdump would give it
    (by the archive's kind and the file's time), or under its own where that is one of vzdump's."""
    begin_logging()
    chosen = named_storage(storage, root, credentials)
    volume = volume_for(source, vmid)
    with opened(chosen, config_path, begin=True) as session:
        done = send_shown(session, source, volume, notes=notes, quiet=quiet)
    write_sent(storage, done, as_json)


def volume_for(source: Path, vmid: int) -> Volume:
    """BadVolume for a file that is no backup of that guest; OSError."""
    ranges = FileRanges(source)
    try:
        facts = read_head(ranges)
    finally:
        ranges.close()
    try:
        name = backup_name(source.name, vmid, facts.kind, facts.compression, source.stat().st_mtime)
    except ValueError as error:
        raise BadVolume(str(error)) from None
    return parse_volname(f"backup/{name}")


def send_shown(session: Session, source: Path, volume: Volume, *, notes: str = "", quiet: bool = False) -> Sent:
    """`send`, with what it does on standard error."""
    size = source.stat().st_size
    with ExitStack() as shown:
        bars: list[Advance] = []
        before = 0

        def sent(done: int, total: int) -> None:
            nonlocal before
            if not bars:
                bars.append(shown.enter_context(progress(volume.name, total, unit="bytes", quiet=quiet)).advance)
            bars[0](done - before)
            before = done

        def comparing() -> Advance:
            label = f"{volume.name}, which is there: comparing"
            return shown.enter_context(progress(label, size, unit="bytes", quiet=quiet)).advance

        return send(session, source, volume, notes=notes, progress=sent, comparing=comparing)


def write_sent(storage: str, done: Sent, as_json: bool) -> None:
    volid = f"{storage}:{done.volume.volname}"
    if as_json:
        write_json(
            {
                "volid": volid,
                "size": done.size,
                "etag": done.etag,
                "proof": done.proof,
                "sent": done.sent,
                "index": done.index,
            }
        )
    elif done.sent:
        write_line(f"{volid}: {shown_size(done.size)} sent and verified ({done.proof})")
    else:
        write_line(f"{volid}: is there already, the same {shown_size(done.size)}")


def main() -> NoReturn:
    run_and_exit(app, NAME)
