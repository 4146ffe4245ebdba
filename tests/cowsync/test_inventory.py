"""Plans from an S3 Inventory are those that a listing of the same bucket gives; what is not whole gives none."""

import csv
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow
import pyarrow.parquet
import pytest

from cowsync.changes import Op, Outcome
from cowsync.cli import app
from cowsync.errors import Refused
from cowsync.import_commands import plan_inventory
from cowsync.scan.inventory import inventory_rows, open_inventory
from cowsync.scan.listing import Listed
from cowsync.work import Planned
from s3core.bucket import Bucket
from s3core.console import run
from s3core.exit_codes import ExitCode
from tests.cowsync.worlds import World

FIELDS = {
    "Bucket": "bucket",
    "Key": "key",
    "VersionId": "version_id",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "StorageClass": "storage_class",
}
"""As a CSV's schema has them, and a Parquet file."""
ODD = [
    "a b",
    "a+b",
    "a%2Bb",
    "a%20b",
    "é",
    "\ufffd",
    "\U0001f600",
    'q"uote',
    "x,y",
    "line\nend",
    " lead",
    "z" * 1020,
    "A",
    "a/",
    "'",
]
FORMS = ["CSV", "Parquet"]


@dataclass
class Given:
    """An inventory to be written: `rows` have every field of S3's, in any order."""

    rows: list[dict[str, Any]]
    bucket: str = "source"
    created: float = 0.0
    fields: list[str] = field(default_factory=lambda: list(FIELDS))

    def write(self, folder: Path, form: str) -> Path:
        """In two files, as S3 lays them out. Returns the folder of the manifest."""
        data, dated = folder / "data", folder / "2026-01-01T00-00Z"
        data.mkdir(parents=True)
        dated.mkdir()
        half = len(self.rows) // 2
        files = []
        for number, rows in enumerate((self.rows[half:], self.rows[:half])):
            path = data / (f"{number}.csv.gz" if form == "CSV" else f"{number}.parquet")
            (self._csv if form == "CSV" else self._parquet)(path, rows)
            content = path.read_bytes()
            files.append({"key": f"pre/{path.name}", "size": len(content), "MD5checksum": md5(content).hexdigest()})
        manifest = {
            "sourceBucket": self.bucket,
            "destinationBucket": "arn:aws:s3:::inventories",
            "version": "2016-11-30",
            "creationTimestamp": str(int(self.created * 1000)),
            "fileFormat": form,
            "fileSchema": ", ".join(self.fields) if form == "CSV" else "message s3.inventory { }",
            "files": files,
        }
        (dated / "manifest.json").write_text(json.dumps(manifest))
        (dated / "manifest.checksum").write_text(md5((dated / "manifest.json").read_bytes()).hexdigest() + "\n")
        return dated

    def _csv(self, path: Path, rows: list[dict[str, Any]]) -> None:
        with gzip.open(path, "wt", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            for row in rows:
                texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
                writer.writerow([*({**texts, "Key": quote_plus(row["Key"], safe="/")}[name] for name in self.fields)])

    def _parquet(self, path: Path, rows: list[dict[str, Any]]) -> None:
        kinds = {"Size": pyarrow.int64(), "LastModifiedDate": pyarrow.timestamp("ms", tz="UTC")}
        kinds |= dict.fromkeys(("IsLatest", "IsDeleteMarker"), pyarrow.bool_())
        columns: dict[str, Any] = {}
        for name in self.fields:
            values = [row[name] for row in rows]
            if name == "LastModifiedDate":
                values = [datetime.fromisoformat(value) if value else None for value in values]
            columns[FIELDS[name]] = pyarrow.array(values, kinds.get(name, pyarrow.string()))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)


def rows_of(bucket: Bucket) -> list[dict[str, Any]]:
    page = bucket.list_page(max_keys=1000)
    assert not page.truncated
    texts = (map(bytes.decode, column) for column in (page.keys, page.etags, page.modified, page.classes))
    return [
        {
            **dict.fromkeys(FIELDS, ""),
            "Bucket": "source",
            "Key": key,
            "Size": size,
            "ETag": etag,
            "LastModifiedDate": modified,
            "StorageClass": storage_class,
            "IsLatest": True,
            "IsDeleteMarker": False,
        }
        for key, etag, modified, storage_class, size in zip(*texts, page.sizes, strict=True)
    ]


def imported(world: World, given: Given, form: str) -> Planned:
    given.created = given.created or world.clock.time()
    folder = given.write(world.folder / f"inventory-{len(list(world.folder.iterdir()))}", form)
    return plan_inventory(world.mirror(), open_inventory([folder]), now=world.clock.time)


def keys_of(given: Given, folder: Path, form: str, prefix: str = "") -> list[bytes]:
    spill = folder / "spill"
    spill.mkdir()
    listed = Listed(b"")
    inventory = open_inventory([given.write(folder / "inventory", form)])
    keys = [key for rows in inventory_rows(inventory, prefix, listed, spill) for key in rows.keys]
    assert listed.complete
    return keys


@pytest.mark.parametrize("form", FORMS)
def test_the_plan_is_that_of_a_listing(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    for key in [*ODD, ".cowsync/ours"]:
        world.source.put(key, key.encode())
    world.clock.sleep(3600)
    first = imported(world, Given(list(reversed(rows_of(world.source)))), form)
    assert first.plan.digest == world.plan().plan.digest
    assert (first.scan.keys, first.scan.reserved, first.scan.requests) == (len(ODD), 1, 0)
    assert world.apply(first).result.complete
    world.clock.sleep(3600)
    assert imported(world, Given(rows_of(world.source)), form).clean
    world.source.put("é", b"another")
    world.source.put("new", b"new")
    world.source.delete("A")
    world.clock.sleep(3600)
    planned = imported(world, Given(rows_of(world.source)), form)
    assert planned.plan.digest == world.plan().plan.digest
    assert {line.key: line.op for line in planned.plan} == {"A": Op.VANISH, "new": Op.ADD, "é": Op.MODIFY}


@pytest.mark.parametrize("form", FORMS)
def test_the_summary_tells_of_the_inventory(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    world.source.put("k", b"data")
    planned = imported(world, Given(rows_of(world.source)), form)
    summary = planned.plan.summary()
    assert planned.scan.inventory
    assert f"from the inventory of {planned.scan.inventory}" in str(summary["text"])
    assert isinstance(summary["scan"], dict)
    assert summary["scan"]["inventory"] == planned.scan.inventory


@pytest.mark.parametrize("form", FORMS)
def test_only_the_latest_version_counts_and_no_delete_marker(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    for key in ("kept", "deleted"):
        world.source.put(key, b"data")
    rows = rows_of(world.source)
    for row in rows:
        row["VersionId"] = "v2"
    old = [{**row, "VersionId": "v1", "IsLatest": False, "ETag": "0" * 32} for row in rows]
    marker = {**rows[0], "VersionId": "v3", "IsDeleteMarker": True, "ETag": None, "Size": None}
    rows[0]["IsLatest"] = False
    planned = imported(world, Given([*old, *rows, marker]), form)
    assert [(line.key, line.version_id, line.etag) for line in planned.plan] == [("kept", "v2", rows[1]["ETag"])]


@pytest.mark.parametrize("form", FORMS)
def test_what_an_old_inventory_says_is_not_carried_out(tmp_path: Path, form: str) -> None:
    world = World(tmp_path, vanished="remove", vanished_runs=1, vanished_s=0.0)
    for key in ("changed", "deleted", "gone"):
        world.source.put(key, b"one")
    world.clock.sleep(10)
    old = rows_of(world.source)
    world.source.put("changed", b"two")
    world.source.delete("gone")
    world.run()
    with pytest.raises(Refused, match="before run 1 was published"):
        imported(world, Given(old, created=world.clock.time() - 5), form)
    world.clock.sleep(10)
    # It was begun after the run, but has what S3 knew before.
    lagging = [row for row in old if row["Key"] != "gone"]
    assert imported(world, Given(lagging), form).clean
    world.source.delete("deleted")
    world.run()
    world.clock.sleep(10)
    # A listing would remove `deleted` now.
    assert [line.op for line in world.plan().plan] == [Op.REMOVE]
    assert imported(world, Given([row for row in lagging if row["Key"] == "changed"]), form).clean


def test_an_object_that_changed_after_the_inventory_is_left_to_the_next_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    for key in ("moved", "still"):
        world.source.put(key, b"one")
    planned = imported(world, Given(rows_of(world.source)), "CSV")
    world.source.put("moved", b"two")
    result = world.apply(planned).result
    assert (result.done, result.counts[Op.ADD][Outcome.MOVED]) == (1, 1)
    assert world.mirrored() == {"still": b"one"}
    assert world.run().result.complete
    assert world.mirrored() == {"still": b"one", "moved": b"two"}


@pytest.mark.parametrize("form", FORMS)
def test_keys_are_below_the_prefix_and_in_the_order_of_their_bytes(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    for key in ("a+b/", *(f"a+b/{key}" for key in ODD), "a b/other", "a"):
        world.source.put(key, b"")
    assert keys_of(Given(rows_of(world.source)), tmp_path, form, "a+b/") == sorted(key.encode() for key in ODD)


@pytest.mark.parametrize("form", FORMS)
def test_more_rows_than_one_page(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    world.source.put("k", b"")
    (row,) = rows_of(world.source)
    keys = [f"{number * 7919 % 12_000}" for number in range(12_000)]
    rows = [{**row, "Key": key} for key in keys]
    assert keys_of(Given(rows), tmp_path, form) == sorted(key.encode() for key in keys)


def drop(*names: str) -> Callable[[Given], None]:
    def change(given: Given) -> None:
        given.fields = [name for name in given.fields if name not in names]

    return change


def twice(given: Given) -> None:
    given.rows.append({**given.rows[0]})


def without_etag(given: Given) -> None:
    given.rows[0]["ETag"] = None


def elsewhere(given: Given) -> None:
    given.bucket = "other"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("ETag"), "lacks ETag"),
        (drop("Size", "LastModifiedDate"), "lacks Size, Last modified date"),
        (twice, "the key 'k0' twice"),
        (without_etag, "no size, ETag or time for the key 'k0'"),
        (elsewhere, "is of bucket other, the source of mirror m is source"),
    ],
)
def test_an_inventory_that_cannot_be_planned_from(
    tmp_path: Path, form: str, change: Callable[[Given], None], told: str
) -> None:
    world = World(tmp_path)
    for number in range(4):
        world.source.put(f"k{number}", b"data")
    given = Given(rows_of(world.source))
    change(given)
    with pytest.raises(Refused, match=told):
        imported(world, given, form)
    assert not world.mirror().plans.exists()
    assert world.run().result.complete


@pytest.mark.parametrize("form", FORMS)
def test_an_inventory_of_current_versions_lacks_what_is_not_needed(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    world.source.put("k", b"data")
    given = Given(rows_of(world.source))
    drop("VersionId", "IsLatest", "IsDeleteMarker", "StorageClass")(given)
    assert [line.key for line in imported(world, given, form).plan] == ["k"]


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(tmp_path: Path, form: str) -> None:
    world = World(tmp_path)
    for number in range(50):
        world.source.put(f"k{number}", b"data")
    folder = Given(rows_of(world.source)).write(tmp_path / "inventory", form)
    first, second = sorted((tmp_path / "inventory" / "data").iterdir())
    whole = first.read_bytes()
    for broken in (whole[:-9], whole[:40] + b"x" + whole[41:], b""):
        first.write_bytes(broken)
        with pytest.raises(Refused, match="its MD5 is not that in the manifest"):
            open_inventory([folder])
    # A file that was written broken has the MD5 of a broken file.
    manifest = json.loads((folder / "manifest.json").read_bytes())
    first.write_bytes(whole[: len(whole) // 2])
    manifest["files"][0]["MD5checksum"] = md5(first.read_bytes()).hexdigest()
    (folder / "manifest.checksum").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="cannot be read"):
        plan_inventory(world.mirror(), open_inventory([folder]), now=world.clock.time)
    assert not world.mirror().plans.exists()
    first.unlink()
    with pytest.raises(Refused, match="which is not here"):
        open_inventory([folder])
    (tmp_path / first.name).write_bytes(b"")
    with pytest.raises(Refused, match="its MD5"):
        open_inventory([folder, tmp_path / first.name])
    with pytest.raises(Refused, match="0 manifests"):
        open_inventory([second])


def test_manifests_that_are_none(tmp_path: Path) -> None:
    folder = Given([]).write(tmp_path / "inventory", "CSV")
    path = folder / "manifest.json"
    whole = json.loads(path.read_bytes())
    path.write_text(path.read_text() + " ")
    with pytest.raises(Refused, match=r"not that in manifest\.checksum"):
        open_inventory([path])
    (folder / "manifest.checksum").unlink()
    for text, told in [
        ("{", "is not JSON"),
        ("[]", "no JSON object"),
        ("{}", "sourceBucket"),
        (json.dumps({**whole, "fileFormat": "ORC"}), "inventory in ORC"),
        (json.dumps({**whole, "creationTimestamp": "yesterday"}), "yesterday"),
        (json.dumps({**whole, "files": [{"key": "x"}]}), "MD5checksum"),
    ]:
        path.write_text(text)
        with pytest.raises(Refused, match=told):
            open_inventory([path])
    path.write_text(json.dumps(whole))
    (tmp_path / "stranger.csv.gz").touch()
    with pytest.raises(Refused, match="none of the files"):
        open_inventory([path, tmp_path / "stranger.csv.gz"])


def test_without_duckdb_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(Refused, match="needs DuckDB") as caught:
        keys_of(Given([]), tmp_path, "CSV")
    assert "bucketworks[inventory]" in caught.value.hint


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from s3core.bucket_stack import open_bucket

    name = tmp_path.name.replace("_", "-")
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mirror.m]\nsource = "memory:{name}-s"\ntarget = "memory:{name}-t"\nstate_dir = "{tmp_path}/state"\n'
    )
    source, _ = open_bucket(f"memory:{name}-s")
    source.put("k", b"data")
    given = Given(rows_of(source), bucket=f"{name}-s", created=2e9)
    folder = given.write(tmp_path / "inventory", "CSV")
    words = ["import-inventory", "m", str(folder), "--config", str(config)]
    assert run(app, "cowsync", words) == ExitCode.FINDING
    assert "1 objects listed" in (text := capsys.readouterr().out)
    assert "from the inventory of 2033-05-18T03:33:20+00:00" in text
    assert run(app, "cowsync", ["apply", "m", "--config", str(config)]) == ExitCode.OK
    capsys.readouterr()
    assert run(app, "cowsync", [*words, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["scan"]["inventory"] == "2033-05-18T03:33:20+00:00"
    (folder / "manifest.json").unlink()
    assert run(app, "cowsync", words) == ExitCode.REFUSED
    assert run(app, "cowsync", ["import-inventory", "m", str(tmp_path / "none"), "--config", str(config)]) == 2
