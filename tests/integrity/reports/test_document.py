"""The verdict of a report, its bytes and its signature."""

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from integrity.errors import Malformed, Rejected, Tampered
from integrity.reports.document import Part, Problem, encode, ulid
from integrity.reports.findings import taken
from integrity.reports.signing import check_file, open_signed, sign
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint, sign_checkpoint
from integrity.tlog.note import Signer, open_note
from tests.integrity.reports.worlds import T0, busy, document, hostile

FOUND = {"code": "UNLOGGED_DELETE", "bucket": "photos", "key": "a", "said": "It is gone."}
EXPLAINED = {**FOUND, "explained": "lifecycle rule tmp"}
TAMPERED = Problem("tampered", "log/a.1/tile/0/000", "its hash is another")
AWAY = Problem("unread", "s3://ceph/ledger", "no answer")
STALE = Problem("anomaly", "pve1.1", "no checkpoint for an hour")
UNREAD = [Part("pve1.1", None, "", 0, 0, said="not reached")]


@pytest.mark.parametrize(
    ("word", "code", "problems", "findings", "parts"),
    [
        ("VERIFIED", 0, [], None, None),
        ("VERIFIED", 0, [], [], None),
        ("VERIFIED", 0, [], [EXPLAINED], None),
        ("ANOMALIES", 1, [], [FOUND, EXPLAINED], None),
        ("ANOMALIES", 1, [STALE], None, None),
        ("VERIFIED", 0, [], None, UNREAD),
        ("INCOMPLETE", 11, [AWAY], [FOUND], None),
        ("INCOMPLETE", 6, [AWAY], [FOUND], UNREAD),
        ("TAMPERED", 12, [TAMPERED], None, None),
        ("TAMPERED", 12, [AWAY, TAMPERED, STALE], [FOUND], UNREAD),
    ],
)
def test_the_verdict(
    word: str, code: int, problems: list[Problem], findings: list[dict[str, str]] | None, parts: list[Part] | None
) -> None:
    made = document(busy(10), problems=problems, findings=findings, parts=parts)
    assert (made["verdict"]["word"], made["verdict"]["code"]) == (word, code)


def test_what_was_not_read_is_said() -> None:
    parts = [
        Part("a.1", 100, "ab", 20, 90),
        Part("b.1", None, "", 0, 0, said="not reached"),
        Part("c.1", 5, "cd", 0, 5),
    ]
    left = "\n".join(document([], parts=parts)["not_read"])
    assert "was not compared with the ledger" in left
    assert "a.1: the first 20 records" in left
    assert "a.1: the last 10 records" in left
    assert "b.1: not reached" in left
    assert "c.1" not in left


@pytest.mark.parametrize("records", [busy(500), hostile(), []])
def test_the_document_is_canonical_json(records: list[dict[str, object]]) -> None:
    made = document(records, findings=[FOUND])
    assert encode(made) == rfc8785.dumps(made)


def test_a_signed_report_is_checked_by_its_key_alone() -> None:
    signer = Signer("example.com/ledger", bytes(32))
    files = {"json": b"{}", "html": b"<!doctype html>"}
    note = sign("example.com/ledger", ulid(T0, 7), files, signer)
    signed = open_signed(note, [signer.verifier])
    assert (signed.origin, signed.number, signed.signers) == (
        "example.com/ledger",
        ulid(T0, 7),
        ("example.com/ledger",),
    )
    for suffix, data in files.items():
        check_file(signed, suffix, data)
        with pytest.raises(Tampered, match="is not the file that was signed"):
            check_file(signed, suffix, data + b" ")
    with pytest.raises(Rejected):
        open_signed(note, [Signer("example.com/ledger", b"x" * 32).verifier])
    with pytest.raises(Rejected):
        open_signed(note.replace(b"json", b"html", 1), [signer.verifier])


def test_a_report_is_no_checkpoint_and_a_checkpoint_no_report() -> None:
    signer = Signer("example.com/ledger", bytes(32))
    note = sign("example.com/ledger", ulid(T0, 7), {"json": b"{}"}, signer)
    with pytest.raises(Malformed):
        parse_checkpoint(open_note(note, [signer.verifier]).text)
    checkpoint = sign_checkpoint(Checkpoint("example.com/ledger", 5, bytes(32)), signer)
    assert open_checkpoint(checkpoint, "example.com/ledger", [signer.verifier]).size == 5
    with pytest.raises(Malformed, match="not the note of a report"):
        open_signed(checkpoint, [signer.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "bucketworks/ledger-report/v1\n",
        "bucketworks/ledger-report/v1\no\nN\njson 0 0\n",
        f"bucketworks/ledger-report/v2\no\n{ulid(T0, 1)}\njson {'0' * 64} 5\n",
        f"bucketworks/ledger-report/v1\no\n{ulid(T0, 1)}\nhtml {'0' * 64} 5\n",
        f"bucketworks/ledger-report/v1\no\n{ulid(T0, 1)}\njson {'0' * 64} 5\njson {'1' * 64} 5\n",
        f"bucketworks/ledger-report/v1\no\n../../etc\njson {'0' * 64} 5\n",
    ],
)
def test_another_signed_text_is_no_report(text: str) -> None:
    from integrity.tlog.note import sign_note

    signer = Signer("k", bytes(32))
    with pytest.raises(Malformed):
        open_signed(sign_note(text, signer), [signer.verifier])


def test_numbers_of_reports_sort_as_their_times_do() -> None:
    numbers = [ulid(T0 + i * 0.5) for i in range(20)]
    assert numbers == sorted(numbers)
    assert {len(number) for number in numbers} == {26}


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"findings": 3}', b"\xff", b"null", b'{"findings": {}}'])
def test_a_file_that_is_no_reconciliation_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match=r"f\.json"):
        taken(data, "f.json")


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["code", "key", "said", "since", "until", "explained", "records"]), _values),
        max_size=4,
    )
)
def test_findings_of_any_form_make_a_document(findings: list[dict[str, object]]) -> None:
    made = document([], findings=findings)
    assert len(made["findings"]) == len(findings)
    encode(made)
