"""From a URL to homes ready for use."""

import random as random_module
from typing import TYPE_CHECKING, Final

from envctl.homes.presigning import ConsolePresigner, Presigner, S3Presigner
from envctl.homes.store import HomeStore
from s3core.build import build_store, named_endpoint, parse_store_url
from s3core.clock import Clock, SystemClock
from s3core.endpoint import PRESETS
from s3core.presign import QuerySigner

if TYPE_CHECKING:
    from s3core.settings import Config

COMPARES: Final = frozenset({"ceph"})
"""Presets without checksums of their own that compare what is put with the signed `x-amz-content-sha256` (tested)."""


def open_homes(
    url: str,
    *,
    secret: bytes,
    config: "Config | None" = None,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    guard_fraction: float = 0.3,
) -> HomeStore:
    """`url`: `s3://ENDPOINT/BUCKET/PREFIX`, `file:///DIRECTORY` or `memory:NAME`. `secret` (32 bytes, the same for all
    workers) signs addresses where the console serves the objects itself. Opens no connection. ValueError for a URL that is
    none, ConfigError, CredentialsError, Misconfigured as `s3core.build` and `s3core.presign` have them."""
    clock = clock or SystemClock()
    place = parse_store_url(url)
    presigner: Presigner
    check_packs = False
    if place.scheme == "s3":
        endpoint = named_endpoint(place.name, config)
        check_packs = not PRESETS[endpoint.preset].aws_checksums and endpoint.preset not in COMPARES
        signer = QuerySigner(endpoint, place.bucket)
        presigner = S3Presigner(signer, f"{place.path}/" if place.path else "")
    else:
        presigner = ConsolePresigner(secret)
    objects = build_store(url, config=config, clock=clock, random=random)
    return HomeStore(objects, presigner, clock, guard_fraction=guard_fraction, check_packs=check_packs)
