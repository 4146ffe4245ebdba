"""Hosts put what they see into a bucket, and anybody who may read it sees all of them.

    PREFIX/hosts/HOST.json     the newest status of HOST, replaced each time       docs/formats/status.md

One rule: an object is read up to its bound and judged by `s3core.status.published`; one that is damaged, too large or of
another host is told as that, and keeps nothing else from being shown. All of them together have a bound too, and the small
come first: whoever fills the place with large ones hides none but those. A host that stopped publishing is told as stale,
never as well.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from s3core.build import build_store
from s3core.errors import StoreError
from s3core.retry import RetryPolicy
from s3core.settings import Config, ConfigError
from s3core.status import DOCUMENT_BYTES_MAX, HostStatus, Published, encode, is_host, published
from s3core.store import ObjectStore

FOLDER = "hosts/"
SUFFIX = ".json"
HOSTS_MAX = 1000
ALL_BYTES_MAX = 16 << 20
"""A host with twenty things publishes some 10 kB."""


def host_name(config: Config) -> str:
    """What this host is called. ConfigError where its own name does not fit."""
    name = config.status.host or socket.gethostname().partition(".")[0].lower()
    if not is_host(name):
        raise ConfigError(f"[status]: host: {name!r} is no name for a host", hint="set host to a-z, 0-9, '-' and '.'")
    return name


def place_of(config: Config) -> str:
    """Where statuses are published. ConfigError where that is nowhere."""
    if not config.status.publish:
        raise ConfigError(
            f"{config.path}: [status]: publish is not set, so hosts do not tell each other how they are",
            hint='set it to a place of its own on every host: publish = "s3://ENDPOINT/BUCKET/PREFIX"',
        )
    return config.status.publish


@contextmanager
def opened_place(config: Config) -> Iterator[ObjectStore]:
    """The store of published statuses, which gives up early. ConfigError, CredentialsError."""
    url, patience_s = place_of(config), config.status.deadline_s
    try:
        store = build_store(url, config=config, policy=RetryPolicy(attempts_max=3, deadline_s=patience_s))
    except ValueError as error:
        raise ConfigError(f"{config.path}: [status]: publish: {error}") from error
    try:
        yield store
    finally:
        store.close()


def publish(store: ObjectStore, status: HostStatus) -> str:
    """Put it in place of the one before; the key it has. StoreError."""
    key = f"{FOLDER}{status.host}{SUFFIX}"
    store.put(key, encode(status))
    return key


def read_all(store: ObjectStore, *, now: float, stale_s: float) -> list[Published]:
    """What every host told, in order of names. StoreError where the place cannot be listed."""
    listed = list(islice(store.list(FOLDER), HOSTS_MAX + 1))
    found = []
    read = 0
    for info in sorted(listed[:HOSTS_MAX], key=lambda one: one.size):
        name = info.key.removeprefix(FOLDER)
        host = name.removesuffix(SUFFIX)
        if name == host or not is_host(host):
            shown = "".join(c for c in name if c.isprintable())[:80]
            found.append(Published(shown or "-", None, problem="this object is no status of a host; remove it"))
        elif info.size > DOCUMENT_BYTES_MAX:
            found.append(Published(host, None, problem=f"it has {info.size:,} bytes, more than a status may have"))
        elif read + info.size > ALL_BYTES_MAX:
            problem = f"it was not read: smaller ones have {read:,} bytes together, and {ALL_BYTES_MAX:,} are read"
            found.append(Published(host, None, problem=problem))
        else:
            read += info.size
            found.append(_read(store, info.key, host, info.size, now, stale_s))
    found.sort(key=lambda one: one.host)
    if len(listed) > HOSTS_MAX:
        found.append(Published("-", None, problem=f"there are more than {HOSTS_MAX:,} objects; these are the first"))
    return found


def _read(store: ObjectStore, key: str, host: str, size: int, now: float, stale_s: float) -> Published:
    try:
        # No more than it was when it was listed: one that grows meanwhile is cut off, and told as damaged.
        data = store.get_range(key, 0, size).data if size else b""
    except StoreError as error:
        return Published(host, None, problem=f"it cannot be read: {error}")
    return published(host, data, now=now, stale_s=stale_s)
