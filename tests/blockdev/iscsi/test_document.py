"""docs/protocol/iscsi.md is what the tables say."""

from pathlib import Path

from blockdev.iscsi.document import render

PAGE = Path(__file__).parents[3] / "docs" / "protocol" / "iscsi.md"


def test_page_is_drawn_from_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "docs/protocol/iscsi.md is out of date: python -m blockdev.iscsi.document > docs/protocol/iscsi.md"
    )
