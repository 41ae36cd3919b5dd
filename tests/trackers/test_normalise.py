"""The normaliser fits values to any tracker's limits, never raises, and reports what it changed."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fmstune.delivery.report import DeliveryReport
from fmstune.trackers.records import Limits
from fmstune.trackers.values.changes import for_people
from fmstune.trackers.values.normalise import Normaliser, flatten

STRICT = Limits(name_chars=r"A-Za-z0-9_./ -", max_name=20, max_value=10, nested=False, nan=False)


def test_without_limits_nothing_is_changed() -> None:
    normaliser = Normaliser(Limits(text_metrics=True))
    assert normaliser.metrics({"a(b": math.inf, "t": "x"}) == {"a(b": math.inf, "t": "x"}
    assert normaliser.params({"a": {"b": ["x" * 999]}}) == {"a": {"b": ["x" * 999]}}
    assert normaliser.changes == ()


def test_names_are_spelt_within_the_trackers_limits_and_stay_distinct() -> None:
    normaliser = Normaliser(STRICT)
    assert normaliser.metrics({"f1(macro)": 1.0, "f1[macro]": 2.0}) == {"f1_macro_": 1.0, "f1_macro__2": 2.0}
    assert normaliser.changes == ("f1(macro) is called f1_macro_", "f1[macro] is called f1_macro__2")


def test_an_empty_name_is_seen_in_the_report() -> None:
    normaliser = Normaliser(STRICT)
    assert normaliser.metrics({"": 1.0}) == {"_": 1.0}
    assert normaliser.changes == ("'' is called _",)


@given(st.lists(st.text(" ab_\t", max_size=4), unique=True, max_size=8))
def test_params_stay_distinct_where_a_service_strips_white_space_from_names(names: list[str]) -> None:
    normaliser = Normaliser(Limits(strips_params=True))
    spaces = [normaliser.namespace(name) for name in names]
    keys = list(normaliser.params(dict.fromkeys(names, 1)))
    for found in (spaces, keys):
        assert len({str(name).strip() for name in found}) == len(names)
        assert [name for name in found if name != str(name).strip()] == []
    changed = sum(name != name.strip() or not name for name in names)
    assert len(normaliser.changes) >= bool(changed)


def test_non_finite_and_non_numeric_values_are_dropped_with_a_report() -> None:
    normaliser = Normaliser(STRICT)
    assert normaliser.metrics({"a": math.nan, "b": "text", "c": True, "d": 2}) == {"c": 1, "d": 2}
    assert len(normaliser.changes) == 2


def test_params_are_flattened_and_cut_where_necessary() -> None:
    normaliser = Normaliser(STRICT)
    assert normaliser.params({"a": {"b": {"c": "x" * 30}, "e": {}}}) == {"a.b.c": "x" * 10, "a.e": {}}
    assert normaliser.changes == ("param a.b.c was cut from 30 to 10 characters",)


def test_a_change_is_reported_once_and_renames_are_bounded() -> None:
    normaliser = Normaliser(STRICT)
    for _ in range(3):
        normaliser.metrics({"x(": 1.0})
    assert normaliser.changes == ("x( is called x_",)
    for number in range(100):
        normaliser.metrics({f"x({number}": 1.0})
    assert len(normaliser.changes) == 51
    assert normaliser.changes[-1] == "and 51 more names"


def test_what_is_reported_can_be_printed_whatever_the_names_are() -> None:
    line = DeliveryReport("file", 1, 2, "behind", error="no \ud800", changes=("metric \ud800 is called _",))
    assert line.adapted() == ["adapted: metric \\ud800 is called _"]
    assert line.line() == "1/2 · no \\ud800"


def test_missing_values_are_reported_first_however_many_names_were_adapted() -> None:
    normaliser = Normaliser(STRICT)
    for number in range(300):
        normaliser.metrics({f"x({number}": 1.0})
    normaliser.metrics({f"bad{number}": float("inf") for number in range(60)})
    normaliser.step("last")
    changes = normaliser.changes
    assert all(f"metric bad{number} was not finite" in changes[number] for number in range(60))
    assert normaliser.changes[60] == "the step last is not a 64-bit integer, and is left out"


def test_many_renames_are_summarized_and_losses_are_not() -> None:
    normaliser = Normaliser(STRICT)
    normaliser.metrics({f"x({number}": 1.0 for number in range(210)} | {"bad": float("nan")})
    lost, summed_up = for_people(normaliser.changes)
    assert lost == "metric bad was not finite at times; those points are in the journal only"
    assert summed_up.startswith("210 names are others there: x(0 (x_0), x(1 (x_1), x(2 (x_2), and 207 more")
    assert for_people(["a is called b", "c is lost"]) == ["a is called b", "c is lost"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=6))
def test_any_params_fit_the_limits_and_no_name_is_lost(params: dict[str, Any]) -> None:
    normaliser = Normaliser(STRICT)
    fitted = normaliser.params(params)
    assert len(fitted) == len(list(flatten(params)))
    for name, value in fitted.items():
        assert 0 < len(name) <= 20
        assert not isinstance(value, str) or len(value) <= 10
    for name, value in normaliser.metrics(params).items():
        assert 0 < len(name) <= 20
        assert math.isfinite(value)


JOINS = Limits(joins=True, one_series=True, reserved_metrics=frozenset({"train/epoch"}))


def test_where_stage_and_name_are_joined_different_metrics_stay_different() -> None:
    """In W&B both have one name: `b/c` of the stage `a` would be merged with `c` of the stage `a/b`."""
    adapt = Normaliser(JOINS)
    found = [
        ("train", *adapt.metrics({"loss": 1, "epoch": 1}, "train")),
        (None, *adapt.metrics({"train/loss": 2, "train/epoch": 2})),
        ("a", *adapt.metrics({"b/c": 3}, "a")),
        ("a/b", *adapt.metrics({"c": 4}, "a/b")),
        ("train", *adapt.metrics({"loss": 5}, "train")),
    ]
    assert found == [
        ("train", "loss", "epoch_2"), (None, "train/loss_2", "train/epoch_3"), ("a", "b/c"), ("a/b", "c_2"),
        ("train", "loss"),
    ]  # fmt: skip
    assert "train/loss is called train/loss_2" in adapt.changes
    assert "c is called c_2" in adapt.changes


def test_a_table_does_not_share_a_metrics_name_where_they_would_be_one_series() -> None:
    joins, beside = Normaliser(JOINS), Normaliser(Limits(one_series=True))
    for adapt in (joins, beside):
        adapt.metrics({"samples": 1})
        adapt.metrics({"samples": 1}, "eval")
    assert [joins.table("samples"), joins.table("samples", "eval"), joins.table("new", "eval")] == [
        "samples_2", "samples_3", "new",
    ]  # fmt: skip
    assert [beside.table("samples", "eval"), beside.table("samples", "train")] == ["samples_2", "samples"]
    assert Normaliser(Limits()).table("samples", "eval") == "samples"


def test_flat_params_of_two_namespaces_with_the_same_name_stay_separate() -> None:
    normaliser = Normaliser(Limits(nested=False, text_params=True, joins=True))
    for _ in range(2):  # as with each further event of a namespace
        assert normaliser.params({"b.c": 1}, "a") == {"b.c": "1"}
        assert normaliser.params({"c": 2, "d": 3}, "a.b") == {"c_2": "2", "d": "3"}
        assert normaliser.params({"b": {"c_2": 4}}, "a") == {"b.c_2_2": "4"}
    assert normaliser.changes == (
        "c of the params a.b is called c_2, as the params a have one that is written the same",
        "b.c_2 of the params a is called b.c_2_2, as the params a.b have one that is written the same",
    )
