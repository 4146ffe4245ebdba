"""One Debian for all tests of a suite here; each leaves no package installed."""

import shutil
from collections.abc import Iterator

import pytest

from tests.packages.debian import SUITES, Debian, ImageFailed, find_or_build, why_not


@pytest.fixture(scope="module", params=SUITES)
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    if reason := why_not():
        pytest.skip(reason)
    try:
        find_or_build(request.param)
    except ImageFailed as error:
        pytest.skip(f"Debian's {request.param} cannot be had: {error}")
    machine = Debian(request.param, tmp_path_factory.mktemp(request.param))
    yield machine
    machine.end()
    shutil.rmtree(machine.root, ignore_errors=True)  # what is left is a temporary directory's affair
