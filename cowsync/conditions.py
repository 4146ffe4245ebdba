"""Whether a mirror keeps to conditions on PUT: seen by a probe, remembered for a day, asked anew.

One rule: what was not seen is not relied on. Where it cannot be seen, a run looks with a HEAD before each PUT, which is right
everywhere; a server that ignores a condition and says nothing would let a run overwrite what somebody else wrote.

A probe writes below `.cowsync/probe/ID-run/` on the mirror, ID being this host's, and removes that again. What a crash leaves
there the next probe on this host removes first; nothing was remembered, so there is one. Asking again is all that a lost
catalogue costs.
"""

import logging
import os
import random as random_module
from pathlib import Path

from cowsync.apply.copy_line import OWN_PREFIX
from cowsync.mirror import Mirror
from s3core.bucket_probe import conditional_puts, keys_below, remove_keys
from s3core.errors import StoreError

log = logging.getLogger(__name__)

PROBES = f"{OWN_PREFIX}probe/"
"""Below the mirror's prefix."""
SEEN_FOR_S = 86400.0
"""A server may be replaced behind its name, or upgraded."""
FIRST_LINES_MIN = 100
"""Fewer lines of a first run are not worth a probe, which is some ten requests."""
_NAME = "conditional_puts"
_ID_NAME = "probe-id"
_ID_DIGITS = 16


def conditional_puts_hold(mirror: Mirror, now: float, random: random_module.Random) -> bool:
    """What `conditional_puts` says, with `auto` what was seen; a probe is made where that is older than a day or was of
    another endpoint or bucket. False where the store did not answer: that is not remembered. For the holder of the lock."""
    setting = mirror.settings.conditional_puts
    if setting != "auto":
        return setting == "yes"
    seen = mirror.catalogue().seen(_NAME)
    if seen is not None and seen.of == _identity(mirror) and 0 <= now - seen.at < SEEN_FOR_S:
        return not seen.value
    try:
        broken = _probe(mirror, random)
    except StoreError as error:
        log.info("mirror %s: whether PUT keeps to conditions is not known: %s", mirror.name, error)
        return False
    remember(mirror, broken, now)
    return not broken


def remember(mirror: Mirror, broken: str, now: float) -> None:
    """What a probe saw: `broken` is "" where conditions hold, else what the server did instead."""
    mirror.catalogue().remember(_NAME, broken, of=_identity(mirror), now=now)


def useful(mirror: Mirror) -> bool:
    """Whether a run would put objects under a condition at all: bytes go through us, and the mirror is looked at. False
    where the ends do not answer: then lines say so, each for itself."""
    try:
        source, target = mirror.source.bucket.properties, mirror.target.bucket.properties
    except StoreError:
        return False
    by_server = source.endpoint and source.endpoint == target.endpoint and not mirror.encrypted
    return mirror.settings.check_target and not by_server


def worth_it(mirror: Mirror, lines: int, *, first: bool) -> bool:
    """Whether a run of so many lines gains by conditions. With the `first` one of a mirror only where nothing is there: else
    what is there already is found by a HEAD, and no bytes travel in vain. A crash while it probes leaves what stands above."""
    if not useful(mirror):
        return False
    return lines >= FIRST_LINES_MIN and _is_empty(mirror) if first else lines > 0


def _is_empty(mirror: Mirror) -> bool:
    """Whether the mirror has nothing but what is cowsync's own. False where it does not answer."""
    bucket, prefix = mirror.target.bucket, mirror.target.prefix
    own = mirror.target.key(OWN_PREFIX)
    try:
        keys = bucket.list_page(prefix=prefix, max_keys=1).keys
        if keys and keys[0].startswith(own.encode()):
            keys = bucket.list_page(prefix=prefix, start_after=f"{own}\U0010ffff", max_keys=1).keys
    except StoreError:
        return False
    return not keys


def probe_id(folder: Path, random: random_module.Random) -> str:
    """The name of this host's probes of a mirror, chosen once. A crash leaves a file `probe-id.PID`, which says nothing."""
    path = folder / _ID_NAME
    while True:
        try:
            return path.read_text(encoding="ascii")
        except FileNotFoundError:
            staged = path.with_suffix(f".{os.getpid()}")
            with staged.open("w", encoding="ascii") as file:
                file.write(f"{random.getrandbits(4 * _ID_DIGITS):0{_ID_DIGITS}x}")
                file.flush()
                os.fsync(file.fileno())
            try:
                # Of two that come at once, the first one's stands.
                os.link(staged, path)
            except FileExistsError:
                pass
            finally:
                staged.unlink()


def _identity(mirror: Mirror) -> str:
    return f"{mirror.target_identity} versioned={mirror.target.bucket.properties.versioned}"


def _probe(mirror: Mirror, random: random_module.Random) -> str:
    bucket = mirror.target.bucket
    mine = mirror.target.key(f"{PROBES}{probe_id(mirror.folder, random)}-run/")
    remove_keys(bucket, keys_below(bucket, mine))
    try:
        return conditional_puts(bucket, f"{mine}{random.getrandbits(32):08x}/")
    finally:
        try:
            remove_keys(bucket, keys_below(bucket, mine))
        except StoreError as error:
            log.warning("mirror %s: probes are left below %s: %s; the next one removes them", mirror.name, mine, error)
