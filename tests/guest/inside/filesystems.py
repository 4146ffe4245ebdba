"""File systems on a disk: made, filled, taken away and looked at again; trimmed, checked, grown."""

import random
from pathlib import Path
from typing import Any

from tests.guest.inside import trees
from tests.guest.inside.commands import load, run

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "ntfs": ("mkntfs", "--quiet", "--fast", "--force"),
}
CHECK = {"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n"), "ntfs": ("ntfsfix", "--no-action")}
"""Each looks at everything, changes nothing, and ends with 0 only if nothing was wrong."""


def mount(kind: str, device: str, place: str) -> None:
    if kind == "ntfs":
        load("fuse")
        run("ntfs-3g", device, place)
    else:
        run("mount", "-t", kind, device, place)


def unmount(device: str, place: str) -> None:
    """And nothing of the disk stays in memory."""
    run("umount", place)
    run("blockdev", "--flushbufs", device)
    trees.drop_caches()


def round_trip(kind: str, device: str, seed: int, place: str = "/mnt/a") -> dict[str, Any]:
    """Content as it was written and as it was read again from the disk; then a trim of what was deleted, and the check.

    Everything that was read, and how many bytes the file system said to have trimmed."""
    run(*MAKE[kind], device)
    mount(kind, device, place)
    written = trees.write(place, seed)
    unmount(device, place)
    mount(kind, device, place)
    read = trees.sums(place)
    assert read == written, f"{kind}: {sorted(set(read.items()) ^ set(written.items()))}"
    names = sorted(read)
    for name in random.Random(seed).sample(names, len(names) // 2):
        (Path(place) / name).unlink()
        del read[name]
    unmount(device, place)
    mount(kind, device, place)
    words = run("fstrim", "-v", place)
    assert trees.sums(place) == read
    unmount(device, place)
    run(*CHECK[kind], device)
    mount(kind, device, place)
    assert trees.sums(place) == read, "what is left is not what it was before the trim"
    unmount(device, place)
    return {"files": len(written), "trimmed": int(words.split("(")[1].split()[0])}


def begin(kind: str, device: str, seed: int, place: str = "/mnt/a") -> dict[str, str]:
    """A new file system, mounted, with files; their checksums."""
    run(*MAKE[kind], device)
    mount(kind, device, place)
    return trees.write(place, seed)


def grow(kind: str, device: str, place: str = "/mnt/a") -> int:
    """Fills the disk, which has grown, while it is mounted; the new size of the file system in bytes."""
    run(*{"ext4": ("resize2fs", device), "xfs": ("xfs_growfs", place)}[kind])
    blocks, size = run("stat", "-f", "-c", "%b %S", place).split()
    return int(blocks) * int(size)


def finish(kind: str, device: str, place: str = "/mnt/a") -> dict[str, str]:
    """Read again from the disk, then unmounted and checked; the checksums."""
    unmount(device, place)
    mount(kind, device, place)
    read = trees.sums(place)
    unmount(device, place)
    run(*CHECK[kind], device)
    return read
