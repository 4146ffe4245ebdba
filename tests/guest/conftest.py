"""The guest's images, built once for a user and once for a run; tests that need a guest are marked here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.guest import Guest, Hardware
from tests.guest.image import GuestImage, ImageFailed, build_program, find_or_build, why_not

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.slow)
            # The first test of a module pays for its guest, the first of a machine for the image too.
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        return find_or_build()
    except ImageFailed as error:
        pytest.skip(f"the guest's image cannot be built: {error}")


@pytest.fixture(scope="session")
def guest_program(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This working tree as an image; asks for `guest_image` first, so that nothing is built in vain."""
    image = tmp_path_factory.mktemp("program") / "program.img"
    build_program(image)
    return image


@pytest.fixture(scope="module")
def boot(
    guest_image: GuestImage, guest_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Hardware], Guest]]:
    """Boots guests for a module; those still up at its end are killed."""
    guests: list[Guest] = []

    def boot_one(hardware: Hardware) -> Guest:
        guests.append(Guest(guest_image, guest_program, tmp_path_factory.mktemp("guest") / "machine", hardware))
        return guests[-1]

    yield boot_one
    for guest in guests:
        guest.kill()
