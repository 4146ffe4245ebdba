"""docs/envctl/accounts.md says what is so."""

import re

from envctl.accounts import limits, passwords, totp
from envctl.accounts.scopes import NOUNS
from tests.architecture.tree import ROOT

TEXT = (ROOT / "docs" / "envctl" / "accounts.md").read_text(encoding="utf-8")


def table(head: str) -> list[list[str]]:
    """Rows of the table whose first column has that head."""
    lines = TEXT.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_scope_is_told() -> None:
    assert {re.sub("`", "", scope): words for scope, words in table("Scope")} == {
        f"{noun}:read, {noun}:write": words for noun, words in NOUNS.items()
    }


def test_limits_are_those_of_the_program() -> None:
    found = [[int(cell.removesuffix(" s")) for cell in row[1:]] for row in table("Counted by")]
    policies = (limits.ADDRESS, limits.ACCOUNT, limits.SECOND_FACTOR)
    assert found == [[one.free, one.first_wait_s, one.wait_max_s, one.quiet_s] for one in policies]
    assert f"at least {passwords.CHARACTERS_MIN} characters" in TEXT
    assert totp.RECOVERY_CODES == 10
    assert "one of ten recovery codes" in TEXT
    assert passwords.AT_ONCE == 2
    assert "two are compared at a time" in TEXT
