"""What `create` and `import` have in common: who a new volume is, and whether its store can keep two hosts apart."""

import time
from typing import Annotated
from uuid import uuid4

import typer

from blockdev import volumes
from blockdev.arguments import size_option
from blockdev.errors import Refused
from blockdev.place import VolumePlace
from blockdev.segments.volume_file import VolumeFile
from s3core.clock import system_random
from s3core.console import program_version, write_note
from s3core.probe import ProbeResult
from s3core.store import ObjectStore

SectorSizeOption = Annotated[int | None, size_option("sector_bytes", "--sector-size")]
ExtentSizeOption = Annotated[int | None, size_option("extent_bytes", "--extent-size")]
FrameSizeOption = Annotated[int | None, size_option("frame_bytes", "--frame-size")]
UnfencedOption = Annotated[
    bool,
    typer.Option("--unfenced", help="Make it even where the store cannot keep two hosts from writing at once."),
]


def drafted(
    place: VolumePlace,
    size_bytes: int,
    *,
    sector_bytes: int | None,
    frame_bytes: int | None,
    extent_bytes: int | None,
    compression: str,
) -> VolumeFile:
    """A new volume, which nothing knows yet; what was not said is as the settings have it. BadParameter."""
    settings = place.settings
    try:
        volumes.check_compression(compression)
        geometry = volumes.check_geometry(
            size_bytes,
            sector_bytes or settings.sector_bytes,
            frame_bytes or settings.frame_bytes,
            extent_bytes or settings.extent_bytes,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return VolumeFile(
        name=place.name,
        identity=uuid4(),
        lineage=uuid4(),
        geometry=geometry,
        compression=compression,
        created=time.time(),
        creator=f"bucketworks {program_version()}",
    )


def require_fence(store: ObjectStore, place: VolumePlace, *, unfenced: bool) -> ProbeResult:
    """What a race of conditional writes shows. Raises Refused where the name is taken, and where the store cannot keep two
    hosts apart, unless that is accepted here or in the settings."""
    volumes.require_free(store, place.name)
    tested = volumes.fence_test(store, system_random())
    if not tested.ok and not (unfenced or place.settings.unfenced):
        said = "cannot keep two hosts from writing to a volume at once" if tested.conclusive else "cannot be tested"
        raise Refused(f"{place.store_url} {said}: {tested.detail}", hint=tested.hint)
    return tested


def note_unfenced(tested: ProbeResult) -> None:
    """Says what a volume without a fence means; nothing for one that has it."""
    if not tested.ok:
        write_note(
            f"UNFENCED: {tested.detail}. If two hosts serve this volume at once, they destroy it, and nothing stops them."
        )
