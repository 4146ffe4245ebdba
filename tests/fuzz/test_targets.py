"""Every decoder has a target, and no target raises: on its seeds, on what becomes of them, on any bytes."""

import ast
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import search
from tests.fuzz.targets import TARGETS, Target, mutated

ROOT = Path(__file__).parents[2]
PLACES = (
    "blockdev/iscsi",
    "blockdev/scsi",
    "blockdev/tcmu/netlink.py",
    "blockdev/tcmu/ring.py",
    "blockdev/control.py",
    "cowsync/apply/journal_format.py",
    "cowsync/plan/format.py",
    "cowsync/base/head.py",
    "cowsync/base/segment.py",
    "cowsync/base/snapshot.py",
    "integrity/ingest/access_logs.py",
    "integrity/ingest/batch_reports.py",
    "integrity/ingest/cloudtrail.py",
    "integrity/ingest/events.py",
    "integrity/ingest/minio_audit.py",
    "integrity/ingest/notifications.py",
    "integrity/ingest/rgw_ops_log.py",
    "s3core/notifications.py",
    "integrity/record.py",
    "integrity/tlog",
    "plugin/archive/compression.py",
    "plugin/archive/index.py",
    "plugin/archive/indexer.py",
    "plugin/archive/lzo.py",
    "plugin/archive/tar.py",
    "plugin/archive/vma.py",
    "plugin/archive/zstd_frames.py",
)
BYTES = re.compile(r"(?<!\[\[int\], )\b(bytes|bytearray|memoryview|Buffer|dict\[str, str\]|StreamReader)\b")

OURS = {
    "blockdev/control.py": "ControlServer._connected ControlServer._serve",
    "blockdev/iscsi/portal.py": "_copied _Link._send",
    "blockdev/scsi/mode.py": "_subpage",
    "blockdev/tcmu/netlink.py": "_request _attribute",
    "cowsync/base/segment.py": "name_of salted",
    "integrity/record.py": "encode",
    "integrity/tlog/note.py": "NoteVerifier.holds",
    "integrity/tlog/tree.py": "Frontier.append Frontier.extend",
    "plugin/archive/compression.py": "Decoder.feed",
    "plugin/archive/zstd_frames.py": "SeekableWriter.feed SeekableWriter._frame",
}
"""Functions whose bytes are our own, or that only carry a peer's to one that is run here: module -> names."""


def decoders() -> Iterator[tuple[str, str]]:
    """File and qualified name of every function that is handed bytes or text pairs. Constructors keep them only."""
    for place in PLACES:
        path = ROOT / place
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            name = str(file.relative_to(ROOT))
            ours = OURS.get(name, "").split()
            for qualified, node in _functions(ast.parse(file.read_text(encoding="utf-8")), ""):
                taken = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.annotation is not None]
                given_bytes = any(
                    BYTES.search(ast.unparse(a.annotation)) and "Callable" not in ast.unparse(a.annotation)
                    for a in taken
                    if a.annotation is not None
                )
                if given_bytes and qualified not in ours and not qualified.endswith("__init__"):
                    yield name, qualified


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
            yield from _functions(child, f"{prefix}{child.name}.<locals>.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def test_every_decoder_is_run_by_a_target() -> None:
    ran: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> Any:
        if event == "call":
            code = frame.f_code
            ran.add((code.co_filename, code.co_qualname))

    sys.setprofile(note)
    try:
        for target in TARGETS.values():
            for seed in target.seeds:
                target.run(seed)
    finally:
        sys.setprofile(None)
    found = list(decoders())
    assert len(found) > 80
    missing = [f"{name} {qualified}" for name, qualified in found if (str(ROOT / name), qualified) not in ran]
    assert not missing, "\n".join(["no target runs:", *missing])


def test_what_is_called_ours_is_there() -> None:
    for name, functions in OURS.items():
        there = {qualified for qualified, _ in _functions(ast.parse((ROOT / name).read_text(encoding="utf-8")), "")}
        assert set(functions.split()) <= there


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_input_raises(target: Target) -> None:
    changed = st.builds(
        lambda seed, dice: mutated(seed, random.Random(dice), target.most),
        st.sampled_from(target.seeds),
        st.integers(0, 1 << 32),
    )

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(st.one_of(changed, st.binary(max_size=min(target.most, 400))))
    def run(data: bytes) -> None:
        target.run(data)

    run()


def test_the_search_finds_what_is_there() -> None:
    def brittle(data: bytes) -> None:
        assert data[3:4] != b"\xff", "found"

    found = search(Target("brittle", brittle, (bytes(8),)), 20.0, random.Random(1))
    assert found is not None
    data, error = found
    assert data[3] == 0xFF
    assert str(error).startswith("found")
