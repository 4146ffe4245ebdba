"""The unit starts a command that there is."""

import re

from s3core.exit_codes import ExitCode
from tests.architecture.tree import ROOT


def test_the_unit_is_for_the_service_that_there_is() -> None:
    unit = (ROOT / "deploy/systemd/s3-envctl.service").read_text(encoding="utf-8")
    assert "\nExecStart=s3-envctl serve\n" in unit
    assert "\nType=notify\n" in unit
    prevented = re.search(r"^RestartPreventExitStatus=(.+)$", unit, re.MULTILINE)
    assert prevented is not None
    assert prevented[1].split() == [str(int(ExitCode.USAGE)), str(int(ExitCode.CONFIGURATION))]
