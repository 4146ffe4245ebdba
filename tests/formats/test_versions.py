"""docs/upgrade.md tells of each format what this program does; and a newer one is refused by name, never guessed at."""

import re

import pytest

from tests.architecture.tree import ROOT
from tests.formats.versions import FORMATS, NEWER, Format, table


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: f"{one.of}-{one.name}".replace(" ", "-"))
def test_a_newer_version_is_refused_by_name(one: Format) -> None:
    with pytest.raises(Exception, match=re.escape(one.says)) as refused:
        one.read()
    assert not isinstance(refused.value, AssertionError)


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: f"{one.of}-{one.name}".replace(" ", "-"))
def test_what_is_written_can_be_read(one: Format) -> None:
    assert str(one.writes) in one.reads.split(", ")
    assert one.writes < NEWER


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs/upgrade.md").read_text(encoding="utf-8")
    assert table() in page, "docs/upgrade.md: put `python -m tests.formats.versions` there"
