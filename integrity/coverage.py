"""Which ledger a place belongs to: the `covers` of `[ledger.NAME]` against the URL of a bucket or prefix.

One rule: places are compared by server, bucket and whole path components, so that a second name of an endpoint covers what the
first one does. Records have endpoint and bucket as `covers` names them, whichever name was used to get there.
"""

from dataclasses import dataclass

from s3core.build import parse_store_url
from s3core.settings import Config, ConfigError


@dataclass(frozen=True, slots=True)
class Covered:
    """A place that a ledger covers. `prefix` is what keys in the bucket begin with, "" or ending with a slash. Without a
    bucket (`file:`) `bucket` is "", and keys are paths."""

    ledger: str
    endpoint: str
    bucket: str
    prefix: str


def covered(config: Config, url: str) -> list[Covered]:
    """The places of one ledger that hold `url`, or lie in it. Empty where there are none; ConfigError where they are of
    several ledgers. ValueError for a URL that is none."""
    if not any(ledger.covers for ledger in config.ledgers.values()):
        return []
    wanted = config.whereabouts(url)
    found = [
        place_of(name, covers)
        for name, ledger in config.ledgers.items()
        for covers in ledger.covers
        if _holds(config.whereabouts(covers), wanted) or _holds(wanted, config.whereabouts(covers))
    ]
    ledgers = sorted({place.ledger for place in found})
    if len(ledgers) > 1:
        raise ConfigError(
            f"{config.path}: parts of {url} are covered by the ledgers {', '.join(ledgers)}",
            hint="one of them must cover all of it, or the URL must name one of the parts",
        )
    return found


def place_of(ledger: str, url: str) -> Covered:
    """The place that a URL in `covers` names. ValueError for a URL that is none."""
    place = parse_store_url(url)
    path = place.path.strip("/")
    bucket = place.bucket if place.scheme == "s3" else place.name
    return Covered(ledger, place.name if place.scheme == "s3" else "", bucket, f"{path}/" if path else "")


def key_prefix(url: str) -> str:
    """What the keys of a store at `url` begin with in its bucket, "" or ending with a slash."""
    return place_of("", url).prefix


def _holds(outer: str, inner: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")
