"""Findings: what an examination saw, with its cure, and how they are printed.

One rule: a finding names the thing seen; its cure names the setting, permission or command to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from s3core.console import write_line
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode, exit_code_of

CHECK_WIDTH = 20

Verdict = Literal["ok", "note", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen. `cure` says what to change, empty where nothing needs it; `code` is the exit code of a fault."""

    check: str
    verdict: Verdict
    said: str
    cure: str = ""
    code: ExitCode = ExitCode.FINDING

    def as_record(self) -> dict[str, str]:
        """What `--json` tells of it."""
        return {"check": self.check, "verdict": self.verdict, "said": self.said, "cure": self.cure}


def finding_of(check: str, error: StoreError) -> Finding:
    """The fault an error is, its hint as the cure."""
    said = str(error).removesuffix(f" ({error.hint})") if error.hint else str(error)
    return Finding(check, "fault", said, error.hint, exit_code_of(error))


def exit_code_for(findings: Sequence[Finding]) -> ExitCode:
    """OK without faults, else the code of the first: what a script that waits for a server wants to know."""
    return next((finding.code for finding in findings if finding.verdict == "fault"), ExitCode.OK)


def write_finding(finding: Finding, width: int = CHECK_WIDTH) -> None:
    """A line for it, its cure below. `width`: of the column of names."""
    write_line(f"{finding.verdict:<9}  {finding.check:<{width}}  {finding.said}")
    if finding.cure:
        write_line(f"{'':<9}  {'':<{width}}  -> {finding.cure}")
