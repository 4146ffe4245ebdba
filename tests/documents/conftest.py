"""What the tests of documents share: manuals are written once."""

from pathlib import Path

import pytest

from tests.documents.manuals import write_manuals


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for /usr/share, with every manual page and completion."""
    return write_manuals(tmp_path_factory.mktemp("manuals"))
