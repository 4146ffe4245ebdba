"""What the store says of disks beside their volumes: names, what is to be deleted, who serves what, sizes as last seen.

    pve/name/NAME          disk NAME is volume V; made by put_if_absent, never changed
    pve/trash/VOLUME       volume V has no name any more and is being deleted; whoever sees this may go on with it
    pve/serving/VOLUME     the node that serves V, and where its gateway listens; a hint, the volume's log decides
    pve/facts/VOLUME       size and allocation as last seen; a hint

One rule: `pve/name/` alone decides which disks there are, by conditional writes. A renaming that stopped in its middle
leaves two names of one volume: the one that says what it was before (`renamed_from`) counts, the other one goes.
docs/plugin/disks.md has the orders of steps.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from plugin.errors import Exists, NoSuchVolume
from s3core.errors import Corrupt, NotFound, OutcomeUnknown, PreconditionFailed
from s3core.store import ObjectStore

FORMAT: Final = 1
NAMES: Final = "pve/name/"
TRASH: Final = "pve/trash/"
SERVING: Final = "pve/serving/"
FACTS: Final = "pve/facts/"
_READERS: Final = 16


@dataclass(frozen=True, slots=True)
class Disk:
    """A name record. `base`: the volume a linked clone reads (its own name, not Proxmox VE's); `created`: Unix seconds."""

    name: str
    volume: str
    base: str = ""
    renamed_from: str = ""
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    size_bytes: int
    allocated_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    node: str
    host: str
    port: int


_Kind = TypeVar("_Kind", Disk, Facts, Serving)


class Records:
    """The records of one place. All methods raise store errors, Corrupt for a record that does not parse."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    # --- names ---------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Disk:
        """Raises NoSuchVolume."""
        try:
            return self._read(NAMES + name, Disk)
        except NotFound as error:
            raise NoSuchVolume(f"there is no disk {name}") from error

    def disks(self) -> list[Disk]:
        """Every disk, by name, each volume once."""
        return settled(self._all(NAMES, Disk))

    def named(self, volume: str) -> list[Disk]:
        """Every name that leads to the volume."""
        return [disk for disk in self._all(NAMES, Disk) if disk.volume == volume]

    def names(self) -> set[str]:
        """Of disks; one listing."""
        return {info.key.removeprefix(NAMES) for info in self._store.list(NAMES)}

    def add(self, disk: Disk) -> None:
        """Raises Exists when the name is taken. On return the disk is there, durably."""
        blob = _encode(disk)
        try:
            self._store.put_if_absent(NAMES + disk.name, blob)
        except (PreconditionFailed, OutcomeUnknown) as error:
            try:
                there = self._store.get(NAMES + disk.name).data
            except NotFound:
                raise error from None
            if bytes(there) != blob:
                raise Exists(f"there is a disk {disk.name} already") from error

    def remove(self, name: str) -> None:
        self._store.delete(NAMES + name)

    # --- deletion ------------------------------------------------------------------------------------------------

    def doom(self, disk: Disk) -> None:
        """The volume is to be deleted, the name is free. A crash between the two leaves a disk that is still listed, and
        whose deletion may be asked for again."""
        self._store.put(TRASH + disk.volume, _encode(disk))
        self._store.delete(NAMES + disk.name)

    def spare(self, volume: str) -> None:
        """It has a name and goes on: forget a deletion that stopped before the name went. A sweep that looked between the
        new name and the old one would take it for nameless."""
        self._store.delete(TRASH + volume)

    def doomed(self) -> list[str]:
        """Volumes that are to be deleted and that no name leads to."""
        volumes = [info.key.removeprefix(TRASH) for info in self._store.list(TRASH)]
        if not volumes:
            return []
        named = {disk.volume for disk in self._all(NAMES, Disk)}
        return [volume for volume in volumes if volume not in named]

    def buried(self, volume: str) -> None:
        """The volume is gone, and so is what was said of it."""
        self._store.delete(FACTS + volume)
        self._store.delete(SERVING + volume)
        self._store.delete(TRASH + volume)

    # --- hints ---------------------------------------------------------------------------------------------------

    def facts(self, volumes: Iterable[str]) -> dict[str, Facts]:
        wanted = set(volumes)
        found = self._each([FACTS + volume for volume in wanted], Facts)
        return {key.removeprefix(FACTS): value for key, value in found}

    def note(self, volume: str, facts: Facts) -> None:
        self._store.put(FACTS + volume, _encode(facts))

    def serving(self, volume: str) -> Serving | None:
        try:
            return self._read(SERVING + volume, Serving)
        except NotFound:
            return None

    def serve(self, volume: str, serving: Serving) -> None:
        self._store.put(SERVING + volume, _encode(serving))

    def unserve(self, volume: str, node: str) -> None:
        """Nobody serves it, if it was this node that did."""
        found = self.serving(volume)
        if found is not None and found.node == node:
            self._store.delete(SERVING + volume)

    # --- objects -------------------------------------------------------------------------------------------------

    def _all(self, prefix: str, kind: type[_Kind]) -> list[_Kind]:
        keys = [info.key for info in self._store.list(prefix)]
        return [value for _, value in self._each(keys, kind)]

    def _each(self, keys: list[str], kind: type[_Kind]) -> list[tuple[str, _Kind]]:
        def read(key: str) -> tuple[str, _Kind] | None:
            try:
                return key, self._read(key, kind)
            except NotFound:
                return None  # removed since the listing

        if not keys:
            return []
        with ThreadPoolExecutor(min(_READERS, len(keys)), "disk-records") as pool:
            return [found for found in pool.map(read, keys) if found is not None]

    def _read(self, key: str, kind: type[_Kind]) -> _Kind:
        return _decode(bytes(self._store.get(key).data), kind, f"{self._store.url}/{key}")


def settled(found: Iterable[Disk]) -> list[Disk]:
    """One name for each volume, by name: of two, the one that the other was renamed to. Pure."""
    by_volume: dict[str, list[Disk]] = {}
    for disk in found:
        by_volume.setdefault(disk.volume, []).append(disk)
    chosen = []
    for disks in by_volume.values():
        before = {disk.renamed_from for disk in disks}
        chosen.append(next((disk for disk in disks if disk.name not in before), disks[0]))
    return sorted(chosen, key=lambda disk: disk.name)


def _encode(value: Disk | Facts | Serving) -> bytes:
    return json.dumps({"format": FORMAT} | asdict(value), sort_keys=True).encode() + b"\n"


def _decode(blob: bytes, kind: Callable[..., _Kind], what: str) -> _Kind:
    try:
        told: dict[str, Any] = json.loads(blob)
        if told.pop("format") != FORMAT:
            raise ValueError("a format that this program does not know")
        return kind(**told)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupt(f"{what}: is no record of a disk: {error}") from error
