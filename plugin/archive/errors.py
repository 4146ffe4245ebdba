"""What goes wrong with archives, by who must act.

One rule: `BadArchive` and its kin say where in the archive, counted in bytes of it.
"""


class BadArchive(ValueError):
    """The bytes are not what their format says. `at` counts in the bytes that were parsed (after decompression)."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(f"{what} (at byte {at:,} of the archive)")
        self.at = at


class IndexDamaged(ValueError):
    """The index object cannot be read. Make it anew: `pve-s3 archive index`."""


class NoIndex(LookupError):
    """What was asked for needs an index, or one that holds more. The text says what to do."""


class NotInArchive(LookupError):
    """The archive has no such member, disk or configuration."""
