"""All verbs, each once. The REST API, the command and docs/envctl/verbs.md are made from this; the pages call the
same functions.

Each module of verbs has a tuple `VERBS`; a test finds modules that are missing here.
"""

from typing import Final

from envctl.verbs import (
    auditing,
    backups,
    console,
    doctor,
    environments,
    fleet,
    jobs,
    orphans,
    people,
    profile,
    settings,
    templates,
)
from envctl.verbs.verb import Verb

VERBS: Final[tuple[Verb, ...]] = (
    *auditing.VERBS,
    *backups.VERBS,
    *console.VERBS,
    *doctor.VERBS,
    *environments.VERBS,
    *fleet.VERBS,
    *jobs.VERBS,
    *orphans.VERBS,
    *people.VERBS,
    *profile.VERBS,
    *settings.VERBS,
    *templates.VERBS,
)


def verb(name: str) -> Verb:
    """The one of that name; KeyError."""
    return _BY_NAME[name]


_BY_NAME: Final = {one.name: one for one in VERBS}
