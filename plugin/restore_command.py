"""`pve-s3-restore`: which backups a storage has, and one of them, or any other volume, as a local file.

One rule: the file is there under its name whole and verified, or not at all. The same command goes on after a crash.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from plugin.arguments import CredentialsOption, QuietOption, RootOption, begin_logging, named_storage
from plugin.catalogue import Entry
from plugin.download import download
from plugin.errors import Archived, Exists, NoSuchVolume
from plugin.layout import Volume, notes_key, protected_key
from plugin.sending import holds
from plugin.session import Session, opened, volume_named
from s3core.console import (
    Column,
    JsonOption,
    VersionOption,
    new_app,
    progress,
    run_and_exit,
    size_column,
    write_json,
    write_line,
    write_records,
)
from s3core.endpoint_commands import ConfigOption, usage
from s3core.errors import NotFound
from s3core.quantities import shown_size

NAME = "pve-s3-restore"
app = new_app(NAME, "List backups of a storage, or fetch one.")
COLUMNS = (
    Column("volid", "volume"),
    Column("format", "format"),
    size_column("size", "size"),
    Column("written", "written"),
    Column("protected", "protected", lambda flag: "yes" if flag else ""),
    Column("notes", "notes"),
)


@app.command()
def restore(
    storage: Annotated[str, typer.Option("--storage", metavar="STORAGE", help="The storage's id.")],
    list_them: Annotated[bool, typer.Option("--list", help="Show which backups there are.")] = False,
    vmid: Annotated[int, typer.Option("--vmid", metavar="N", help="With --list: of this guest alone.")] = 0,
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="A backup by its file name, or a volume as CONTENT/NAME.")
    ] = "",
    destination: Annotated[
        Path | None, typer.Option("--destination", metavar="FILE", help="The file it becomes, or a folder for it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that has other bytes.")] = False,
    quiet: QuietOption = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
    show_version: VersionOption = False,
) -> None:
    """Show the backups of a storage (--list), or fetch one (--source NAME --destination FILE)."""
    begin_logging()
    if list_them == bool(source):
        usage("give --list, or --source and --destination")
    if source and destination is None:
        usage("--source needs --destination")
    chosen = named_storage(storage, root, credentials)
    with opened(chosen, config_path) as session:
        if list_them:
            write_records(records(session, content="backup", vmid=vmid), COLUMNS, as_json=as_json)
            return
        assert destination is not None
        write_fetched(storage, fetch_shown(session, volume_named(source), destination, force, quiet), as_json)


def records(session: Session, *, content: str = "", vmid: int = 0) -> list[dict[str, object]]:
    """Rows of volumes as they are in the bucket now, by name."""
    found = session.volumes(content=content, vmid=vmid)
    there = {one.key for one in session.catalogue.entries(session.storage.prefix)}
    return [_record(session, volume, entry, there) for volume, entry in found]


def _record(session: Session, volume: Volume, entry: Entry, there: set[str]) -> dict[str, object]:
    notes = session.catalogue.text(notes_key(entry.key)) or ""
    return {
        "volid": f"{session.storage.id}:{volume.volname}",
        "content": volume.content,
        "format": volume.format,
        "size": entry.size,
        "written": datetime.fromtimestamp(int(entry.modified), UTC).isoformat(),
        "vmid": volume.vmid,
        "subtype": volume.subtype,
        "storage_class": entry.storage_class or "STANDARD",
        "protected": protected_key(entry.key) in there,
        "notes": notes.split("\n", 1)[0],
        "sealed": entry.sealed,
    }


def fetch_shown(
    session: Session, volume: Volume, destination: Path, force: bool, quiet: bool
) -> tuple[Volume, Path, int, bool]:
    """The volume, its file, its size, whether it was fetched now. NoSuchVolume, Archived, Exists, StoreErrors, OSError."""
    key = session.key(volume)
    try:
        facts = session.plain.head(key)
    except NotFound:
        raise NoSuchVolume(
            f"{session.storage.id}:{volume.volname} is not in {session.bucket.url}",
            hint="--list shows which backups there are",
        ) from None
    path = destination / volume.name if destination.is_dir() else destination
    if path.exists() and not (force and path.stat().st_size != facts.size):
        with progress(f"{path}, which is there: comparing", facts.size, unit="bytes", quiet=quiet) as shown:
            same = holds(session, path, facts, shown.advance)
        if same:
            return volume, path, facts.size, False
        if not force:
            raise Exists(f"{path} is there, with other bytes than the volume", hint="--force replaces it")
    if facts.archived:
        raise Archived(
            f"{session.storage.id}:{volume.volname} lies in class {facts.storage_class} and cannot be read",
            hint=f"pve-s3 thaw {session.storage.id} {volume.volname}; then wait some hours",
        )
    before = 0
    with progress(volume.name, facts.size, unit="bytes", quiet=quiet) as shown:

        def fetched(done: int, total: int) -> None:
            nonlocal before
            shown.advance(done - before)
            before = done

        download(session.plain, key, path, facts=facts, parallel=session.storage.uploads, progress=fetched)
    os.chmod(path, 0o600)
    return volume, path, facts.size, True


def write_fetched(storage: str, done: tuple[Volume, Path, int, bool], as_json: bool) -> None:
    volume, path, size, fetched = done
    if as_json:
        volid = f"{storage}:{volume.volname}"
        write_json({"volid": volid, "file": str(path), "size": size, "fetched": fetched})
    elif fetched:
        write_line(f"{path}: {shown_size(size)} fetched and verified")
    else:
        write_line(f"{path}: is there already, the same {shown_size(size)}")


def main() -> NoReturn:
    run_and_exit(app, NAME)
