"""The clock of phases is in exactly one phase at any moment, so that their sums are the elapsed time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.resources.phases import PHASES, PhaseClock

STEPS = st.lists(
    st.tuples(st.sampled_from([None, *PHASES]), st.integers(0, 1000), st.booleans()), max_size=30
)


@given(STEPS)
def test_the_sums_are_the_elapsed_time_of_each_phase(steps: list[tuple[object, int, bool]]) -> None:
    now = 0.0
    clock = PhaseClock(lambda: now)
    expected, taken = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)

    def take() -> None:
        for phase in PHASES:
            taken[phase] += found[f"{phase}_seconds"]

    for phase, passed, takes in steps:
        clock.enter(phase)  # type: ignore[arg-type]
        now += passed
        if phase is not None:
            expected[phase] += passed  # type: ignore[index]
        if takes:
            found = clock.take()
            take()
    found = clock.take()
    take()
    assert taken == pytest.approx(expected)
    assert sum(clock.take().values()) == 0
