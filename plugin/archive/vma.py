"""VMA, version 1: the archive of a virtual machine that vzdump writes, parsed as it streams.

A header of at least 12,288 bytes (names and sizes of disks, configuration files), then extents: 512 bytes that say which
clusters (64 KiB of a disk) follow, and of each the blocks (4 KiB) that are not zero. Numbers are big-endian; the length of
a blob alone is little-endian. The format is Proxmox's (vma_spec.txt in pve-qemu, and what its reader accepts).

One rule: a scanner keeps the header and one extent header, never data, however the bytes are cut.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from plugin.archive.errors import BadArchive

MAGIC = b"VMA\x00"
EXTENT_MAGIC = b"VMAE"
HEADER_BYTES = 12288
"""Of the fixed part; the blobs lie behind it."""
HEADER_BYTES_MAX = 16 << 20
"""512 blobs of 64 KiB and names make less; a header that says more is refused."""
EXTENT_HEADER_BYTES = 512
CLUSTER_BYTES = 65536
BLOCK_BYTES = 4096
CLUSTERS_PER_EXTENT = 59
FULL = 0xFFFF
VMSTATE = "vmstate"
"""The name of the stream that is the RAM of the machine, whose size is not known beforehand."""

_HEAD = struct.Struct(">4sI16sQ16sIII")
_CONFIGS = 256
_NAMES_AT, _DATA_AT, _DEVICES_AT = 2044, 3068, 4096
_DEVICE = struct.Struct(">I4xQ16x")
_EXTENT = struct.Struct(f">4sHH16s16s{CLUSTERS_PER_EXTENT}Q")
_MD5_AT = {MAGIC: 32, EXTENT_MAGIC: 24}


@dataclass(frozen=True, slots=True)
class Device:
    """A disk in the archive. `size` is in bytes; `number` is what extents call it by (1 to 255)."""

    number: int
    name: str
    size: int

    @property
    def clusters(self) -> int:
        return -(-self.size // CLUSTER_BYTES)


@dataclass(frozen=True, slots=True)
class Header:
    """`size` is where the first extent begins. `configs` are (name, bytes) as vzdump put them in: qemu-server.conf,
    and qemu-server.fw where the guest has a firewall."""

    uuid: bytes
    ctime: int
    size: int
    configs: tuple[tuple[str, bytes], ...]
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Clusters that follow each other on the disk and in the archive, all with the same mask: bit j of it says that
    block j of the cluster is stored. `at` is the archive's byte of the first stored block."""

    device: int
    cluster: int
    count: int
    mask: int
    at: int

    @property
    def stored(self) -> int:
        """Bytes in the archive."""
        return self.count * self.mask.bit_count() * BLOCK_BYTES


def header_size(head: bytes | bytearray) -> int:
    """How long the header is, from its first 60 bytes. BadArchive where it is no VMA."""
    if len(head) < _HEAD.size:
        raise BadArchive("the VMA header is cut short", len(head))
    magic, version, _, _, _, _, _, size = _HEAD.unpack_from(head)
    if magic != MAGIC:
        raise BadArchive("this is no VMA archive", 0)
    if version != 1:
        raise BadArchive(f"VMA of version {version}, which is not known here (1 is)", 4)
    if not HEADER_BYTES < size <= HEADER_BYTES_MAX or size % 512:
        raise BadArchive(f"a VMA header of {size} bytes", 56)
    return int(size)


def decode_header(data: bytes) -> Header:
    """Of exactly `header_size` bytes. BadArchive where its MD5 or a pointer in it is wrong."""
    size = header_size(data)
    if len(data) != size:
        raise BadArchive(f"{len(data)} bytes of a VMA header of {size}", 56)
    _check_md5(MAGIC, data, 0)
    _, _, uuid, ctime, _, blobs_at, blobs_size, _ = _HEAD.unpack_from(data)
    if blobs_at < HEADER_BYTES or blobs_at + blobs_size > size:
        raise BadArchive("the blobs of the VMA header lie outside of it", 48)
    # The first byte of the buffer is no blob, so that 0 can mean none.
    blobs: dict[int, bytes] = {}
    at, end = blobs_at + 1, blobs_at + blobs_size
    while at + 2 <= end:
        length = data[at] | data[at + 1] << 8
        if at + 2 + length <= end:
            blobs[at - blobs_at] = data[at + 2 : at + 2 + length]
        at += 2 + length

    def text(pointer: int) -> str | None:
        blob = blobs.get(pointer, b"")
        return blob[:-1].decode(errors="replace") if blob.endswith(b"\0") else None

    devices = []
    for number in range(1, 256):
        pointer, bytes_ = _DEVICE.unpack_from(data, _DEVICES_AT + number * _DEVICE.size)
        name = text(pointer)
        if bytes_ and name is not None:
            if bytes_ > CLUSTER_BYTES << 32:
                raise BadArchive(f"disk {name} of {bytes_} bytes, more than cluster numbers reach", _DEVICES_AT)
            devices.append(Device(number, name, bytes_))
    configs = []
    names = struct.unpack_from(f">{_CONFIGS}I", data, _NAMES_AT)
    contents = struct.unpack_from(f">{_CONFIGS}I", data, _DATA_AT)
    for name_at, data_at in zip(names, contents, strict=True):
        if name_at and data_at:
            name, blob = text(name_at), blobs.get(data_at)
            if name is None or blob is None:
                raise BadArchive("the VMA header points to a configuration that is not there", _NAMES_AT)
            configs.append((name, blob))
    return Header(uuid, ctime, size, tuple(configs), tuple(devices))


def decode_extent(data: bytes, uuid: bytes, at: int) -> tuple[int, tuple[Run, ...], tuple[tuple[int, int], ...]]:
    """Of the 512 bytes of an extent's header at byte `at` of the archive: the bytes of data behind it, the runs that are
    stored there, and (device, clusters) of all clusters that it names, those of zeros included.

    BadArchive where MD5, UUID or the count of blocks do not fit."""
    magic, reserved, blocks, its_uuid, _, *infos = _EXTENT.unpack(data)
    if magic != EXTENT_MAGIC or reserved:
        raise BadArchive("there is no VMA extent where one must begin", at)
    _check_md5(EXTENT_MAGIC, data, at)
    if its_uuid != uuid:
        raise BadArchive("a VMA extent of another archive", at)
    runs: list[Run] = []
    named: dict[int, int] = {}
    place = at + EXTENT_HEADER_BYTES
    device = cluster = count = mask = start = 0
    for info in infos:
        number = info >> 32 & 0xFF
        if not number:
            continue
        named[number] = named.get(number, 0) + 1
        its_mask = info >> 48
        if not its_mask:
            continue
        its_cluster = info & 0xFFFFFFFF
        if count and number == device and its_mask == mask and its_cluster == cluster + count:
            count += 1
        else:
            if count:
                runs.append(Run(device, cluster, count, mask, start))
            device, cluster, count, mask, start = number, its_cluster, 1, its_mask, place
        place += its_mask.bit_count() * BLOCK_BYTES
    if count:
        runs.append(Run(device, cluster, count, mask, start))
    stored = place - at - EXTENT_HEADER_BYTES
    if stored != blocks * BLOCK_BYTES:
        raise BadArchive(f"a VMA extent of {blocks} blocks whose clusters have {stored // BLOCK_BYTES}", at)
    return stored, tuple(runs), tuple(named.items())


def _check_md5(magic: bytes, data: bytes, at: int) -> None:
    place = _MD5_AT[magic]
    digest = hashlib.md5(data[:place], usedforsecurity=False)
    digest.update(bytes(16))
    digest.update(data[place + 16 :])
    if digest.digest() != data[place : place + 16]:
        raise BadArchive("the MD5 of a VMA header is wrong: the archive is damaged", at)


class Scanner:
    """Bytes of an archive in order, in pieces of any size; out come the runs that are stored in it.

    `header` is None until it is whole. `seen` counts clusters by device, zeros included: an archive is complete when each
    disk has all of its own, and the bytes end where an extent does (`whole`)."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.seen: dict[int, int] = {}
        self.at = 0
        """Bytes that came."""
        self._held = bytearray()
        self._need = _HEAD.size
        self._skip = 0
        self._devices: dict[int, Device] = {}

    @property
    def whole(self) -> bool:
        return self.header is not None and not self._held and not self._skip

    @property
    def complete(self) -> bool:
        """Whether all disks are all there. The RAM of a machine has as much as there is."""
        return self.whole and all(
            self.seen.get(device.number, 0) == device.clusters
            for device in self._devices.values()
            if device.name != VMSTATE
        )

    def feed(self, data: bytes | memoryview) -> Iterator[Run]:
        """The runs whose extent headers these bytes complete. To be exhausted before the next call."""
        view = memoryview(data)
        while view:
            if self._skip:
                step = min(self._skip, len(view))
                self._skip -= step
                self.at += step
                view = view[step:]
                continue
            step = min(self._need - len(self._held), len(view))
            self._held += view[:step]
            self.at += step
            view = view[step:]
            if len(self._held) == self._need:
                yield from self._header_or_extent()

    def _header_or_extent(self) -> Iterator[Run]:
        if self.header is None:
            size = header_size(self._held)
            if self._need < size:
                self._need = size
                return
            self.header = decode_header(bytes(self._held))
            self._devices = {device.number: device for device in self.header.devices}
        else:
            start = self.at - EXTENT_HEADER_BYTES
            self._skip, runs, named = decode_extent(bytes(self._held), self.header.uuid, start)
            for number, count in named:
                if number not in self._devices:
                    raise BadArchive(f"a VMA extent of disk {number}, which the header does not name", start)
                self.seen[number] = self.seen.get(number, 0) + count
            for run in runs:
                device = self._devices[run.device]
                if device.name != VMSTATE and run.cluster + run.count > device.clusters:
                    raise BadArchive(f"a cluster behind the end of disk {device.name}", start)
            yield from runs
        self._held.clear()
        self._need = EXTENT_HEADER_BYTES
