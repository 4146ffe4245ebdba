"""Archives for tests: an honest VMA writer, and what the real tools make.

One rule: nothing here uses the product's parsers.
"""

import hashlib
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

CLUSTER = 65536
UUID = bytes(range(16))
CONFIG = b"#notes\nbootdisk: scsi0\nmemory: 2048\nscsi0: local:vm-100-disk-0,size=1M\n"


def header(
    configs: Mapping[str, bytes], disks: Mapping[str, int], uuid: bytes = UUID, ctime: int = 1_750_000_000
) -> bytes:
    blobs = bytearray(1)

    def blob(data: bytes) -> int:
        at = len(blobs)
        blobs.extend(struct.pack("<H", len(data)) + data)
        return at

    names, datas, devices = [], [], [bytes(32)]
    for name, data in configs.items():
        names.append(blob(name.encode() + b"\0"))
        datas.append(blob(data))
    for name, size in disks.items():
        devices.append(struct.pack(">I4xQ16x", blob(name.encode() + b"\0"), size))
    blobs.extend(bytes(-len(blobs) % 512))
    size = 12288 + len(blobs)
    head = bytearray(size)
    struct.pack_into(">4sI16sQ16sIII", head, 0, b"VMA\0", 1, uuid, ctime, bytes(16), 12288, len(blobs), size)
    struct.pack_into(f">{len(names)}I", head, 2044, *names)
    struct.pack_into(f">{len(datas)}I", head, 3068, *datas)
    head[4096 : 4096 + 32 * len(devices)] = b"".join(devices)
    head[12288:] = blobs
    head[32:48] = hashlib.md5(head).digest()
    return bytes(head)


def extent(clusters: Sequence[tuple[int, int, bytes]], uuid: bytes = UUID) -> bytes:
    """Of (device, cluster, 64 KiB)."""
    infos, body = [], []
    for device, number, data in clusters:
        mask = 0
        for block in range(16):
            piece = data[block * 4096 : block * 4096 + 4096]
            if piece.strip(b"\0"):
                mask |= 1 << block
                body.append(piece)
        infos.append(mask << 48 | device << 32 | number)
    infos += [0] * (59 - len(infos))
    head = bytearray(struct.pack(">4sHH16s16s59Q", b"VMAE", 0, len(body), uuid, bytes(16), *infos))
    head[24:40] = hashlib.md5(head).digest()
    return bytes(head) + b"".join(body)


def vma(disks: Mapping[str, bytes], configs: Mapping[str, bytes] | None = None, uuid: bytes = UUID) -> bytes:
    """Clusters of all disks in turn, as two disks that are read at once give them."""
    configs = {"qemu-server.conf": CONFIG} if configs is None else configs
    out = [header(configs, {name: len(data) for name, data in disks.items()}, uuid)]
    waiting: list[tuple[int, int, bytes]] = []
    for cluster in _in_turn([_clusters(number, data) for number, data in enumerate(disks.values(), 1)]):
        waiting.append(cluster)
        if len(waiting) == 59:
            out.append(extent(waiting, uuid))
            waiting = []
    if waiting:
        out.append(extent(waiting, uuid))
    return b"".join(out)


def _clusters(device: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    for number in range(-(-len(data) // CLUSTER)):
        yield device, number, data[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")


def _in_turn(
    sources: list[Iterator[tuple[int, int, bytes]]],
) -> Iterator[tuple[int, int, bytes]]:
    while sources:
        for source in list(sources):
            for _ in range(3):
                cluster = next(source, None)
                if cluster is None:
                    sources.remove(source)
                    break
                yield cluster


def lzop(data: bytes, block: int = 256 << 10) -> bytes:
    """An lzop file of literals alone, for hosts without lzop."""
    head = struct.pack(">HHHBBIIIIB", 0x1030, 0x20A0, 0x0940, 1, 5, 0x03000001, 0o100644, 0, 0, 0)
    out = [b"\x89LZO\x00\r\n\x1a\n", head, struct.pack(">I", zlib.adler32(head))]
    for at in range(0, len(data), block):
        plain = data[at : at + block]
        out.append(struct.pack(">III", len(plain), len(plain), zlib.adler32(plain)) + plain)
    return b"".join(out) + bytes(4)


def tool(*words: str, data: bytes = b"", cwd: Path | None = None) -> bytes:
    """What a program makes of `data`. Skips where it is not installed."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True, cwd=cwd, timeout=120).stdout
