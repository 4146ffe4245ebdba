"""Names of the objects of a ledger, relative to its place in the store. docs/formats/ledger.md has them as a table.

One rule: every name but `checkpoint` is of an object that never changes, and follows from a size or number that something
signed has told; nothing is ever found by listing.
"""

import re

LEDGER_WRITER = "ledger"
"""The ledger's own log: enrolments and the heads of all writers, signed by the ledger key. Its origin is the ledger's."""
LEDGER_JSON = "ledger.json"
"""What the place is, for people who come across it. Never trusted."""

_WRITER = re.compile(r"[a-z0-9][a-z0-9.-]{0,79}\Z")


def check_writer(name: str) -> str:
    """`name`, where a writer may be called so; else ValueError."""
    if not _WRITER.match(name):
        raise ValueError(
            f"{name!r} is no writer's name: 1 to 80 of a-z, 0-9, '.' and '-', beginning with a letter or digit"
        )
    return name


def origin_of(ledger_origin: str, writer: str) -> str:
    """The origin line of a writer's checkpoints (C2SP tlog-checkpoint)."""
    return ledger_origin if writer == LEDGER_WRITER else f"{ledger_origin}/{writer}"


def log_prefix(writer: str) -> str:
    """The `<prefix>` of C2SP tlog-tiles, with a slash at its end."""
    return f"log/{check_writer(writer)}/"


def checkpoint_key(writer: str) -> str:
    """The newest checkpoint: the one object that is replaced."""
    return f"{log_prefix(writer)}checkpoint"


def kept_checkpoint_key(writer: str, size: int) -> str:
    """The checkpoint of that size, kept for good."""
    return f"{log_prefix(writer)}checkpoints/{size:016d}"


def tile_key(writer: str, path: str) -> str:
    """`path` as `integrity.tlog.tiles` gives it, beginning with `tile/`."""
    return f"{log_prefix(writer)}{path}"


def edge_key(writer: str, size: int) -> str:
    """The right edge of the tree of a kept checkpoint (`integrity.tlog.tiles.Edge`): saves readers GETs, never needed."""
    return f"{log_prefix(writer)}edges/{size:016d}"


def epoch_key(writer: str, epoch: int) -> str:
    """The note with which the key of the epoch before introduces this one's; there is none for epoch 0."""
    return f"{log_prefix(writer)}epochs/{epoch:08d}"


def timestamp_key(size: int) -> str:
    """The RFC 3161 token over the ledger log's checkpoint of that size."""
    return f"anchors/{size:016d}.tsr"


def report_key(report: str, suffix: str) -> str:
    """One of a report's files."""
    return f"reports/{report}.{suffix}"
