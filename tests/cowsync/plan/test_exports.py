"""Every export is read back by a reader that is not ours, with keys as odd as S3 allows."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote_plus

import boto3
import pyarrow.parquet
import pytest

from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused
from cowsync.plan import exports
from cowsync.plan.exports import Exported, Format, export
from cowsync.plan.format import PlanHead
from cowsync.plan.plan_file import Plan, write_plan
from s3core.bucket import COPY_BYTES_MAX
from tests.cowsync.plan.lines import add, modify, remove, vanish
from tests.servers.moto_server import MotoServer

HEAD = PlanHead("odd", "s3://aws/from/data/", "s3://aws/to/copies/data/", "", 1)
PLAIN = ["a", "b/c.txt", "b/d"]
ODD = [
    " leading and trailing ",
    "#comment",
    "; semicolon",
    "--flag",
    "-",
    "'single' \"double\" \\back",
    "star * and ? and [x] and {y}",
    "comma,semi;tab",
    "100% +plus&and=",
    "$HOME `id` !bang",
    "ünï/日本語/\U0001f600",
    "e\u0301",
    "trailing.",
    "~tilde",
    "con/aux",
    "x" * 900,
]
NOT_FOR_RCLONE = ["line\nfeed", "return\r", "/slash", "slash/", "a//b", "./dot", "dot/..", "bell\a", "tab\t", "sign␀"]
NOT_FOR_S5CMD = ["line\nfeed", "/slash", "slash/", "url://x"]
NOT_FOR_DATASYNC = ["line\nfeed", "return\r", "slash/"]
LARGE = COPY_BYTES_MAX + 1


def planned(tmp_path: Path, keys: list[str], *more: PlanLine, head: PlanHead = HEAD) -> Plan:
    lines = [add(key) if n % 2 else modify(key) for n, key in enumerate(keys)]
    return write_plan(tmp_path / "plans", head, sorted([*lines, *more], key=lambda line: line.key))


def exported(tmp_path: Path, plan: Plan, form: Format, *, piece_lines: int = 10_000) -> Exported:
    return export(plan, form, tmp_path / "out" / form, piece_lines=piece_lines)


def unable(done: Exported) -> dict[str, str]:
    path = done.folder / "unable.jsonl"
    rows = [json.loads(row) for row in path.read_text().split("\n")[:-1]] if path.exists() else []
    assert len(rows) == done.unable
    return {row["key"]: row["unable"] for row in rows}


EVERY = [*PLAIN, *ODD, *dict.fromkeys([*NOT_FOR_RCLONE, *NOT_FOR_S5CMD, *NOT_FOR_DATASYNC])]
OTHERS = (vanish("v"), remove("w"))


def test_json_lines_are_the_plan(tmp_path: Path) -> None:
    plan = planned(tmp_path, EVERY, *OTHERS)
    done = exported(tmp_path, plan, Format.JSONL)
    rows = [json.loads(row) for row in (done.folder / "plan.jsonl").read_text().split("\n")[:-1]]
    assert rows == [{"number": number, **asdict(line)} for number, line in plan.read()]
    assert done.to_json()["files"] == {"plan.jsonl": len(plan)}


def test_parquet_is_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_PARQUET_ROWS", 7)
    plan = planned(tmp_path, EVERY, *OTHERS)
    done = exported(tmp_path, plan, Format.PARQUET)
    table = pyarrow.parquet.read_table(done.folder / "plan.parquet")
    assert table.to_pylist() == [{"number": number, **asdict(line), "op": str(line.op)} for number, line in plan.read()]
    assert str(table.schema.field("size").type) == "int64"
    empty = exported(tmp_path / "empty", planned(tmp_path / "empty", []), Format.PARQUET)
    assert pyarrow.parquet.read_table(empty.folder / "plan.parquet").num_rows == 0


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refused, match="pyarrow") as raised:
        exported(tmp_path, planned(tmp_path, PLAIN), Format.PARQUET)
    assert "bucketworks[parquet]" in raised.value.hint
    assert os.listdir(tmp_path / "out") == []


def test_the_manifests_of_s3_batch_operations(tmp_path: Path) -> None:
    more = (add("big", LARGE), add("fits", COPY_BYTES_MAX), modify("versioned key", version_id="v+1/x"), *OTHERS)
    done = exported(tmp_path, planned(tmp_path, EVERY, *more), Format.S3_BATCH)
    with (done.folder / "copy.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert {bucket for bucket, _ in rows} == {"from"}
    assert [unquote_plus(key) for _, key in rows] == sorted([*(f"data/{key}" for key in EVERY), "data/fits"])
    assert all(set(key) <= set(_FORM) for _, key in rows)
    assert (done.folder / "copy-versions.csv").read_text() == "from,data/versioned+key,v+1/x\n"
    assert json.loads((done.folder / "large.jsonl").read_text())["key"] == "big"
    assert (done.unable, done.left_out) == (0, 2)
    assert done.files == {"copy.csv": len(EVERY) + 1, "copy-versions.csv": 1, "large.jsonl": 1}
    assert "TargetKeyPrefix copies/" in done.notes[0]


_FORM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/%+"


def test_what_batch_operations_cannot_reach_is_refused(tmp_path: Path) -> None:
    other = PlanHead("x", "s3://aws/from/data/", "s3://aws/to/", "", 1)
    with pytest.raises(Refused, match="cannot become"):
        exported(tmp_path, planned(tmp_path, PLAIN, head=other), Format.S3_BATCH)
    local = PlanHead("x", "file:///srv/from", "s3://aws/to/", "", 1)
    with pytest.raises(Refused, match="not in S3"):
        exported(tmp_path, planned(tmp_path, PLAIN, head=local), Format.S3_BATCH)


def test_rclone_files_in_pieces_and_with_nul(tmp_path: Path) -> None:
    done = exported(tmp_path, planned(tmp_path, EVERY, *OTHERS), Format.RCLONE, piece_lines=4)
    pieces = sorted(done.folder.glob("files-from-*.txt"))
    taken = [key for piece in pieces for key in piece.read_bytes().decode().split("\n")[:-1]]
    assert [len(piece.read_bytes().split(b"\n")) - 1 for piece in pieces[:-1]] == [4] * (len(pieces) - 1)
    refused = unable(done)
    assert set(refused) == {*NOT_FOR_RCLONE, "url://x"}
    assert refused["line\nfeed"] == "has a line feed"
    assert taken == sorted(set(EVERY) - set(refused))
    assert (done.folder / "files-from.nul").read_bytes().decode().split("\0")[:-1] == sorted(EVERY)
    assert done.left_out == 2


@pytest.mark.skipif(not shutil.which("rclone"), reason="needs rclone: apt-get install rclone")
def test_rclone_copies_what_the_files_name(tmp_path: Path, moto_server: MotoServer) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=moto_server.url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    for bucket in ("rclone-from", "rclone-to"):
        client.create_bucket(Bucket=bucket)
    keys = [*PLAIN, *ODD]
    for key in (*keys, "not named"):
        client.put_object(Bucket="rclone-from", Key=f"data/{key}", Body=key.encode())
    done = exported(tmp_path, planned(tmp_path, keys), Format.RCLONE, piece_lines=7)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "RCLONE_CONFIG": str(tmp_path / "none.conf"),
        "RCLONE_CONFIG_X_TYPE": "s3",
        "RCLONE_CONFIG_X_PROVIDER": "Other",
        "RCLONE_CONFIG_X_ENDPOINT": moto_server.url,
        "RCLONE_CONFIG_X_ACCESS_KEY_ID": "test",
        "RCLONE_CONFIG_X_SECRET_ACCESS_KEY": "test",
    }
    for piece in sorted(done.folder.glob("files-from-*.txt")):
        # The emulator takes a `;` in x-amz-copy-source for its end: bytes go through rclone.
        options = ["--no-traverse", "--ignore-times", "--disable", "copy", "--retries", "1"]
        command = ["rclone", "copy", *options, "--files-from-raw", str(piece), "X:rclone-from/data", "X:rclone-to/copy"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stderr
    copied = [one["Key"] for one in client.list_objects_v2(Bucket="rclone-to").get("Contents", [])]
    assert sorted(copied) == sorted(f"copy/{key}" for key in keys)
    for key in keys:
        assert client.get_object(Bucket="rclone-to", Key=f"copy/{key}")["Body"].read() == key.encode()


def test_s5cmd_lines_are_shell_words(tmp_path: Path) -> None:
    keys = [key for key in EVERY if key not in NOT_FOR_S5CMD]
    plan = planned(tmp_path, [*keys, "slash/", "line\nfeed", "url://x"], add("v1", version_id="v+1/x"), *OTHERS)
    done = exported(tmp_path, plan, Format.S5CMD)
    lines = (done.folder / "s5cmd-run.txt").read_bytes().decode().split("\n")[:-1]
    assert [shlex.split(line) for line in lines] == [
        [
            *["cp", "--raw", *(["--version-id", "v+1/x"] if key == "v1" else [])],
            *[f"s3://from/data/{key}", f"s3://to/copies/data/{key}"],
        ]
        for key in sorted([*keys, "v1"])
    ]
    assert all(line == line.strip() for line in lines)
    assert set(unable(done)) == {"slash/", "line\nfeed", "url://x"}
    assert done.left_out == 2
    root = PlanHead("x", "s3://aws/from", "s3://aws/to", "", 1)
    bare = export(planned(tmp_path, ["/slash", "ok"], head=root), Format.S5CMD, tmp_path / "bare")
    assert (set(unable(bare)), bare.files) == ({"/slash"}, {"s5cmd-run.txt": 1})
    two = PlanHead("x", "s3://aws/from", "s3://minio/to", "", 1)
    with pytest.raises(Refused, match="one endpoint"):
        export(planned(tmp_path, PLAIN, head=two), Format.S5CMD, tmp_path / "two")


def test_the_manifest_of_datasync(tmp_path: Path) -> None:
    plan = planned(tmp_path, EVERY, add("versioned, key", version_id="v1"), *OTHERS)
    done = exported(tmp_path, plan, Format.DATASYNC)
    with (done.folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row for row in rows if len(row) == 2] == [["versioned, key", "v1"]]
    assert [row[0] for row in rows] == sorted([*(set(EVERY) - set(NOT_FOR_DATASYNC)), "versioned, key"])
    assert set(unable(done)) == set(NOT_FOR_DATASYNC)


def test_only_delete_has_what_is_removed(tmp_path: Path) -> None:
    plan = planned(tmp_path, PLAIN, *OTHERS)
    done = exported(tmp_path, plan, Format.DELETE)
    assert [json.loads(row)["key"] for row in (done.folder / "delete.jsonl").read_text().splitlines()] == ["w"]
    assert done.left_out == 4
    for form in (Format.S3_BATCH, Format.RCLONE, Format.S5CMD, Format.DATASYNC):
        files = exported(tmp_path, plan, form).folder
        assert not any(
            key in path.read_bytes() for path in files.iterdir() for key in (b"data/w\n", b"\nw\n", b"\0w\0")
        )
    assert {line.op for line in plan} == {Op.ADD, Op.MODIFY, Op.VANISH, Op.REMOVE}


def test_a_folder_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    plan = planned(tmp_path, PLAIN)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match="exists already"):
        export(plan, Format.JSONL, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
