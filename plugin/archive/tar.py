"""tar as it streams: ustar, GNU and PAX headers, sparse files of all four kinds, long names (POSIX.1-2017 pax, GNU tar manual
"Basic Tar Format" and "Storing Sparse Files").

vzdump's archives of containers are what GNU tar writes with `--sparse --acls --xattrs --numeric-owner`: PAX headers before
each member, maps of sparse files inside their data. The guest's configuration is the first member.

One rule: a scanner keeps one member's headers and its sparse map, both bounded, never content, however the bytes are cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from plugin.archive.errors import BadArchive

BLOCK_BYTES = 512
EXTENDED_BYTES_MAX = 4 << 20
"""Of PAX records or a long name before one member: attributes of a file are far below."""
SPARSE_BYTES_MAX = 16 << 20
"""Of the text of one sparse map (PAX 1.0); about a million pieces."""
_SEGMENTS_MAX = 1 << 20

_ZERO = bytes(BLOCK_BYTES)
KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}
_WITHOUT_DATA = frozenset(b"123456")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `start` is where its first header begins (PAX records included), `data_at` its first byte of content,
    `stored` how many there are, `end` where the next entry begins. `size` is that of the file once written out. A sparse
    file has `segments` of (offset in the file, bytes), which are stored one after the other; what lies between is zeros.
    `attributes` are PAX records of ACLs and extended attributes as they stand (`SCHILY.…`). `path` and `link` are as in the
    archive, undecodable bytes as surrogates."""

    path: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    link: str
    start: int
    data_at: int
    stored: int
    end: int
    segments: tuple[tuple[int, int], ...] | None = None
    attributes: dict[str, bytes] = field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        return self.segments is not None


class Scanner:
    """Bytes of a tar archive in order, in pieces of any size; out come its members, each when its headers are whole.

    `start` is the byte of the archive at which the first piece lies, so that a scan may begin at any member's `start`.
    `ended`: the two blocks of zeros came (or one, and more that is no header); what follows is not looked at."""

    def __init__(self, start: int = 0) -> None:
        self.at = start
        self.ended = False
        self._held = bytearray()
        self._skip = 0
        self._gather = 0
        """Bytes of an extension's data still to come, padding included."""
        self._gathering = b""
        self._size = 0
        self._data = bytearray()
        self._start = start
        self._zeros = 0
        self._pax: dict[str, bytes] = {}
        self._global: dict[str, bytes] = {}
        self._sparse_pairs: list[tuple[int, int]] = []
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._member: Member | None = None
        """A sparse one whose map is still being read."""
        self._map: list[int] = []
        self._old = False
        self._old_pairs: list[tuple[int, int]] = []

    @property
    def whole(self) -> bool:
        """Whether the bytes end where an archive may: after its end mark, or between two members."""
        return self.ended or not (self._held or self._skip or self._gather or self._member or self._pending)

    @property
    def _pending(self) -> bool:
        return bool(self._pax) or self._long_name is not None or self._long_link is not None

    def feed(self, data: bytes | memoryview) -> Iterator[Member]:
        """The members whose headers these bytes complete. To be exhausted before the next call."""
        view = memoryview(data)
        while view and not self.ended:
            if self._skip:
                step = min(self._skip, len(view))
                self._skip -= step
                self.at += step
                view = view[step:]
                continue
            if self._gather:
                step = min(self._gather, len(view))
                self._data += view[:step]
                self._gather -= step
                self.at += step
                view = view[step:]
                if not self._gather:
                    self._extension()
                continue
            step = min(BLOCK_BYTES - len(self._held), len(view))
            self._held += view[:step]
            self.at += step
            view = view[step:]
            if len(self._held) == BLOCK_BYTES:
                block = bytes(self._held)
                self._held.clear()
                found = self._block(block)
                if found is not None:
                    yield found

    def _block(self, block: bytes) -> Member | None:
        at = self.at - BLOCK_BYTES
        if self._member is not None:
            return self._sparse_block(block)
        if block == _ZERO:
            self._zeros += 1
            self.ended = self._zeros == 2
            return None
        if self._zeros:
            self.ended = True
            return None
        if not self._pending:
            self._start = at
        return self._header(block, at)

    def _header(self, block: bytes, at: int) -> Member | None:
        written = _number(block[148:156], at)
        plain = sum(block) - sum(block[148:156]) + 256
        if written != plain and written != plain - 256 * sum(
            byte > 127 for place, byte in enumerate(block) if not 148 <= place < 156
        ):
            raise BadArchive("a tar header whose checksum is wrong", at)
        flag = block[156:157]
        size = _number(block[124:136], at)
        if size < 0:
            raise BadArchive("a tar header with a negative size", at)
        if flag in (b"x", b"X", b"g", b"L", b"K"):
            if not size <= EXTENDED_BYTES_MAX:
                raise BadArchive(f"an extended tar header of {size:,} bytes, more than is believed", at)
            self._gathering, self._size, self._gather = flag, size, _padded(size)
            self._data.clear()
            if not size:
                self._extension()
            return None
        return self._entry(block, flag, size, at)

    def _extension(self) -> None:
        data = bytes(self._data[: self._size])
        self._data = bytearray()
        if self._gathering == b"L":
            self._long_name = data.rstrip(b"\0")
        elif self._gathering == b"K":
            self._long_link = data.rstrip(b"\0")
        elif self._gathering == b"g":
            self._global.update(record for record in _records(data, self.at) if record[0] in _SEEN)
        else:
            pair: list[int] = []
            for key, value in _records(data, self.at):
                if key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
                    pair.append(_decimal(value, self.at))
                    if len(pair) == 2:
                        self._sparse_pairs.append((pair[0], pair[1]))
                        pair = []
                elif key in _SEEN or key.startswith("SCHILY."):
                    self._pax[key] = value
            # An extension that says nothing we keep is one nevertheless: what follows belongs to it.
            self._pax.setdefault("", b"")

    def _entry(self, block: bytes, flag: bytes, size: int, at: int) -> Member | None:
        pax = {**self._global, **self._pax}
        pairs, self._sparse_pairs = self._sparse_pairs, []
        name = _until_zero(block[0:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _until_zero(block[345:500]) + b"/" + name
        name = pax.get("path", self._long_name if self._long_name is not None else name)
        link = pax.get("linkpath", self._long_link if self._long_link is not None else _until_zero(block[157:257]))
        self._pax, self._long_name, self._long_link = {}, None, None
        if "size" in pax:
            size = _decimal(pax["size"], at)
        real, segments = size, None
        deferred = extended = False
        if flag == b"S":
            # The old GNU way: pieces in the header, and in blocks behind it as long as each says so.
            pairs = [*_pieces(block[386:482], at)]
            real, extended, deferred = _number(block[483:495], at), block[482] != 0, True
        elif pax.get("GNU.sparse.major") == b"1":
            deferred = True
        elif "GNU.sparse.map" in pax:
            numbers = [_decimal(each, at) for each in pax["GNU.sparse.map"].split(b",") if each]
            if len(numbers) % 2:
                raise BadArchive("a sparse map of an odd length", at)
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            segments = tuple(pairs)
        elif pairs:
            segments = tuple(pairs)
        name = pax.get("GNU.sparse.name", name)
        for key in ("GNU.sparse.realsize", "GNU.sparse.size"):
            if key in pax:
                real = _decimal(pax[key], at)
        kind = KINDS.get(flag, "other")
        if kind == "file" and name.endswith(b"/"):
            kind = "dir"
        stored = 0 if flag[0] in _WITHOUT_DATA else size
        member = Member(
            path=_text(name),
            kind=kind,
            size=real if stored or segments is not None or deferred else 0,
            mode=_number(block[100:108], at) & 0o7777,
            uid=_decimal(pax["uid"], at) if "uid" in pax else _number(block[108:116], at),
            gid=_decimal(pax["gid"], at) if "gid" in pax else _number(block[116:124], at),
            mtime=_seconds(pax["mtime"], at) if "mtime" in pax else _number(block[136:148], at),
            link=_text(link),
            start=self._start,
            data_at=at + BLOCK_BYTES,
            stored=stored,
            end=at + BLOCK_BYTES + _padded(stored),
            segments=segments,
            attributes={key: value for key, value in pax.items() if key.startswith("SCHILY.")},
        )
        if deferred:
            self._map, self._member, self._old = [], member, flag == b"S"
            self._old_pairs = pairs
            if self._old and not extended:
                return self._with_map(tuple(pairs), member.data_at, stored)
            if not self._old and not stored:
                raise BadArchive("a sparse file without its map", at)
            return None
        if segments is not None:
            return self._with_map_of(member, segments, member.data_at, stored)
        self._skip = _padded(stored)
        return member

    def _sparse_block(self, block: bytes) -> Member | None:
        member = self._member
        assert member is not None
        at = self.at - BLOCK_BYTES
        if self._old:
            self._old_pairs += _pieces(block[:504], at)
            if len(self._old_pairs) > _SEGMENTS_MAX:
                raise BadArchive("a sparse map that does not end", at)
            if block[504]:
                return None
            return self._with_map(tuple(self._old_pairs), self.at, member.stored)
        # PAX 1.0: decimal numbers, a line each: how many pieces, then offset and bytes of each; padded to a block.
        self._data += block
        lines = self._data.split(b"\n")
        self._data = bytearray(lines.pop())
        if len(self._data) > 2 * BLOCK_BYTES:
            raise BadArchive("a sparse map without a line", at)
        due = 2 * self._map[0] + 1 if self._map else 0
        for line in lines:
            self._map.append(_decimal(bytes(line), at))
            due = due or 2 * self._map[0] + 1
            if len(self._map) == due:
                break
        if due > 2 * _SEGMENTS_MAX + 1:
            raise BadArchive(f"a sparse map of {due // 2:,} pieces, more than is believed", at)
        used = self.at - member.data_at
        if not due or len(self._map) < due:
            if used >= min(_padded(member.stored), SPARSE_BYTES_MAX):
                raise BadArchive("a sparse map that does not end", at)
            return None
        self._data = bytearray()
        numbers, self._map = self._map[1:], []
        return self._with_map(tuple(zip(numbers[::2], numbers[1::2], strict=True)), self.at, member.stored - used)

    def _with_map(self, segments: tuple[tuple[int, int], ...], data_at: int, stored: int) -> Member:
        member, self._member = self._member, None
        assert member is not None
        return self._with_map_of(member, segments, data_at, max(stored, 0))

    def _with_map_of(self, member: Member, segments: tuple[tuple[int, int], ...], data_at: int, stored: int) -> Member:
        end = 0
        for offset, length in segments:
            if offset < end or length < 0 or offset + length > member.size:
                raise BadArchive(
                    f"the sparse map of {member.path!r} is out of order or reaches behind its end", data_at
                )
            end = offset + length
        if sum(length for _, length in segments) != stored:
            raise BadArchive(f"the sparse map of {member.path!r} does not fit its {stored:,} bytes", data_at)
        self._skip = _padded(stored)
        return replace(member, stored=stored, data_at=data_at, end=data_at + _padded(stored), segments=segments)


_SEEN = frozenset(
    (
        *("path", "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.major", "GNU.sparse.map"),
        *("GNU.sparse.name", "GNU.sparse.realsize", "GNU.sparse.size"),
    )
)


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _until_zero(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _number(raw: bytes, at: int) -> int:
    """Octal digits, or base-256 with the top bit set (GNU)."""
    if raw[0] & 0x80:
        if raw[0] == 0xFF:
            return int.from_bytes(raw, "big", signed=True)
        return int.from_bytes(raw, "big") & ~(0x80 << 8 * (len(raw) - 1))
    digits = raw.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise BadArchive("a number in a tar header is none", at)
    return int(digits, 8)


def _decimal(raw: bytes, at: int) -> int:
    if not raw.isdigit() or len(raw) > 19:
        raise BadArchive("a number in a tar header is none", at)
    return int(raw)


def _seconds(raw: bytes, at: int) -> int:
    sign = -1 if raw[:1] == b"-" else 1
    return sign * _decimal(raw.lstrip(b"-").split(b".")[0], at)


def _records(data: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """PAX: `LENGTH KEY=VALUE\\n`, where the length counts itself."""
    place = 0
    while place < len(data) and data[place]:
        blank = data.find(b" ", place, place + 20)
        length = _decimal(data[place:blank], at) if blank > 0 else 0
        record = data[blank + 1 : place + length]
        if blank < 0 or place + length > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise BadArchive("a PAX record that is none", at)
        key, _, value = record[:-1].partition(b"=")
        yield _text(key), value
        place += length


def _pieces(raw: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Of the old GNU map: 12 digits of offset and 12 of length each; an empty one ends them. The last piece of a file that
    ends in a hole has no bytes and stays."""
    for place in range(0, len(raw) - 23, 24):
        if not raw[place] and not raw[place + 12]:
            return
        yield _number(raw[place : place + 12], at), _number(raw[place + 12 : place + 24], at)
