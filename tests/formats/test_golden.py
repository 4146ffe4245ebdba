"""Golden files: bytes of each format version that today's code must still read, and write where it can be compared.

A failure here means that volumes in people's buckets would not be read: change the code, never the golden file.
"""

import pytest

from tests.formats.specimens import GOLDEN, SPECIMENS, Specimen, path_of

each = pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)


@each
def test_todays_code_reads_it(specimen: Specimen) -> None:
    assert specimen.read(path_of(specimen).read_bytes()) == specimen.value


@each
def test_todays_code_writes_the_same(specimen: Specimen) -> None:
    written = specimen.write()
    assert specimen.read(written) == specimen.value
    if specimen.exact:
        assert written == path_of(specimen).read_bytes()


def test_no_golden_file_is_left_without_a_test() -> None:
    segments = {path_of(specimen).name for specimen in SPECIMENS}
    others = {path.name for path in GOLDEN.iterdir()} - segments
    # These prove their own, beside this file.
    own = ("journal", "cache", "apply-journal", "plan", "sealed-object", "ledger", "witness", "archive-index")
    assert {name for name in others if not name.startswith((*own, "spending", "status"))} == set()
