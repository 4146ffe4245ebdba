"""Completion reports of S3 Batch Operations become results, and only of what is on the mirror."""

import csv
import io
from pathlib import Path

import pytest

from cowsync.changes import LineResult, Outcome, PlanLine
from cowsync.errors import Refused
from cowsync.plan import plan_file
from cowsync.plan.exports import Format, export
from cowsync.plan.format import PlanHead
from cowsync.plan.plan_file import Plan, write_plan
from cowsync.plan.results import ReportCount, ReportRow, line_results, read_report
from s3core.bucket import ObjectFacts
from tests.cowsync.plan.lines import add, modify, vanish

HEAD = PlanHead("odd", "s3://aws/from/data/", "s3://aws/to/data/", "", 1)
# As the User Guide shows them: the HTTP code before the error code, in spite of its own schema.
GUIDE = """from,data/image_1,,succeeded,200,,"{u'ETag': '""fe66""'}"
from,data/image_2,,failed,200,PermanentFailure,"Lambda returned function error: {""errorMessage"":""timed out""}"
"""


def facts(line: PlanLine) -> ObjectFacts:
    return ObjectFacts(line.key, line.size, f"mirror of {line.key}", 0.0, "mv1")


def results(plan: Plan, text: str, **held: ObjectFacts | None) -> tuple[dict[int, LineResult], ReportCount]:
    count = ReportCount()
    rows = read_report(io.StringIO(text, newline=""))
    found = line_results(plan, rows, lambda line: held.get(line.key, facts(line)), count)
    return {one.number: one for one in found}, count


def row(key: str, status: str = "succeeded", error: str = "", http: str = "200", version: str = "") -> str:
    return f"from,data/{key},{version},{status},{error},{http},\n"


def test_rows_of_the_guide() -> None:
    assert list(read_report(io.StringIO(GUIDE, newline=""))) == [
        ReportRow("from", "data/image_1", "", True, "", "200", "{u'ETag': '\"fe66\"'}"),
        ReportRow(
            "from",
            "data/image_2",
            "",
            False,
            "PermanentFailure",
            "200",
            'Lambda returned function error: {"errorMessage":"timed out"}',
        ),
    ]
    swapped = next(read_report([row("a", "failed", "AccessDenied", "403")]))
    assert (swapped.error, swapped.http) == ("AccessDenied", "403")


def test_each_kind_of_row(tmp_path: Path) -> None:
    lines = [add(f"k{n}", 100 + n, version_id="v1" if n == 7 else "") for n in range(9)] + [vanish("k9")]
    plan = write_plan(tmp_path, HEAD, lines)
    text = "".join(
        (
            row("k0"),
            row("k1", "failed", "AccessDenied", "403"),
            row("k2", "failed", "404", "NoSuchKey"),
            row("k3", "failed", "PreconditionFailed", "412"),
            row("k4"),
            row("k5"),
            row("k7", version="v2"),
            row("k9"),
            row("stranger"),
            "from,other/k0,,succeeded,,200,\n",
        )
    )
    found, count = results(plan, text, k4=None, k5=ObjectFacts("k5", 1, "x", 0.0))
    assert found[0] == LineResult(0, Outcome.DONE, "mirror of k0", "mv1", 0, 100, 0, "S3 Batch Operations")
    assert {number: one.outcome.value for number, one in found.items()} == {
        0: "done",
        1: "failed",
        2: "moved",
        3: "moved",
        4: "failed",
        5: "drifted",
        7: "moved",
    }
    assert found[1].message == "403 AccessDenied"
    assert found[4].message == "reported as copied, but it is not on the mirror"
    assert found[5].message == "the mirror holds 1 bytes, the plan says 105"
    assert count == ReportCount(rows=10, done=1, moved=3, drifted=1, failed=2, strangers=3)


def test_a_report_on_our_own_manifest_names_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd keys too, in chunks, in another order than the plan's, and each frame of the plan is read once for a chunk."""
    monkeypatch.setattr(plan_file, "FRAME_LINES_MAX", 3)
    keys = ["a b", "a+b", "a%20b", "ü", "x\ny", 'q"uote', "c,omma", "plain", "z/./z", "'"]
    plan = write_plan(tmp_path, HEAD, sorted(map(modify, keys), key=lambda line: line.key))
    done = export(plan, Format.S3_BATCH, tmp_path / "out")
    with (done.folder / "copy.csv").open(newline="") as file:
        manifest = list(csv.reader(file))
    report = "".join(f"{bucket},{key},,succeeded,,200,Successful\r\n" for bucket, key in reversed(manifest))
    count = ReportCount()
    found = list(line_results(plan, read_report(io.StringIO(report)), facts, count, chunk_rows=4))
    assert sorted(one.number for one in found) == list(range(10))
    assert {one.mirror_etag for one in found} == {f"mirror of {key}" for key in keys}
    assert count.done == 10


def test_keys_that_are_not_encoded_are_found_too(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, [add("a+b"), add("c%zz")])
    found, _ = results(plan, row("a+b") + row("c%zz"))
    assert set(found) == {0, 1}


def test_the_last_row_of_a_line_comes_last(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, [add("a")])
    found, count = results(plan, row("a", "failed", "SlowDown", "503") + row("a"))
    assert found[0].outcome is Outcome.DONE
    assert (count.done, count.failed) == (1, 1)


def test_another_buckets_report_is_refused(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, [add("a")])
    with pytest.raises(Refused, match="of bucket other, the plan of from"):
        results(plan, "other,data/a,,succeeded,,200,\n")
    found, _ = results(plan, "arn:aws:s3:::from,data/a,,succeeded,,200,\n")
    assert set(found) == {0}


@pytest.mark.parametrize(
    "text", ['{"Format": "Report_CSV_20180820"}', "a,b\n", "a,b,c,maybe,e,f,g\n", 'a,b,c,succeeded,e,f,"g'], ids=str
)
def test_what_is_no_report_is_refused_by_line(text: str) -> None:
    with pytest.raises(Refused, match="line 1 is not"):
        list(read_report(io.StringIO(text, newline="")))
