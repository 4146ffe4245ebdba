"""One furnished console for all tests of pages: making it takes longer than asking it."""

from collections.abc import Iterator

import pytest

from tests.envctl.pages.furnished import House, furnished


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with furnished(tmp_path_factory.mktemp("house")) as made:
        yield made
