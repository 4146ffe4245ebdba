"""Planted disasters are held or refused; ordinary days pass."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.changes import Op, PlanLine
from cowsync.errors import StateDamaged
from cowsync.plan.census import SUFFIXES_MAX, Census, census_from_json, suffix_of
from cowsync.plan.guard import ChangesTally, Decision, Facts, Order, PastRun, Verdict, judge
from s3core.settings import GuardSettings
from tests.cowsync.plan.lines import add, line, modify, plans, remove, vanish

DIGEST = "0123456789abcdef" * 4
SUFFIXES = ("jpg", "txt", "csv.gz", "parquet")
KEYS = [f"{'abcd'[n % 4]}/{n:05}.{SUFFIXES[n % 3]}" for n in range(10_000)]
USUAL = GuardSettings()
STEADY = [PastRun(10_000, modified) for modified in (80, 120, 100, 90, 110, 100)]


def census_of(keys: Sequence[str]) -> Census:
    census = Census()
    for key in keys:
        census.add(key, 100)
    return census


BASE = census_of(KEYS)


def verdict(
    lines: Sequence[PlanLine],
    *,
    base: Census | None = BASE,
    limits: GuardSettings = USUAL,
    history: Sequence[PastRun] = STEADY,
    canaries_known: frozenset[str] = frozenset(),
    gap: str = "",
    order: Order = Order.ASCENDING,
    skew: float | None = None,
) -> Verdict:
    tally = ChangesTally(base, limits)
    for _ in tally.watch(sorted(lines, key=lambda one: one.key)):
        pass
    return judge(Facts(DIGEST, base, tally.changes(), canaries_known, gap, order, skew), limits, history)


def limits_hit(found: Verdict) -> set[str]:
    return {reason.limit for reason in found.reasons}


# --- disasters ------------------------------------------------------------------------------------------------------


def test_an_emptied_bucket_is_held() -> None:
    found = verdict([vanish(key) for key in KEYS])
    assert found.decision is Decision.HOLD
    assert found.reasons[0].message == (
        "the source is empty; it had 10,000 keys: look with `cowsync show 0123456789ab --op vanish`,"
        " then `cowsync apply --approve 0123456789ab`"
    )


def test_a_bucket_of_three_that_is_emptied_is_held() -> None:
    assert verdict([vanish(key) for key in KEYS[:3]], base=census_of(KEYS[:3])).decision is Decision.HOLD


def test_half_deleted_is_held() -> None:
    found = verdict([vanish(key) for key in KEYS[:5000]])
    assert found.decision is Decision.HOLD
    assert {"vanished_percent", "shrink_percent"} <= limits_hit(found)


def test_the_reason_has_figures_and_what_to_do() -> None:
    found = verdict([vanish(key) for key in KEYS[:3100]])
    assert found.reasons[0].message == (
        "3,100 of 10,000 keys are gone (31 %, limit 10 %): look with `cowsync show 0123456789ab --op vanish`,"
        " then `cowsync apply --approve 0123456789ab`"
    )
    assert found.text().startswith("hold: 3,100 of")
    assert found.to_json()["decision"] == "hold"


def test_half_deleted_behind_as_many_new_is_held() -> None:
    lines = [*map(vanish, KEYS[:5000]), *(add(f"new/{n}.jpg") for n in range(5000))]
    assert limits_hit(verdict(lines)) >= {"vanished_percent"}
    assert "shrink_percent" not in limits_hit(verdict(lines))


def test_one_prefix_emptied_is_held() -> None:
    base = census_of([*KEYS, *(f"photos/{n}.jpg" for n in range(200))])
    found = verdict([vanish(f"photos/{n}.jpg") for n in range(200)], base=base)
    assert limits_hit(found) == {"prefix_vanished_percent"}
    assert "200 of 200 keys below 'photos/' are gone (100 %, limit 50 %)" in found.reasons[0].message


def test_keys_without_a_prefix_count_as_one() -> None:
    base = census_of([*KEYS, *(f"z{n}.jpg" for n in range(200))])
    found = verdict([vanish(f"z{n}.jpg") for n in range(200)], base=base)
    assert "200 of 200 keys without a prefix are gone" in found.reasons[0].message


def test_many_prefixes_emptied_are_named_in_part() -> None:
    base = census_of([*KEYS * 5, *(f"p{p:02}/{n}.jpg" for p in range(30) for n in range(20))])
    found = verdict([vanish(f"p{p:02}/{n}.jpg") for p in range(30) for n in range(20)], base=base)
    assert len(found.reasons) == 6
    assert "so it is with 25 more prefixes" in found.reasons[-1].message


@pytest.mark.parametrize("keys", [KEYS, KEYS[:12]])
def test_all_overwritten_is_held(keys: list[str]) -> None:
    found = verdict([modify(key) for key in keys], base=census_of(keys))
    assert limits_hit(found) == {"all_changed"}
    assert "overwritten" in found.reasons[0].message


def test_overwritten_or_gone_is_all_changed() -> None:
    lines = [*map(modify, KEYS[:9500]), *map(vanish, KEYS[9500:])]
    assert "all_changed" in limits_hit(verdict(lines))


def test_many_overwritten_is_held_against_what_is_usual() -> None:
    found = verdict([modify(key) for key in KEYS[:1200]])
    assert limits_hit(found) == {"modified_percent"}
    assert "1,200 of 10,000 keys are overwritten (12 %, limit 11 %; usual is 1 %)" in found.reasons[0].message


def test_ransomware_that_renames_is_held() -> None:
    lines = [one for key in KEYS[:500] for one in (vanish(key), add(f"{key}.locked"))]
    assert limits_hit(verdict(lines)) == {"suffix_percent", "rename_percent"}
    assert any("with a suffix .locked (5 %, limit 1 %)" in one.message for one in verdict(lines).reasons)


def test_ransomware_with_a_suffix_for_each_object_is_held() -> None:
    lines = [one for n, key in enumerate(KEYS[:500]) for one in (vanish(key), add(f"{key}.{_letters(n)}"))]
    assert limits_hit(verdict(lines)) == {"suffix_percent", "rename_percent"}


def test_ransomware_that_drops_the_suffix_is_held() -> None:
    lines = [one for n, key in enumerate(KEYS[:500]) for one in (vanish(key), add(f"{key[:2]}{_letters(n)}"))]
    found = verdict(lines)
    assert limits_hit(found) == {"suffix_percent"}
    assert "500 without" in found.reasons[0].message


def test_renames_are_seen_over_what_lies_between() -> None:
    """`report`, `report (1)`, `report-2/x`, `report.locked` are in this order."""
    base = census_of([*KEYS, *(f"r{n:03}" for n in range(300))])
    lines = []
    for n in range(300):
        key = f"r{n:03}"
        lines += [vanish(key), add(f"{key} (1)"), add(f"{key}-2/x"), add(f"{key}.locked")]
    found = verdict(lines, base=base)
    assert "rename_percent" in limits_hit(found)
    assert any("300 of 10,300 keys are gone and there again" in one.message for one in found.reasons)


def test_a_few_that_were_planted_before_make_no_suffix_known() -> None:
    base = census_of([*KEYS, "a/x.locked", "a/y.locked"])
    lines = [one for key in KEYS[:500] for one in (vanish(key), add(f"{key}.locked"))]
    assert limits_hit(verdict(lines, base=base)) == {"suffix_percent", "rename_percent"}


@pytest.mark.parametrize("base", [None, BASE])
def test_a_truncated_listing_is_refused(base: Census | None) -> None:
    found = verdict([vanish(key) for key in KEYS[9990:]], base=base, gap="nothing from 'd/' on")
    assert found.decision is Decision.REFUSE
    assert "nothing from 'd/' on" in found.reasons[0].message
    assert "--approve" not in found.text()


@pytest.mark.parametrize("share", [0.1, 0.8, 0.89])
def test_a_listing_that_the_store_ends_too_early_is_held(share: float) -> None:
    """It says that nothing follows, so the listing is complete by all one can know; but its end is gone."""
    keys = sorted(KEYS)
    found = verdict([vanish(key) for key in keys[int(len(keys) * share) :]])
    assert found.decision is Decision.HOLD


def test_a_store_out_of_order_is_refused_or_held() -> None:
    assert verdict([], order=Order.BROKEN).decision is Decision.REFUSE
    assert verdict([], order=Order.SORTED).decision is Decision.HOLD
    assert verdict([], order=Order.SORTED, history=[PastRun(10_000, 1, Order.SORTED)]).decision is Decision.PASS
    assert verdict([], order=Order.SORTED, base=None, history=[]).decision is Decision.PASS


def test_a_clock_that_is_off_is_held() -> None:
    assert verdict([], skew=299.0).decision is Decision.PASS
    for skew, told in ((301.0, "5 min ahead of"), (-4000.0, "1 h 7 min behind")):
        found = verdict([], skew=skew)
        assert limits_hit(found) == {"clock_skew_s"}
        assert told in found.reasons[0].message
    assert verdict([], skew=9e9, limits=GuardSettings(clock_skew_s=0.0)).decision is Decision.PASS


CANARY = GuardSettings(canaries=("a/canary", "z/canary"))
BOTH = frozenset(CANARY.canaries)


@pytest.mark.parametrize(
    ("lines", "known", "told"),
    [
        ([vanish("a/canary")], BOTH, "1 is missing from the source ('a/canary')"),
        ([modify("z/canary")], BOTH, "1 is changed ('z/canary')"),
        ([modify("z/canary", gone=3)], frozenset({"a/canary"}), "1 is changed ('z/canary')"),
        ([], frozenset({"z/canary"}), "1 is missing"),
        ([], frozenset(), "2 are missing"),
        ([remove("a/canary")], frozenset({"z/canary"}), "1 is missing"),
    ],
)
def test_a_canary_that_is_missing_or_changed_is_held(lines: list[PlanLine], known: frozenset[str], told: str) -> None:
    found = verdict(lines, limits=CANARY, canaries_known=known)
    assert limits_hit(found) == {"canaries"}
    assert len(found.reasons) == 1
    assert told in found.reasons[0].message


def test_canaries_that_are_there_pass() -> None:
    assert verdict([], limits=CANARY, canaries_known=BOTH).decision is Decision.PASS
    assert verdict([add("a/canary"), add("z/canary")], limits=CANARY, base=None).decision is Decision.PASS


def test_numbers_and_bytes_are_limits_too() -> None:
    lines = [vanish(key, 1 << 30) for key in KEYS[:20]]
    assert verdict(lines).decision is Decision.PASS
    assert limits_hit(verdict(lines, limits=GuardSettings(vanished_keys=19))) == {"vanished_keys"}
    found = verdict(lines, limits=GuardSettings(vanished_bytes=10 << 30))
    assert "20 GiB are gone (limit 10 GiB)" in found.reasons[0].message


def test_removing_is_judged_like_vanishing() -> None:
    found = verdict([remove(f"old/{n}") for n in range(3000)])
    assert limits_hit(found) == {"vanished_percent"}
    assert "3,000 of 13,000 keys are to be removed from the mirror" in found.reasons[0].message
    assert "--op remove" in found.reasons[0].message


# --- ordinary days ----------------------------------------------------------------------------------------------------


def test_the_first_run_passes() -> None:
    assert verdict([add(key) for key in KEYS], base=None, history=[]) == Verdict(Decision.PASS)
    assert verdict([add(key) for key in KEYS], base=Census(), history=[]).decision is Decision.PASS


def test_compressing_yesterdays_logs_passes_where_it_is_usual() -> None:
    logs = [f"a/{n:04}.2026-11-{day:02}.gz" for day in range(1, 20) for n in range(100)]
    lines = [one for n in range(100) for one in (vanish(f"b/{n}.log"), add(f"b/{n}.log.gz"))]
    assert verdict(lines, base=census_of([*KEYS, *logs, *(f"b/{n}.log" for n in range(100))])).decision is Decision.PASS


def test_dates_and_numbers_as_suffixes_are_one_suffix() -> None:
    base = census_of([f"x/{n}.2026-11-20" for n in range(1000)])
    assert verdict([add(f"x/{n}.2026-11-21") for n in range(900)], base=base).decision is Decision.PASS
    assert [suffix_of(key) for key in ("a.7", "b/.bashrc", "a.b/c", "a.TAR.Gz", "a.", "a." + "x" * 33)] == [
        "0", "", "", "gz", "", "",
    ]  # fmt: skip


def test_what_a_stopped_run_left_over_is_no_news() -> None:
    """It saw 10,000 keys and copied the `a/` of them; the others, with other suffixes, are added by the next run."""
    base = census_of([key for key in KEYS if key.endswith("jpg")])
    rest = [add(key) for key in KEYS if not key.endswith("jpg")][:3000]
    assert verdict(rest, base=base, history=[PastRun(base.keys + 3000, 0)]).decision is Decision.PASS
    assert limits_hit(verdict(rest, base=base, history=[PastRun(base.keys, 0)])) == {"suffix_percent"}
    more = [*rest, *(add(f"new/{n}.new") for n in range(300))]
    assert limits_hit(verdict(more, base=base, history=[PastRun(base.keys + 3000, 0)])) == {"suffix_percent"}


def test_filling_a_bucket_passes() -> None:
    filling = [add(key) for key in KEYS[:3000]]
    assert verdict(filling, base=census_of(["README"]), history=[]).decision is Decision.PASS
    touched = [*filling, *(modify(f"README{n}") for n in range(9)), vanish("README9")]
    base = census_of([f"README{n}" for n in range(200)])
    assert limits_hit(verdict(touched, base=base, history=[])) == {"suffix_percent"}


def test_what_comes_back_changed_is_there_again() -> None:
    census = census_of(KEYS[:100])
    census.apply(vanish(KEYS[0]))
    census.apply(modify(KEYS[0], 100, was_size=70, gone=3))
    assert census == census_of(KEYS[:100])
    back = [modify(f"back/{n}.jpg", gone=3) for n in range(15)]
    found = verdict([*back, *map(vanish, KEYS[:15])], base=census_of(KEYS[:15]))
    assert "the source is empty" not in found.text()


def test_a_bucket_of_names_without_kinds_says_nothing_by_suffix() -> None:
    base = census_of([f"x/{n}.{_letters(n)}" for n in range(SUFFIXES_MAX + 10)])
    assert base.full_suffixes
    assert len(base.suffixes) == SUFFIXES_MAX
    lines = [add(f"x/{n}.{_letters(n)}") for n in range(5000, 5500)]
    assert verdict(lines, base=base).decision is Decision.PASS


def test_a_bucket_that_is_rewritten_by_half_each_day_passes() -> None:
    history = [PastRun(10_000, modified) for modified in (5000, 5200, 4900, 5100)]
    assert verdict([modify(key) for key in KEYS[:5500]], history=history).decision is Decision.PASS
    assert verdict([modify(key) for key in KEYS[:7000]], history=history).decision is Decision.HOLD


def test_an_unsteady_bucket_gets_more_room() -> None:
    history = [PastRun(10_000, modified) for modified in (100, 900, 500, 1300, 300)]
    assert verdict([modify(key) for key in KEYS[:2800]], history=history).decision is Decision.PASS
    assert verdict([modify(key) for key in KEYS[:3000]], history=history).decision is Decision.HOLD


def test_only_the_last_runs_count() -> None:
    history = [PastRun(10_000, 9000)] * 40 + [PastRun(10_000, 0)] * 30
    assert verdict([modify(key) for key in KEYS[:1100]], history=history).decision is Decision.HOLD


@pytest.mark.parametrize("setting", ["vanished_percent", "shrink_percent", "prefix_vanished_percent"])
def test_a_hundred_is_no_limit(setting: str) -> None:
    lines = [vanish(key) for key in KEYS if key.startswith("a/")]
    none = GuardSettings(vanished_percent=100.0, shrink_percent=100.0, prefix_vanished_percent=100.0)
    assert verdict(lines, limits=none).decision is Decision.PASS
    one = none.model_copy(update={setting: getattr(USUAL, setting)})
    assert limits_hit(verdict(lines, limits=one)) == {setting}


@st.composite
def ordinary_days(draw: st.DrawFn) -> tuple[list[str], list[PlanLine]]:
    """A bucket of any size and a day in it: up to 8 % vanish, 9 % are overwritten, a fifth comes new, with suffixes the
    bucket has."""
    count = draw(st.integers(0, 1500))
    keys = [f"{'abcdefg'[n % 7]}/{n:05}.{SUFFIXES[n % 4]}" for n in range(count)]
    dice = draw(st.randoms(use_true_random=False))
    shuffled = dice.sample(keys, count)
    gone, changed = int(count * dice.uniform(0, 0.08)), int(count * dice.uniform(0, 0.09))
    lines = [
        *map(vanish, shuffled[:gone]),
        *map(modify, shuffled[gone : gone + changed]),
        *(add(f"{dice.choice('abcdefg')}/n{n}.{dice.choice(SUFFIXES)}") for n in range(dice.randrange(count // 5 + 4))),
    ]
    return keys, lines


@settings(max_examples=80, deadline=None)
@given(ordinary_days())
def test_an_ordinary_day_passes(day: tuple[list[str], list[PlanLine]]) -> None:
    keys, lines = day
    found = verdict(lines, base=census_of(keys), history=[])
    assert found.decision is Decision.PASS, found.text()


@settings(max_examples=80, deadline=None)
@given(st.integers(20, 600), st.floats(0.51, 1.0), st.randoms(use_true_random=False), st.sampled_from("vmr"))
def test_more_than_half_gone_overwritten_or_renamed_is_held(
    count: int, share: float, dice: random.Random, what: str
) -> None:
    keys = KEYS[:count]
    hit = dice.sample(keys, int(count * share))
    lines = [modify(key) if what == "m" else vanish(key) for key in hit]
    if what == "r":
        lines += [add(f"{key}.enc") for key in hit]
    found = verdict(lines, base=census_of(keys))
    assert found.decision is Decision.HOLD


# --- the census -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(plans(), plans())
def test_a_census_moved_on_is_one_made_anew(first: list[PlanLine], second: list[PlanLine]) -> None:
    """Of the keys there are afterwards, whatever the lines: each is made to fit what is there."""
    there: dict[str, int] = {}
    census = Census()
    for one in [*first, *second]:
        fitting = modify(one.key, one.size, was_size=there[one.key]) if one.key in there else add(one.key, one.size)
        if one.key in there and one.hot:
            fitting = vanish(one.key, there.pop(one.key))
        else:
            there[one.key] = one.size
        census.apply(fitting)
    anew = Census()
    for key, size in there.items():
        anew.add(key, size)
    assert census == anew
    assert census_from_json(census.to_json()) == census == census.copy()


def test_a_damaged_census_is_named() -> None:
    good = BASE.to_json()
    for name in good:
        with pytest.raises(StateDamaged, match="census"):
            census_from_json({**good, name: None})
    with pytest.raises(StateDamaged, match="suffixes"):
        census_from_json({**good, "suffixes": {"jpg": "many"}})


def test_removing_and_returning() -> None:
    census = census_of(["a/1.jpg"])
    census.apply(remove("a/0.jpg"))
    assert census == census_of(["a/1.jpg"])
    census.apply(line(Op.RETURN, "a/0.jpg"))
    assert census == census_of(["a/1.jpg", "a/0.jpg"])


def _letters(number: int) -> str:
    return "".join("bcdfghjklm"[int(digit)] for digit in f"{number:05}")
