"""Values are checked against annotations, given as types or as strings."""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.check.typed import check_value
from fmstune.errors import ConfigError
from fmstune.text import counted

numbers = st.integers() | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(), lambda inner: st.lists(inner, max_size=3)
)


def check(value: Any, annotation: str) -> Any:
    return check_value(value, annotation, where="here", key="k")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, "bool"),
        (3, "int"),
        (3, "float"),
        (3.0, "float"),
        (None, "int | None"),
        (3, "Optional[int]"),
        (None, "typing.Optional[int]"),
        ("x", "Union[int, str]"),
        ("steps", "IntervalStrategy | str"),
        ("a", "Literal['a', 'b']"),
        (False, "str | None | Literal[False] | None"),
        ({"a": True}, "dict[str, bool]"),
        ({"a": [1]}, "dict[str, Any] | str | None"),
        (["a"], "list[str] | None"),
        ([1, "a"], "list[int | str]"),
        ("a b", "str | list[DebugOption]"),
        (3, "'int'"),
    ],
)
def test_a_value_of_the_right_type_is_returned_unchanged(value: Any, annotation: str) -> None:
    assert check(value, annotation) == value


@pytest.mark.parametrize(
    ("value", "annotation", "takes"),
    [
        (1, "bool", "true or false"),
        (True, "int", "an integer"),
        (True, "float", "a number"),
        (3.0, "int", "an integer"),
        ("3", "int | None", "an integer"),
        (3, "str", "a string"),
        (0, "str | Literal[False]", "a string or false"),
        ("c", "Literal['a', 'b']", "'a' or 'b'"),
        ({"a": 1}, "dict[str, bool]", "a table"),
        ([1], "list[str]", "a list of strings"),
        ("a", "tuple[str, ...]", "a list of strings"),
        (None, "int", "an integer"),
    ],
)
def test_a_value_of_another_type_is_refused_in_plain_words(value: Any, annotation: str, takes: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: k = ") as caught:
        check(value, annotation)
    assert f"; it takes {takes}." in str(caught.value)


@given(
    anything, st.sampled_from(["bool", "int", "float", "str", "int | None", "list[str]", "dict[str, int]"])
)
def test_any_value_is_either_returned_or_refused(value: Any, annotation: str) -> None:
    try:
        checked = check(value, annotation)
    except ConfigError:
        return
    assert checked is value or checked == value


@given(numbers)
def test_a_number_is_never_nan_infinite_or_too_large_for_a_float(value: float) -> None:
    finite = abs(value) < 1e308
    try:
        assert check(value, "float") == value
    except ConfigError:
        assert not finite


def test_an_integer_that_no_float_can_represent_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        check(10**400, "float")
    with pytest.raises(ConfigError, match="a huge number"):
        check(10**5000, "bool")
    with pytest.raises(ConfigError, match="a huge number"):
        check_value(10**5000, "str", where="--set", key="k", choices=("no", "yes"))
    with pytest.raises(ConfigError, match="a huge number"):
        check_value(10**5000, "str", where="--set", key="k")


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        ("int", True, "k = true is a boolean; it takes an integer."),
        ("int", 1.5, "k = 1.5 is a number; it takes an integer."),
        ("int", "3", "k = '3' is a string; it takes an integer. Write it without quotes."),
        ("int", "none", "k = 'none' is a string; it takes an integer. Leave it out for the default."),
        ("float", "1e-4", "k = '1e-4' is a string; it takes a number. Write it without quotes."),
        ("float", False, "k = false is a boolean; it takes a number."),
        ("float", math.nan, "k = nan is not a finite number."),
        ("float | None", math.inf, "k = inf is not a finite number."),
        ("bool", 1, "k = 1 is an integer; it takes true or false. Write true."),
        ("bool", "True", "k = 'True' is a string; it takes true or false. Write true."),
        ("bool", "yes", "k = 'yes' is a string; it takes true or false. Write true."),
        ("float", ".5", "k = '.5' is a string; it takes a number. Write 0.5."),
        ("int", "1.5", "k = '1.5' is a string; it takes an integer."),
        ("int", "007", "k = '007' is a string; it takes an integer. Write 7."),
        ("list[str]", 'a"b', "k = 'a\"b' is a string; it takes a list of strings. Put it in [ ]."),
        ("str", 3, "k = 3 is an integer; it takes a string. Put it in quotes."),
        ("str", ["a"], "k = ['a'] is a list; it takes a string. Write it without [ ]."),
        ("str", {"a": 1}, "k = {'a': 1} is a table; it takes a string."),
        ("int", datetime.date(2020, 1, 2), "k = 2020-01-02 is a date or time; it takes an integer."),
        ("list[str]", "a", "k = 'a' is a string; it takes a list of strings. Write [\"a\"]."),
        ("tuple[str, ...]", [1], "k = [1] is a list of integers; it takes a list of strings."),
        ("dict | None", 3, "k = 3 is an integer; it takes a table."),
        (
            "int | str | None",
            [1],
            "k = [1] is a list; it takes an integer or a string. Write it without [ ].",
        ),
    ],
)
def test_a_value_of_another_type_is_reported(annotation: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_value(value, annotation, where="f", key="k")
    assert str(caught.value) == f"f: {says}"


def test_for_a_set_the_message_says_how_to_quote_in_a_shell() -> None:
    with pytest.raises(ConfigError, match=r"""Write 'k="3"'\.$"""):
        check_value(3, "str", where="--set", key="k")


def test_an_invalid_choice_is_reported_with_all_choices_and_the_closest() -> None:
    with pytest.raises(ConfigError) as caught:
        check_value("epochs", "str", where="f", key="k", choices=("no", "steps", "epoch"))
    assert str(caught.value) == "f: k = 'epochs' is not one of no, steps, epoch. Did you mean epoch?"


BITS, REHEARSE = ("4bit", "8bit"), ("auto", "always", "never")
SAVE, BIAS = ("no", "steps", "epoch"), ("none", "all", "lora_only")


@pytest.mark.parametrize(
    ("value", "choices", "close"),
    [
        (4, BITS, "4bit"),
        ("int8", BITS, "8bit"),
        (["4bit"], BITS, "4bit"),
        (16, BITS, None),
        (True, BITS, None),
        (True, REHEARSE, "always"),
        ("yes", REHEARSE, "always"),
        (False, REHEARSE, "never"),
        (False, SAVE, "no"),
        ("Epochs", SAVE, "epoch"),
        ("None", BIAS, "none"),
        ("bf16", ("float32", "bfloat16", "float16"), "bfloat16"),
        ("bfloat", ("float32", "bfloat16", "float16"), "bfloat16"),
        ({}, SAVE, None),
    ],
)
@pytest.mark.parametrize("where", ["f", "--set"])
def test_an_invalid_choice_gets_a_suggestion_and_never_advice_to_quote_it(
    value: Any, choices: tuple[str, ...], close: str | None, where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_value(value, "str | None", where=where, key="k", choices=choices)
    end = f"{', '.join(choices)}.{f' Did you mean {close}?' if close else ''}"
    assert str(caught.value).endswith(f" one of {end}")


@pytest.mark.parametrize(
    ("annotation", "value", "advice"),
    [
        ("bool", 0, "Write false."),
        ("bool", "1", "Write true."),
        ("bool | str", 1, "Write true."),
        ("int", 1e3, "Write 1000."),
        ("int", 1.5, ""),
        ("int", "1,000", "Write 1000."),
        ("int", "1,5", ""),
        ("int", "1e3", "Write 1000."),
        ("int", "3 epochs", ""),
        ("float", "10%", "Write 0.1."),
        ("float", "0,05", "Write 0.05."),
        ("float", "2e\N{MINUS SIGN}5", "Write 2e-05."),
        ("float", "1234567.5", "Write it without quotes."),
        ("float", "01234567.5", "Write 1234567.5."),
        ("float", [0.1], "Write it without [ ]."),
        ("float", ["a"], ""),
        ("int | None", "null", "Leave it out for the default."),
        ("str", True, ""),
        ("str | dict", 3, ""),
        ("dict[str, str]", "a", "Write a table as {name = value}."),
        ("dict[str, str]", ["a"], ""),
        ("list[str]", "a,b", 'Write ["a", "b"].'),
        ("list[str]", "[a, b]", 'Write ["a", "b"].'),
        ("list[str]", "Well, go", 'Write ["Well, go"].'),
        ("list[str]", "a,,b", "Put it in [ ]."),
    ],
)
def test_for_a_nearly_valid_value_the_message_shows_how_to_write_it(
    annotation: str, value: Any, advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_value(value, annotation, where="f", key="k")
    told = str(caught.value).partition("; it takes ")[2].partition(".")[2]
    assert told.strip() == advice


@given(anything, st.sampled_from(["bool", "int", "float", "str", "list[str]", "dict[str, str]"]))
def test_the_suggested_value_is_valid(value: Any, annotation: str) -> None:
    try:
        check(value, annotation)
    except ConfigError as error:
        written = re.search(r" Write (?!it|a table)(.+)\.$", str(error))
        if written:
            check(tomli.loads(f"value = {written[1]}")["value"], annotation)


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 losses"), (1, "1 loss"), (2, "2 losses"), (1234, "1,234 losses")]
)
def test_a_count_is_printed_in_the_singular_or_the_plural(number: int, told: str) -> None:
    assert counted(number, "loss", "losses") == told
    assert counted(number, "row") == told.replace("losses", "rows").replace("loss", "row")


def test_of_very_many_choices_only_some_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"not one of c0, c1, c2, c3, c4, c5 and 44 others.$"):
        check_value("zzzzz", "str", where="f", key="k", choices=tuple(f"c{i}" for i in range(50)))


def test_a_long_value_is_shortened_and_a_control_character_escaped() -> None:
    with pytest.raises(ConfigError) as caught:
        check_value("\x1b[31m" + "a" * 9000, "int", where="f\n", key="k")
    assert len(str(caught.value)) < 150
    assert str(caught.value).isprintable()
