"""Repeated values of a metric at a step are counted as a dict of all of them would count."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from fmstune.trackers.aimstack_tracker import _key
from fmstune.trackers.values.occurrences import Occurrences
from fmstune.trackers.values.progressions import Progressions

steps = st.none() | st.integers(-2, 4)
values = st.tuples(st.sampled_from(["loss", "reward"]), steps)
resumes = st.integers(0, 4)


@given(st.lists(values | resumes, max_size=40))
def test_a_value_is_counted_per_step_and_from_zero_at_steps_after_a_resume(
    script: list[tuple[str, int | None] | int],
) -> None:
    counts, seen = Occurrences(), Counter[tuple[str, int | None]]()
    for each in script:
        if isinstance(each, int):
            counts.resume(each)
            seen = Counter({key: n for key, n in seen.items() if key[1] is None or key[1] <= each})
        else:
            assert counts.count(*each) == seen[each]
            seen[each] += 1


NAMES = ["a", "b", "c"]
points = st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.lists(steps, max_size=4))
runs = st.integers(-2, 4).flatmap(
    lambda first: st.tuples(st.just(NAMES[:2]), st.integers(1, 5).map(lambda n: [*range(first, first + n)]))
)


@given(st.lists(points | runs | resumes, max_size=20))
@example([(NAMES[:2], [0, 1]), (NAMES[:2], [])])
def test_names_counted_in_a_batch_are_counted_as_one_by_one(
    script: list[tuple[list[str], list[int | None]] | int],
) -> None:
    counts, seen = Occurrences(), Counter[tuple[str, int | None]]()
    for each in script:
        if isinstance(each, int):
            counts.resume(each)
            seen = Counter({key: n for key, n in seen.items() if key[1] is None or key[1] <= each})
            continue
        names, at = each
        for step, found in zip(at, counts.count_each("train", names, at), strict=True):
            assert found == {name: seen[name, step] for name in names if seen[name, step]}
            seen.update((name, step) for name in names)


@given(
    st.none() | st.integers(-100, 100), st.none() | st.integers(-100, 100),
    st.integers(0, 1000), st.integers(0, 1000),
)  # fmt: skip
def test_two_values_of_a_metric_never_share_a_key_in_aim(
    step: int | None, other: int | None, repeat: int, repeat_there: int
) -> None:
    same = (step, repeat) == (other, repeat_there)
    assert (_key(step, repeat) == _key(other, repeat_there)) == same


numbers = st.integers(-6, 30) | st.sampled_from([-(2**63), 2**63 - 1, 2**62, 0])


@given(st.lists(st.tuples(numbers, st.booleans()), max_size=60))
def test_a_set_of_progressions_behaves_like_a_set(script: list[tuple[int, bool]]) -> None:
    found, wanted = Progressions(), set[int]()
    for number, cut in script:
        if cut and number % 4 == 0:
            found.cut(number)
            wanted = {each for each in wanted if each <= number}
        elif found.add_after([number, number + 2, number + 4]):
            assert number > max(wanted, default=number)
            wanted |= {number, number + 2, number + 4}
        else:
            assert found.add(number) == (number not in wanted)
            wanted.add(number)
        assert found.last == max(wanted, default=None)
        assert {each for each in (*range(-8, 33), *wanted, 2**63 - 1) if each in found} == wanted
