"""Plan lines for tests: short ways to write them, and a strategy of whole plans."""

from hypothesis import strategies as st

from cowsync.changes import Op, PlanLine
from cowsync.plan.format import PlanHead

HEAD = PlanHead("photos", "s3://here/photos/", "s3://there/copy/", "ab" * 32, 7)
MODIFIED = "2026-11-21T22:00:00.000Z"
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def line(op: Op, key: str, size: int = 100, **more: str | int | bool) -> PlanLine:
    reason = {Op.ADD: "new", Op.MODIFY: "etag"}.get(op, "")
    return PlanLine(op, key, size, **{"etag": "e" * 32, "modified": MODIFIED, "reason": reason, **more})  # type: ignore[arg-type]


def add(key: str, size: int = 100, **more: str | int | bool) -> PlanLine:
    return line(Op.ADD, key, size, **more)


def modify(key: str, size: int = 100, was_size: int = 90, **more: str | int | bool) -> PlanLine:
    return line(Op.MODIFY, key, size, was_size=was_size, was_etag="d" * 32, mirror_etag="c" * 32, **more)


def vanish(key: str, size: int = 100, **more: str | int | bool) -> PlanLine:
    return line(Op.VANISH, key, size, gone=7, **more)


def remove(key: str, size: int = 100, **more: str | int | bool) -> PlanLine:
    return line(Op.REMOVE, key, size, gone=3, **more)


def plans(keys: st.SearchStrategy[str] = KEYS) -> st.SearchStrategy[list[PlanLine]]:
    """Lines in ascending order of key with any values in their fields."""
    text = st.text(st.characters(codec="utf-8"), max_size=8)
    number = st.integers(0, 1 << 50)
    lines = st.builds(
        PlanLine, st.sampled_from(Op), keys, number, text, text, text, text, number, text, text, text, text, number,
        st.booleans(), text,
    )  # fmt: skip
    return st.lists(lines, max_size=12, unique_by=lambda one: one.key).map(lambda all: sorted(all, key=lambda o: o.key))
