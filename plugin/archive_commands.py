"""`pve-s3 archive`: look into a backup in the bucket, and take one file or one disk out of it, without downloading it.

One rule: what is written appears under its name whole or not at all; standard output gets what was right so far.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.archive.compression import decoder
from plugin.archive.errors import BadArchive, IndexDamaged, NoIndex, NotInArchive
from plugin.archive.indexer import Indexer, name_of
from plugin.archive.streams import steps
from plugin.archive.tar import Member
from plugin.archive.view import READ_BYTES, ArchiveView, DiskReader
from plugin.archive.zstd_frames import SeekableWriter
from plugin.archive_source import ObjectRanges, Source, look, opened, put_index, volume_of
from plugin.arguments import CredentialsOption, RootOption, StorageArgument, named_storage
from plugin.errors import BadVolume, Exists
from plugin.layout import Volume, index_key, notes_key, parse_volname
from plugin.range_reader import ReadPool
from plugin.session import Session
from plugin.session import opened as session_of
from s3core.console import (
    Column,
    JsonOption,
    new_app,
    progress,
    size_column,
    write_json,
    write_line,
    write_note,
    write_record,
    write_records,
)
from s3core.endpoint_commands import ConfigOption
from s3core.errors import NotFound
from s3core.exit_codes import ExitCode, register
from s3core.quantities import shown_size

app = new_app("archive", "Look into a backup in the bucket, and take parts out of it by ranges.")

register(BadArchive, ExitCode.CORRUPT)
register(IndexDamaged, ExitCode.CORRUPT)
register(NoIndex, ExitCode.REFUSED)
register(NotInArchive, ExitCode.NOT_FOUND)

SAVE_BYTES = 256 << 20
"""How much of a disk may be fetched twice after a crash."""
INDEX_WINDOW = 128 << 20
ArchiveArgument = Annotated[
    str,
    typer.Argument(
        metavar="VOLUME", help="A backup: its file name, with or without STORAGE:backup/ before it.", show_default=False
    ),
]
ToOption = Annotated[str, typer.Option("--to", metavar="FILE", help="Where to; - is standard output.")]


@app.command()
def show(
    storage: StorageArgument,
    volume: ArchiveArgument,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an archive is: kind, sizes, disks, and what can be read of it without the whole."""
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        view = source.view
        facts = view.facts
        record: dict[str, object] = {
            "volume": f"{source.storage.id}:{source.volume.volname}",
            "kind": facts.kind or "unknown",
            "compression": facts.compression or "none",
            "size": facts.size,
            "plain_size": facts.plain_size,
            "index": "yes" if view.index is not None else "no",
            "note": source.problem or facts.note,
            "complete": facts.complete if view.index is not None else None,
            "parts": _parts(view),
            "configs": [name for name, _ in view.configs()],
            "disks": [{"name": disk.name, "size": disk.size} for disk in view.disks()],
            "members": facts.members if view.index is not None and facts.kind == "tar" else None,
        }
    lines = [
        Column("volume", "volume"),
        Column("kind", "kind", lambda kind: {"vma": "VMA (virtual machine)", "tar": "tar (container)"}.get(kind, kind)),
        Column("compression", "compression"),
        size_column("size", "size"),
        size_column("plain_size", "uncompressed"),
        Column("index", "index"),
        Column("complete", "complete", lambda value: {None: "not known", True: "yes", False: "no"}[value]),
        Column("note", "note"),
        Column("parts", "one part costs"),
        Column("configs", "configuration", ", ".join),
        Column(
            "disks", "disks", lambda disks: ", ".join(f"{disk['name']} {shown_size(disk['size'])}" for disk in disks)
        ),
        Column("members", "files"),
    ]
    write_record(record, [line for line in lines if record[line.key] not in ("", [], None)], as_json=as_json)


def _parts(view: ArchiveView) -> str:
    if view.index is None:
        return "make an index: pve-s3 archive index"
    if not view.facts.compression:
        return "about its own size"
    places = view.plain.places
    if places > 1:
        return f"its own size, and up to {shown_size((view.facts.plain_size or 0) // places)} before it, uncompressed"
    return "all that lies before it: the compressed stream is in one piece"


@app.command()
def config(
    storage: StorageArgument,
    volume: ArchiveArgument,
    name: Annotated[
        str, typer.Option("--name", help="Another file that vzdump put in, such as qemu-server.fw.", show_default=False)
    ] = "",
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the guest's configuration out of a backup."""
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        if name:
            held = dict(source.view.configs())
            if name not in held:
                raise NotInArchive(f"{name}: not in this archive; there are {', '.join(held) or 'none'}")
            text = held[name].decode(errors="replace")
        else:
            text = source.view.guest_config()
    if as_json:
        write_json({"config": text})
        return
    for line in text.splitlines():
        write_line(line)


@app.command()
def ls(
    storage: StorageArgument,
    volume: ArchiveArgument,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A directory or file of a container.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All that lies below, too.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the files of a container's backup, or the disks of a machine's."""
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        view = source.view
        if view.facts.kind == "vma":
            disks = [{"disk": disk.name, "size": disk.size} for disk in view.disks()]
            write_records(disks, [Column("disk", "disk"), size_column("size", "size")], as_json=as_json)
            return
        _warn(source)
        rows = sorted((_row(member) for member in view.ls(path, deep=recursive)), key=lambda row: str(row["path"]))
    columns = [
        Column("mode", "mode"),
        Column("owner", "owner"),
        size_column("size", "size"),
        Column("modified", "modified"),
        Column("shown", "path"),
    ]
    write_records(rows, columns, as_json=as_json)


_TYPES = {
    "file": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "dir": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
}


def _row(member: Member) -> dict[str, object]:
    path = _printable(name_of(member.path) or "/")
    arrow = {"symlink": " -> ", "hardlink": " = "}.get(member.kind, "")
    return {
        "path": path,
        "kind": member.kind,
        "mode": stat.filemode(member.mode | _TYPES.get(member.kind, 0)),
        "owner": f"{member.uid}:{member.gid}",
        "uid": member.uid,
        "gid": member.gid,
        "size": member.size,
        "modified": _moment(member.mtime),
        "link": _printable(member.link),
        "sparse": member.sparse,
        "shown": path + (arrow + _printable(member.link) if arrow else ""),
    }


def _printable(text: str) -> str:
    """Undecodable bytes shown, since neither JSON nor a terminal takes them."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


@app.command()
def extract(
    storage: StorageArgument,
    volume: ArchiveArgument,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A file or directory of a container.")] = "",
    disk: Annotated[
        str, typer.Option("--disk", metavar="NAME", help="A disk of a machine, as a raw image.", show_default=False)
    ] = "",
    to: ToOption = "",
    as_tar: Annotated[bool, typer.Option("--tar", help="A tar archive of PATH and all below, with ACLs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take one file out of a container's backup, or one disk out of a machine's.

    Holes stay holes in a file. A disk that was interrupted goes on where it was, by the same command."""
    if bool(path) == bool(disk) or (as_tar and disk):
        raise typer.BadParameter("name a PATH or a --disk; --tar goes with a PATH")
    if as_json and to == "-":
        raise typer.BadParameter("--json and --to - would both write to standard output")
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        view = source.view
        _warn(source)
        if disk:
            reader = view.disk(disk)
            place = to or f"{reader.name}.raw"
            written = _write_disk(source, reader, place, force, quiet)
        elif as_tar:
            place = to or f"{name_of(path).rpartition('/')[2] or 'root'}.tar"
            total = sum(member.end - member.start for member in view.ls(path, deep=True))
            written = _write(place, force, _in_order(view.subtree(path)), None, f"tar of {path}", total, quiet)
        else:
            member = view.member(path)
            place = to or name_of(path).rpartition("/")[2]
            _say_cost(view, member.data_at, member.end, quiet)
            written = _write(place, force, view.extract(member), member.size, name_of(path), member.stored, quiet)
    if as_json:
        write_json({"file": place, "size": written})
    elif place != "-" and not quiet:
        write_line(f"{place}  {shown_size(written)}")


def _say_cost(view: ArchiveView, start: int, end: int, quiet: bool) -> None:
    cost = view.plain.cost(start, end)
    if not quiet and cost > 4 * (end - start) + (64 << 20):
        write_note(f"this fetches up to {shown_size(cost)}: what is compressed can only be entered at some places")


def _warn(source: Source) -> None:
    if source.problem:
        write_note(f"note: {source.problem}; the archive is read without it")
    elif source.view.index is not None and source.view.facts.note:
        write_note(f"note: {source.view.facts.note}")


def _in_order(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for data in chunks:
        yield at, data
        at += len(data)


def _write(
    place: str,
    force: bool,
    pieces: Iterator[tuple[int, bytes]],
    size: int | None,
    label: str,
    total: int,
    quiet: bool,
) -> int:
    """Ascending pieces into a file with holes, or to standard output with zeros. The size of it. A crash leaves
    `.NAME.partial`, which the next run begins anew."""
    with progress(label, total, unit="bytes", quiet=quiet) as shown:
        if place == "-":
            at = 0
            for offset, data in pieces:
                _zeros(offset - at)
                sys.stdout.buffer.write(data)
                at = offset + len(data)
                shown.advance(len(data))
            _zeros((size or at) - at)
            sys.stdout.buffer.flush()
            return max(size or 0, at)
        target, partial = _target(place, force)
        at = 0
        with open(partial, "wb", opener=_private) as out:
            for offset, data in pieces:
                out.seek(offset)
                out.write(data)
                at = offset + len(data)
                shown.advance(len(data))
            out.truncate(at if size is None else size)
            out.flush()
            os.fsync(out.fileno())
        _publish(partial, target)
        return at if size is None else size


def _zeros(count: int) -> None:
    block = bytes(min(count, 1 << 20))
    while count > 0:
        sys.stdout.buffer.write(block[: min(count, len(block))])
        count -= len(block)


def _write_disk(source: Source, disk: DiskReader, place: str, force: bool, quiet: bool) -> int:
    """A raw image with holes. Beside it lie, until it is whole, `.NAME.partial` and `.NAME.partial.at`: how much of the
    archive is in it, durable, and of which object. A crash leaves both, and the next run goes on there; a note that does not
    fit, or a partial file that is gone, begins anew."""
    if place == "-":
        with progress(disk.name, disk.size, unit="bytes", quiet=quiet) as shown:
            for at in range(0, disk.size, 4 << 20):
                data = disk.read(at, 4 << 20)
                sys.stdout.buffer.write(data)
                shown.advance(len(data))
            sys.stdout.buffer.flush()
        return disk.size
    target, partial = _target(place, force)
    note = partial.with_name(partial.name + ".at")
    same = {"etag": source.facts.etag, "size": source.facts.size, "disk": disk.name}
    start = _resume_at(note, partial, same)
    with (
        progress(disk.name, disk.stored, unit="bytes", quiet=quiet) as shown,
        open(partial, "r+b" if start else "wb", opener=_private) as out,
    ):
        out.truncate(disk.size)
        fresh = 0
        if start and not quiet:
            write_note(f"{place}: goes on where it was interrupted")
        for behind, offset, data in disk.pieces(start):
            out.seek(offset)
            out.write(data)
            shown.advance(len(data))
            fresh += len(data)
            if fresh >= SAVE_BYTES:
                out.flush()
                os.fsync(out.fileno())
                note.write_text(json.dumps({**same, "at": behind}))
                fresh = 0
        out.flush()
        os.fsync(out.fileno())
    _publish(partial, target)
    note.unlink(missing_ok=True)
    return disk.size


def _resume_at(note: Path, partial: Path, same: dict[str, Any]) -> int:
    try:
        held = json.loads(note.read_text())
        fits = partial.exists() and {name: held[name] for name in same} == same
        return int(held["at"]) if fits else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _target(place: str, force: bool) -> tuple[Path, Path]:
    target = Path(place)
    if target.exists() and not force:
        raise Exists(f"{place} exists", hint="--force replaces it")
    return target, target.with_name(f".{target.name}.partial")


def _private(path: str, flags: int) -> int:
    """A backup's content is nobody else's."""
    return os.open(path, flags, 0o600)


def _publish(partial: Path, target: Path) -> None:
    os.replace(partial, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@app.command()
def check(
    storage: StorageArgument,
    volume: ArchiveArgument,
    sample: Annotated[
        float, typer.Option("--sample", metavar="PERCENT", min=0, max=100, help="Share of the archive to read.")
    ] = 100.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare an archive in the bucket with what was uploaded, by the hashes of its index. Ends with 1 where it differs."""
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        view = source.view
        if sample < 100:
            # What is read ahead of a piece that is the only one would be paid for nothing.
            view = ArchiveView(ObjectRanges(source.plain, source.facts), view.index, etag=source.facts.etag)
        with progress("pieces", None, quiet=quiet) as shown:
            found = view.check(sample / 100, progress=lambda done, total: shown.advance())
        facts = source.view.facts
    bad = [{"at": at, "bytes": length} for at, length in found.bad]
    ok = not bad and facts.complete
    if as_json:
        write_json(
            {
                "ok": ok,
                "pieces": found.pieces,
                "read": found.looked_at,
                "bytes": found.bytes,
                "bad": bad,
                "complete": facts.complete,
                "note": facts.note,
            }
        )
    else:
        write_line(f"read {found.looked_at} of {found.pieces} pieces, {shown_size(found.bytes)}")
        for each in bad:
            write_line(f"DAMAGED: {each['bytes']:,} bytes from byte {each['at']:,} are not those that were uploaded")
        if not facts.complete:
            write_line(f"NOT COMPLETE when it was uploaded: {facts.note}")
        if ok:
            write_line("ok")
    if not ok:
        raise typer.Exit(ExitCode.FINDING)


@app.command()
def index(
    storage: StorageArgument,
    volume: ArchiveArgument,
    force: Annotated[bool, typer.Option("--force", help="Also where there is an index already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the index of an archive that other tools uploaded. Reads all of it once."""
    with opened(named_storage(storage, root, credentials), volume, config_path) as source:
        done = source.view.index
        if done is None or force:
            indexer = Indexer(deep=True, window_max=INDEX_WINDOW)
            with progress(source.volume.name, source.ranges.size, unit="bytes", quiet=quiet) as shown:
                for data in steps(source.ranges, 0, source.ranges.size, 4 << 20):
                    indexer.feed(data)
                    shown.advance(len(data))
            made = indexer.finish(source.facts.etag)
            put_index(source.bucket, source.keyring, source.storage, source.volume, made)
            facts = indexer.facts(source.facts.etag)
        else:
            facts = done.facts
    record = {"made": done is None or force, "complete": facts.complete, "note": facts.note}
    if as_json:
        write_json(record)
    else:
        write_line("there is one already; --force makes it anew" if not record["made"] else "made")
        if facts.note:
            write_line(f"NOT COMPLETE: {facts.note}")
    if not facts.complete and facts.kind:
        raise typer.Exit(ExitCode.FINDING)


@app.command()
def repack(
    storage: StorageArgument,
    volume: ArchiveArgument,
    level: Annotated[int, typer.Option("--level", min=1, max=19, help="Of zstd.")] = 3,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a `.zst` in frames of 4 MiB, of which any part can be read, out of a backup that is not compressed, gzip or lzo.

    The new backup lies beside the old one, with its index and notes; the old one is left as it is."""
    with session_of(named_storage(storage, root, credentials), config_path) as session:
        old = volume_of(volume)
        new = repacked_name(old)
        if session.there(session.key(new)):
            raise Exists(f"{session.storage.id}:{new.volname} is there already", hint="nothing was changed")
        pool = ReadPool(session.plain)
        try:
            source = look(session.bucket, session.plain, session.keyring, session.storage, old, pool)
            size, plain_size = _repack(session, source, new, level, quiet)
        finally:
            pool.close()
    record = {"volume": f"{storage}:{new.volname}", "size": size, "plain_size": plain_size, "before": source.facts.size}
    if as_json:
        write_json(record)
    else:
        write_line(f"{record['volume']}  {shown_size(size)} (before {shown_size(source.facts.size)})")


def repacked_name(volume: Volume) -> Volume:
    """BadVolume for what is zstd already, or no backup."""
    found = re.fullmatch(r"(.+\.(?:vma|tar))(?:\.(?:gz|lzo))?", re.sub(r"\.tgz$", ".tar.gz", volume.name))
    if volume.content != "backup" or found is None:
        raise BadVolume(f"{volume.volname} is not repacked", hint="backups in .vma, .tar, .gz and .lzo are")
    return parse_volname(f"backup/{found[1]}.zst")


def _repack(session: Session, source: Source, new: Volume, level: int, quiet: bool) -> tuple[int, int]:
    """(bytes of the new object, bytes before compression). A crash leaves an upload that nobody sees, which is cleaned up; one
    after the object is there leaves it without index or notes."""
    facts = source.view.facts
    if not facts.kind:
        raise BadArchive("neither a VMA nor a tar archive", 0)
    engine = decoder(facts.compression, window_max=INDEX_WINDOW)
    writer, indexer = SeekableWriter(level), Indexer()
    with session.uploader() as uploader:
        stream = uploader.stream(session.key(new))

        def send(packed: bytes) -> None:
            if packed:
                stream.write(packed)
                indexer.feed(packed)

        with progress(new.name, source.ranges.size, unit="bytes", quiet=quiet) as shown:
            for data in steps(source.ranges, 0, source.ranges.size, READ_BYTES):
                for plain in engine.feed(data):
                    send(writer.feed(plain))
                shown.advance(len(data))
        if not engine.whole:
            raise BadArchive(f"the {facts.compression} stream is cut short", source.ranges.size)
        send(writer.finish())
        done = stream.finish()
        session.written(session.key(new))
        put_index(session.bucket, session.keyring, session.storage, new, indexer.finish(done.etag))
        session.written(session.storage.prefix + index_key(new.key))
        try:
            notes = session.plain.get(session.storage.prefix + notes_key(source.volume.key))
        except NotFound:
            return done.plain_bytes, indexer.plain_size
        uploader.put(session.storage.prefix + notes_key(new.key), notes)
        session.written(session.storage.prefix + notes_key(new.key))
    return done.plain_bytes, indexer.plain_size
