"""One table of exit codes: complete, without doubles, and the nearest class of an error decides."""

import errno

import pytest

from s3core import errors
from s3core.exit_codes import MEANINGS, ExitCode, exit_code_of, exit_codes_markdown, register
from s3core.settings import ConfigError


def test_every_code_has_a_meaning_and_a_cure() -> None:
    assert set(MEANINGS) == set(ExitCode)
    assert all(meaning and cure for meaning, cure in MEANINGS.values())
    assert all(f"| {code.value} |" in exit_codes_markdown() for code in ExitCode)


def test_every_store_error_has_a_code_of_its_own_choosing() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StoreError)]
    assert len(kinds) >= 9
    assert ExitCode.BUG not in {exit_code_of(kind("x")) for kind in kinds}
    assert exit_code_of(errors.OutcomeUnknown("x")) is ExitCode.UNKNOWN_OUTCOME


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Denied("x"), 5),
        (errors.Corrupt("x", offset=1), 8),
        (errors.Misconfigured("x"), 3),
        (ConfigError("x"), 3),
        (OSError(errno.ENOSPC, "full"), 9),
        (OSError(errno.EADDRINUSE, "taken"), 7),
        (FileNotFoundError(errno.ENOENT, "gone"), 4),
        (ConnectionRefusedError(), 6),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), 70),
        (AssertionError(), 70),
    ],
)
def test_codes(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_packages_above_register_their_own() -> None:
    class OursError(Exception):
        pass

    class NearerError(OursError):
        pass

    assert exit_code_of(NearerError()) is ExitCode.BUG
    register(OursError, ExitCode.REFUSED)
    register(OursError, ExitCode.REFUSED)
    assert exit_code_of(NearerError()) is ExitCode.REFUSED
    with pytest.raises(ValueError, match="OursError already ends in exit code"):
        register(OursError, ExitCode.CORRUPT)
