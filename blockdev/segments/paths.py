"""Every key a volume ever writes, on one screen. Keys are relative to the store's prefix.

    v1/<volume>/vol.json                                    what the volume is; written once
    v1/<volume>/head                                        hint: where the newest root is; may be stale or gone
    v1/<volume>/log/<seq>                                   commit records, one total order; also hold inline patches
    v1/<volume>/ext/<hh>/<extent>/<gen>-<epoch>             one extent at one generation
    v1/<volume>/seg/<hh>/<gen>-<epoch>-<n>                  patches of one commit, or what was moved by one
    v1/<volume>/root/<seq>-<epoch>                          checkpoint of the map as of commit <seq>
    v1/<volume>/page/<hh>/<seq>-<epoch>-<n>                 packs of map pages and of their deltas
    v1/<volume>/released/<epoch>                            the writer of that epoch has stopped: nobody needs to wait for it
    v1/<volume>/key/<id>                                    the data key, wrapped; replaceable
    v1/<volume>/ref/<child>                                 a clone that reads this volume's objects; pins a snapshot
    v1/<volume>/snap/ run/ roll/                            reserved

`gen` is the number of the commit an object is born in, `epoch` the writer's: two writers can never choose the
same name. `hh` spreads neighbours over the key space, since stores limit requests per prefix.
"""

import re
from typing import NamedTuple
from uuid import UUID

ROOT_PREFIX = "v1/"

INLINE = 0xFFFF
"""Container number that means: inside the commit record itself."""


class ContainerRef(NamedTuple):
    """Names a container of patches: segment `n` of commit `gen`, or (n == INLINE) its commit record."""

    gen: int
    epoch: int
    n: int


def spread(number: int) -> str:
    """Two hex digits from a multiplicative hash of `number`."""
    return f"{((number * 0x9E3779B1) & 0xFFFFFFFF) >> 24:02x}"


def volume_prefix(volume: str) -> str:
    return f"{ROOT_PREFIX}{volume}/"


def volume_file() -> str:
    return "vol.json"


def key_prefix() -> str:
    return "key/"


def key_slot(slot: str) -> str:
    return f"key/{slot}"


def head() -> str:
    return "head"


def log_prefix() -> str:
    return "log/"


def log(seq: int) -> str:
    return f"log/{seq:016x}"


def extent(number: int, gen: int, epoch: int) -> str:
    return f"ext/{spread(number)}/{number:010x}/{gen:012x}-{epoch:06x}"


def segment(gen: int, epoch: int, n: int) -> str:
    return f"seg/{spread(gen)}/{gen:012x}-{epoch:06x}-{n:04x}"


def birth(key: str) -> int:
    """`number_of`, for a key that has one. Raises ValueError for any other."""
    number = number_of(key)
    if number is None:
        raise ValueError(f"{key} is no object of a commit")
    return number


def container(ref: ContainerRef) -> str:
    """The object a container's patches are read from."""
    if ref.n == INLINE:
        return log(ref.gen)
    return segment(ref.gen, ref.epoch, ref.n)


def root(seq: int, epoch: int) -> str:
    return f"root/{seq:016x}-{epoch:06x}"


def root_prefix() -> str:
    return "root/"


def epoch_of_root(key: str) -> int:
    """The writer of a root, by its key."""
    return int(key.rpartition("-")[2], 16)


def ref_prefix() -> str:
    return "ref/"


def ref(child: UUID) -> str:
    return f"ref/{child}"


_NUMBERED = re.compile(
    r"(?:log/|root/|page/[0-9a-f]{2}/)([0-9a-f]{16})(?:-|$)|(?:seg/[0-9a-f]{2}/|ext/[0-9a-f]{2}/[0-9a-f]{10,}/)([0-9a-f]{12,})-"
)


def number_of(key: str) -> int | None:
    """The commit an object belongs to, by its name: `seq` or `gen`. None for keys without a number."""
    found = _NUMBERED.match(key)
    return int(found[1] or found[2], 16) if found is not None else None


def page_pack(seq: int, epoch: int, n: int) -> str:
    return f"page/{spread(seq)}/{seq:016x}-{epoch:06x}-{n:04x}"


def page_prefix() -> str:
    return "page/"


def extent_prefix() -> str:
    return "ext/"


def segment_prefix() -> str:
    return "seg/"


def released(epoch: int) -> str:
    return f"released/{epoch:06x}"


def released_prefix() -> str:
    return "released/"
