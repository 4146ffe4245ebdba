"""Disk images by `qemu-img`.

One rule: a format is named, never guessed, once an image was looked at: a raw disk whose guest wrote a header of another format
into it would else be read as that, with any file of this host behind it.
"""

import asyncio
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envctl.drivers.qemu.programs import run
from envctl.errors import DriverFailed

_FORMATS: Final = ("raw", "qcow2")
_COPY: Final = """\
{ qemu-img convert -q -f "$1" -O qcow2 "$2" disk.new && sync disk.new && mv disk.new disk.qcow2; } >copy.log 2>&1 </dev/null &
"""
"""Goes on when who began it has died, in its folder, whatever that is called by then; the whole disk appears by the rename.
qemu-img itself flushes nothing."""


class ImageUnreadable(Exception):
    """There is no image at that path, or none that can be used."""


@dataclass(frozen=True, slots=True)
class Image:
    path: str
    format: str
    virtual_bytes: int
    stamp: str


def stamp_of(path: str) -> str:
    """Changes when the file does. OSError."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}"


async def look_at(path: str) -> Image:
    """ImageUnreadable, DriverFailed."""
    if not os.path.isabs(path):
        raise ImageUnreadable(f"{path!r} is not an absolute path")
    if not os.path.isfile(path):
        raise ImageUnreadable(f"{path} is not a file")
    status, said = await run("qemu-img", "info", "--output=json", "--force-share", path)
    if status:
        raise ImageUnreadable(f"{path}: {said}")
    facts = json.loads(said)
    if facts["format"] not in _FORMATS:
        raise ImageUnreadable(f"{path} has format {facts['format']}, and is needed as one of {', '.join(_FORMATS)}")
    return Image(path, facts["format"], int(facts["virtual-size"]), stamp_of(path))


async def create_layer(image: Image, target: Path) -> None:
    """A new qcow2 file `target` over the image. DriverFailed, DriverBusy."""
    await _must("qemu-img", "create", "-q", "-f", "qcow2", "-F", image.format, "-b", image.path, str(target))


async def begin_copy(image: Image, folder: Path) -> None:
    """`disk.qcow2` in the folder will be a copy of the image; `disk.new` is it until then. Returns at once.

    What copies holds a lock on the file `copy` there, from before it begins: `copying`. OSError."""
    lock = os.open(folder / "copy", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", _COPY, "sh", image.format, image.path), cwd=folder, start_new_session=True, pass_fds=(lock,)
        )
        await process.wait()
    finally:
        os.close(lock)


def copying(folder: Path) -> bool:
    """Does what `begin_copy` began still run? OSError."""
    try:
        lock = os.open(folder / "copy", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


async def grow(disk: Path, size: int) -> None:
    """Make the disk at least so large; repeating it changes nothing. DriverFailed, DriverBusy."""
    # Shared: a QEMU that starts now must not find the disk locked by this look.
    status, said = await run("qemu-img", "info", "--output=json", "--force-share", str(disk))
    if status:
        raise DriverFailed(f"{disk}: {said}")
    if int(json.loads(said)["virtual-size"]) < size:
        await _must("qemu-img", "resize", "-q", "-f", "qcow2", str(disk), str(size))


async def _must(*command: str) -> None:
    status, said = await run(*command)
    if status:
        raise DriverFailed(f"{' '.join(command[:2])}: {said or f'exit status {status}'}")
