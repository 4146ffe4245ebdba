"""Golden bytes of a published status and of a month's counts.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_status` writes missing ones.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from s3core.exit_codes import ExitCode
from s3core.spending import Spent, decode_month, encode_month
from s3core.status import HostStatus, Item, Money, decode, encode

GOLDEN = Path(__file__).parent / "golden"
STATUS = HostStatus(
    "pve1",
    1_795_000_000.5,
    "0.1.0",
    (
        Item(
            "volume",
            "vm1",
            "critical",
            "ready, portal, 1 session, RPO 2 min (3.5 MiB), journal 40 %",
            "the store does not answer; writes wait in the journal",
            "runbook/store-unreachable.md",
            ExitCode.UNAVAILABLE,
            {"served": True, "rpo_seconds": 120.25, "rpo_bytes": 3670016, "door": "portal", "lease_seconds_left": None},
        ),
        Item("mirror", "photos-ü", "ok", "last run clean 3 min ago, lag 5 min"),
    ),
    "2026-11",
    (
        Money("ceph", 120, 4096, 8192, 3),
        Money("aws", 1500, 1 << 30, 1 << 20, 0, "USD", 0.0075, 5 << 30, 0.115),
    ),
)
MONTH = {
    "aws": Spent(put=1000, list=20, get=480, delete=9, up=1 << 30, down=1 << 20),
    "ceph": Spent(put=4, list=3, get=2, up=5, down=7, errors=1, failed_at=1_794_999_000, failure="slow down"),
}
FILES: dict[str, Callable[[], bytes]] = {
    "status.v1.json": lambda: encode(STATUS),
    "spending.v1.json": lambda: encode_month("2026-11", MONTH),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_what_it_always_was(name: str) -> None:
    assert FILES[name]() == (GOLDEN / name).read_bytes()


def test_what_was_written_reads_as_it_was_meant() -> None:
    assert decode((GOLDEN / "status.v1.json").read_bytes(), host="pve1") == STATUS
    assert decode_month("2026-11", (GOLDEN / "spending.v1.json").read_bytes()) == MONTH


def test_members_that_a_later_version_adds_are_passed_over() -> None:
    data = (GOLDEN / "status.v1.json").read_bytes().replace(b'"host":"pve1"', b'"host":"pve1","more":[1]')
    assert decode(data.replace(b'"kind":"volume"', b'"kind":"volume","more":{}'), host="pve1") == STATUS


def main() -> None:
    for name, made in FILES.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(made())


if __name__ == "__main__":
    main()
