"""The template's image, built once for a user; one console and one environment for the whole story of a home."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.envctl.guests.console import Console, console
from tests.guest import envctl_image
from tests.guest.image import ImageFailed, why_not

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.slow)
            # Limits are for what hangs: on a busy host everything takes many times as long. The first one pays for the image.
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def template_image() -> envctl_image.TemplateImage:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        return envctl_image.find_or_build()
    except ImageFailed as error:
        pytest.skip(f"the template's image cannot be built: {error}")


@pytest.fixture(scope="module")
def site(template_image: envctl_image.TemplateImage) -> Iterator[Console]:
    with console(template_image) as there:
        yield there
