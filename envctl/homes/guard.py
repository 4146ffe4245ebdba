"""The guard against mass changes: ransomware, a script gone wrong, an `rm -rf` in the wrong place. Pure.

One rule: it never stops a backup. The snapshot before the change is pinned, so that no retention takes it away, and somebody
is told.
"""

from typing import Final

from envctl.homes.documents import Stats

FILES_MIN: Final = 50
"""Of smaller homes everything changes now and then."""


def alert_of(before: Stats, now: Stats, fraction: float) -> str:
    """What there is to tell of a snapshot after one with `before`; "" where no more than `fraction` of its files was
    rewritten or removed. That a home is empty all at once is always told, however small it was."""
    if before.files and not now.files:
        return f"all {before.files} files are gone"
    if before.files < FILES_MIN:
        return ""
    # A run that saved everything anew tells of nothing removed; fewer files are fewer files.
    removed = max(now.removed, before.files - now.files)
    if now.changed + removed <= fraction * before.files:
        return ""
    return f"{now.changed} of {before.files} files were rewritten and {removed} removed at once"
