"""An index made of the bytes of an upload, as they pass.

Of every archive: SHA-256 of each 16 MiB, so that a check can read any part of the object and know. Of what it can look
into: guest configuration, disks, runs or members, and points where decompression may begin. Plain VMA costs little more than
the hashes; zstd and gzip are decompressed here (measured in docs/plugin/archives.md); of lzo the first block is.

One rule: what an archive holds never makes `feed` fail: damage is a note in the index, and the hashes go on.
"""

import hashlib
import uuid as uuids

from plugin.archive import index, tar, vma
from plugin.archive.compression import HEAD_BYTES, WINDOW_BYTES_MAX, Decoder, Entrances, decoder, detect, kind_of
from plugin.archive.errors import BadArchive

CONFIG_MEMBERS = ("etc/vzdump/pct.conf", "etc/vzdump/pct.fw")
"""Where vzdump puts the configuration of a container, in this order, before all else."""
PLAIN_HEAD_BYTES = 1 << 20
"""In which the configuration of a container must lie."""
TABLE_BYTES_MAX = 64 << 20
"""Packed, of one table, in memory. About five million files, or more disk than an object can hold."""
_KIND_BYTES = 512


class Indexer:
    """`deep`: look into the archive from end to end; else only as far as its configuration, and hash. None: into all but
    lzo, which Python decompresses too slowly. `window_max` bounds what zstd may ask for. One thread at a time."""

    def __init__(self, *, deep: bool | None = None, window_max: int = WINDOW_BYTES_MAX) -> None:
        self.configs: tuple[tuple[str, bytes], ...] = ()
        self.kind = ""
        self.compression = ""
        self.size = 0
        self.plain_size = 0
        self.note = ""
        self.head_done = False
        """Nothing more will come to `configs`."""
        self.header: vma.Header | None = None
        self._deep = deep
        self._window_max = window_max
        self._digests: list[bytes] = []
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._first = b""
        self._decoder: Decoder | None = None
        self._entrances: Entrances | None = None
        self._looking = True
        self._dropped = False
        self._head: bytearray | None = bytearray()
        self._config_members: list[tar.Member] = []
        self._scanner: vma.Scanner | tar.Scanner | None = None
        self._runs = index.runs_table()
        self._members = index.members_table()
        self._count = 0

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the object. Keeps nothing of them."""
        view = memoryview(data)
        self.size += len(view)
        place = 0
        while place < len(view):
            step = min(index.PIECE_BYTES - self._hashed, len(view) - place)
            self._hash.update(view[place : place + step])
            self._hashed += step
            place += step
            if self._hashed == index.PIECE_BYTES:
                self._digests.append(self._hash.digest())
                self._hash, self._hashed = hashlib.sha256(), 0
        if self._looking:
            self._look(view)

    def lighten(self, why: str) -> None:
        """From here on hashes alone, for whom looking takes too long. The index says why; tables that would end in the
        middle are left out. May be called from another thread than `feed`'s; it takes effect within a MiB of it."""
        self._dropped = True
        self._stop(why)

    def finish(self, etag: str = "") -> bytes:
        """The index object, of the bytes so far as the whole object."""
        if self._decoder is None and self._looking:
            self._begin()
        if self._looking and self._decoder is not None and not self.note:
            if not self._decoder.whole:
                self.note = f"the {self.compression} stream is cut short"
            elif self._scanner is None:
                self.note = "neither a VMA nor a tar archive"
            elif not self._scanner.whole:
                self.note = "the archive is cut short"
            elif isinstance(self._scanner, vma.Scanner) and not self._scanner.complete:
                self.note = "clusters of a disk are missing"
        self.settle_head()
        digests = [*self._digests, self._hash.digest()] if self._hashed else self._digests
        points = self._decoder.points.rows if self._decoder is not None and self.compression else []
        tables = () if self._dropped else (self._runs, self._members)
        entrances = self._entrances.found if self._entrances is not None else []
        return index.encode(self.facts(etag), digests, points, tables, entrances)

    def facts(self, etag: str = "") -> index.Facts:
        """What is known so far."""
        seen = self._scanner.seen if isinstance(self._scanner, vma.Scanner) else {}
        header = self.header
        through = self._looking and not self.note
        return index.Facts(
            kind=self.kind,
            compression=self.compression,
            size=self.size,
            plain_size=self.plain_size if through else None,
            etag=etag,
            complete=through,
            note=self.note,
            uuid=str(uuids.UUID(bytes=header.uuid)) if header is not None else "",
            ctime=min(header.ctime, (1 << 63) - 1) if header is not None else 0,
            configs=self.configs,
            disks=tuple(
                index.Disk(each.number, each.name, each.size, seen.get(each.number, 0))
                for each in (header.devices if header is not None else ())
            ),
            members=self._count if self.kind == "tar" else 0,
            piece_bytes=index.PIECE_BYTES,
        )

    def _stop(self, why: str) -> None:
        if self._looking:
            self.note = why
        self._looking = False

    def _look(self, view: memoryview) -> None:
        if self._decoder is None:
            self._first += view[: 1 << 16]
            if len(self._first) < HEAD_BYTES:
                return
            # What came before this piece was shorter than HEAD_BYTES, so the two hold all bytes so far.
            before = self._first[: self.size - len(view)]
            self._begin()
            if before:
                self._decode(memoryview(before))
        self._decode(view)

    def _begin(self) -> None:
        self.compression = detect(self._first)
        if self._deep is None:
            self._deep = self.compression != "lzo"
        if self.compression == "zstd" and self._deep:
            self._entrances = Entrances(self._window_max)
        self._decoder = decoder(self.compression, window_max=self._window_max, entrances=self._entrances)
        if self.size < HEAD_BYTES:
            self._decode(memoryview(self._first))

    def _decode(self, view: memoryview) -> None:
        assert self._decoder is not None
        try:
            for plain in self._decoder.feed(view):
                self._plain(plain)
                if not self._looking:
                    return
        except BadArchive as error:
            self.settle_head()
            self._stop(str(error))

    def _plain(self, plain: bytes | memoryview) -> None:
        before = self.plain_size
        self.plain_size += len(plain)
        if self._head is not None:
            self._head += plain[: PLAIN_HEAD_BYTES - len(self._head)]
        if self._scanner is None:
            assert self._head is not None
            if self.plain_size < _KIND_BYTES:
                return
            self.kind = kind_of(self._head)
            if not self.kind:
                self._stop("neither a VMA nor a tar archive")
                return
            self._scanner = vma.Scanner() if self.kind == "vma" else tar.Scanner()
            if before:
                self._scan(memoryview(bytes(self._head[:before])))
        self._scan(plain)
        if not self._deep and self.head_done:
            self._dropped = True
            self._stop("only the head of the archive was read")

    def _scan(self, plain: bytes | memoryview) -> None:
        if isinstance(self._scanner, vma.Scanner):
            for run in self._scanner.feed(plain):
                self._runs.add(run)
            if not self.head_done and self._scanner.header is not None:
                self.settle_head()
            full = self._runs.stored > TABLE_BYTES_MAX
        else:
            assert self._scanner is not None
            for member in self._scanner.feed(plain):
                self._count += 1
                self._members.add(member)
                if not self.head_done:
                    if name_of(member.path) in CONFIG_MEMBERS:
                        self._config_members.append(member)
                    elif member.kind != "dir":
                        self.settle_head()
            if not self.head_done and (self.plain_size >= PLAIN_HEAD_BYTES or self._scanner.ended):
                self.settle_head()
            full = self._members.stored > TABLE_BYTES_MAX
        if full:
            self.lighten(f"the archive has more than the {TABLE_BYTES_MAX >> 20} MiB of an index")

    def settle_head(self) -> None:
        """No more of the head will come: takes the configuration out of it. Whose file is cut off is left out."""
        if self.head_done or self._head is None:
            return
        if isinstance(self._scanner, vma.Scanner):
            self.header = self._scanner.header
            self.configs = self.header.configs if self.header is not None else ()
            self._head, self.head_done = None, True
            return
        self.configs = tuple(
            (name_of(member.path), bytes(self._head[member.data_at : member.data_at + member.stored]))
            for member in self._config_members
            if member.data_at + member.stored <= len(self._head)
        )
        self._head, self.head_done = None, True


def name_of(path: str) -> str:
    """A member's path as people write it: `./etc/passwd` is `etc/passwd`, the root is ""."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts)
