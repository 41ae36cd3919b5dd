"""Values against types."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from fmstune.config.errors import ConfigError
from fmstune.config.typed import check_value, read_dataclass


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("bool", True),
        ("int", 3),
        ("float", 3),
        ("float", 0.5),
        ("str", ""),
        ("int | None", None),
        ("Optional[int]", 3),
        ("Union[str, list[int]]", [1]),
        ("dict[str, Any] | str | None", {"a": 1}),
        ("None | str | list[str]", ["a"]),
        ("str | None | Literal[False]", False),
        ("IntervalStrategy | str", "steps"),
        ("Any", object),
    ],
)
def test_a_value_of_the_type_is_taken_as_it_is(annotation: str, value: Any) -> None:
    assert check_value(value, annotation, where="f", key="k") == value


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        ("int", True, "k = true is a truth value; it takes a whole number."),
        ("int", 1.5, "k = 1.5 is a number; it takes a whole number."),
        ("int", "3", "k = '3' is a text; it takes a whole number. Write it without quotes."),
        ("int", "none", "k = 'none' is a text; it takes a whole number."),
        ("float", "1e-4", "k = '1e-4' is a text; it takes a number. Write it without quotes."),
        ("float", False, "k = false is a truth value; it takes a number."),
        ("float", math.nan, "k = nan is not a finite number."),
        ("float | None", math.inf, "k = inf is not a finite number."),
        ("bool", 1, "k = 1 is a whole number; it takes true or false."),
        ("bool", "True", "k = 'True' is a text; it takes true or false. Write true."),
        ("bool", "yes", "k = 'yes' is a text; it takes true or false."),
        ("str", 3, "k = 3 is a whole number; it takes a text. Put it in quotes."),
        ("str", ["a"], "k = ['a'] is a list; it takes a text."),
        ("str", {"a": 1}, "k = {'a': 1} is a table; it takes a text."),
        ("int", datetime.date(2020, 1, 2), "k = 2020-01-02 is a date or time; it takes a whole number."),
        ("list[str]", "a", "k = 'a' is a text; it takes a list of texts. Write [\"a\"]."),
        ("tuple[str, ...]", [1], "k = [1] is a list; it takes a list of texts."),
        ("dict | None", 3, "k = 3 is a whole number; it takes a table."),
        ("int | str | None", [1], "k = [1] is a list; it takes a whole number or a text."),
    ],
)
def test_a_value_of_another_type_is_told(annotation: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_value(value, annotation, where="f", key="k")
    assert str(caught.value) == f"f: {says}"


def test_a_set_is_told_how_to_quote_through_the_shell() -> None:
    with pytest.raises(ConfigError, match=r"""Write 'k="3"'\.$"""):
        check_value(3, "str", where="--set", key="k")


def test_a_choice_is_told_with_all_there_are_and_the_closest() -> None:
    with pytest.raises(ConfigError) as caught:
        check_value("epochs", "str", where="f", key="k", choices=("no", "steps", "epoch"))
    assert str(caught.value) == "f: k = 'epochs' is not one of no, steps, epoch. Did you mean epoch?"


def test_of_very_many_choices_only_some_are_told() -> None:
    with pytest.raises(ConfigError, match=r"not one of c0, c1, c2, c3, c4, c5 and 44 others.$"):
        check_value("zzzzz", "str", where="f", key="k", choices=tuple(f"c{i}" for i in range(50)))


def test_a_long_value_is_shortened_and_a_control_character_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        check_value("\x1b[31m" + "a" * 9000, "int", where="f\n", key="k")
    assert len(str(caught.value)) < 150
    assert str(caught.value).isprintable()


@dataclass(frozen=True)
class Options:
    size: int = field(default=1, metadata={"min": 1, "below": 9})
    names: tuple[str, ...] = ()
    ratio: "float | None" = field(default=None, metadata={"min": 0})  # noqa: UP037


def test_a_dataclass_is_made_of_a_table() -> None:
    made = read_dataclass(Options, {"size": 2, "names": ["a"]}, where="f", prefix="t")
    assert made == Options(2, ("a",))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 0}, "f: t.size = 0 is out of range; it is at least 1 and below 9."),
        ({"size": 9}, "f: t.size = 9 is out of range; it is at least 1 and below 9."),
        ({"ratio": -1}, "f: t.ratio = -1 is out of range; it is at least 0."),
        ({"siz": 2}, "f: there is no setting t.siz. Did you mean size?"),
        ({"qqqqq": 2}, "f: there is no setting t.qqqqq. There are size, names, ratio."),
        ({"a\nb": 2}, 'f: there is no setting t."a\\nb". There are size, names, ratio.'),
    ],
)
def test_a_table_that_does_not_fit_is_told(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_dataclass(Options, given, where="f", prefix="t")
    assert str(caught.value) == says
