"""The words of the report that more than one module must agree on: loads, systems, facts and units.

One rule: a part names what it measured by these, the verdict asks for it by these; a word that is spelled twice is lost once.
Other loads and systems have names of their own, and the report shows them as they come.
"""

from typing import Final

# --- systems -------------------------------------------------------------------------------------------------

OURS: Final = "s3block"
OURS_FLUSH_S3: Final = "s3block flush=s3"
S3BACKER_PACKAGED: Final = "s3backer packaged"
S3BACKER_TUNED: Final = "s3backer tuned"
S3BACKER_FILE: Final = "s3backer tuned, its file"
S3BACKER_SYNC: Final = "s3backer sync"
NBDKIT: Final = "nbdkit S3"
NBDKIT_CACHE: Final = "nbdkit S3 + cache"
TGT: Final = "tgt, local file"
BARE_CLIENT: Final = "bare client"
"""As many requests at once as s3block may have, as many bytes on the wire: what the store gives."""
COWSYNC: Final = "cowsync"
RCLONE: Final = "rclone"
SYSTEMS: Final = (
    OURS,
    OURS_FLUSH_S3,
    S3BACKER_PACKAGED,
    S3BACKER_TUNED,
    S3BACKER_FILE,
    S3BACKER_SYNC,
    NBDKIT,
    NBDKIT_CACHE,
    TGT,
    BARE_CLIENT,
)
"""The order of columns; others follow in the order in which they were measured."""

# --- units ---------------------------------------------------------------------------------------------------

OPS: Final = "op/s"
MIBS: Final = "MiB/s"
KEYS: Final = "keys/s"
SECONDS: Final = "s"

# --- loads of blocks -----------------------------------------------------------------------------------------

FLUSH_EACH: Final = ", flush each"
FLUSH_PER_16: Final = ", flush per 16"
FRESH: Final = ", fresh volume"
LIMITED: Final = ", 100 MiB/s link"
"""Behind a load's name: the store gave no more than this to all connections together."""
SEQUENTIAL_WRITE: Final = "1 MiB sequential write"
SEQUENTIAL_READ: Final = "1 MiB sequential read, cold"


def random_write(depth: int, flush: str = "") -> str:
    """Scattered writes on a volume that is full, unless `flush` is FRESH."""
    return f"4K random write QD{depth}{flush}"


def cold_read(depth: int) -> str:
    return f"4K random read QD{depth}, cold"


def warm_read(depth: int) -> str:
    return f"warm 4K read QD{depth}"


def warm_write(depth: int, flush: str = "") -> str:
    return f"warm 4K write QD{depth}{flush}"


QEMU_IMG: Final = ", qemu-img bench"
"""Behind a warm load's name, where it was not fio but the benchmark of QEMU."""
PROBE: Final = "warm 4K command QD1 while the destager works"
"""Of it the facts P50_US, P99_US, P999_US count: of writes; behind PROBE_READ, of reads with one write in ten."""
PROBE_READ: Final = f"{PROBE}, reads"

# --- loads of a mirror ---------------------------------------------------------------------------------------

WHAT_CHANGED: Final = "what changed"
"""Begins the names of loads in keys/s; PEAK_MIB is their memory."""
