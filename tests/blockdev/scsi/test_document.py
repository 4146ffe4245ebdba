"""docs/protocol/scsi.md is what the tables say."""

from pathlib import Path

from blockdev.scsi.document import render

PAGE = Path(__file__).parents[3] / "docs" / "protocol" / "scsi.md"


def test_page_is_drawn_from_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "docs/protocol/scsi.md is out of date: python -m blockdev.scsi.document > docs/protocol/scsi.md"
    )
