"""Tables are checked against dataclasses, whose annotations are types or strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

import pytest

from fmstune.config.check.typed import read_dataclass
from fmstune.errors import ConfigError


@dataclass(frozen=True)
class Postponed:
    url: str = field(metadata={"help": "Where."})
    retries: int = field(default=3, metadata={"min": 0, "max": 9})
    tags: tuple[str, ...] = ()
    mode: str = field(default="on", metadata={"choices": ("on", "off")})

    def __post_init__(self) -> None:
        if " " in self.url:
            raise ValueError("url has a space in it")


Written: Any = dataclass(frozen=True)(
    type(
        "Written",
        (),
        {
            "__annotations__": {
                "count": Optional[int],  # noqa: UP045
                "either": Union[int, str],  # noqa: UP007
                "names": list[str],
                "kind": Literal["a", "b"],
                "ratio": float,
            },
            "count": None,
            "either": 1,
            "names": field(default_factory=list),
            "kind": "a",
            "ratio": 0.5,
        },
    )
)


def read(**given_values: Any) -> Postponed:
    return read_dataclass(Postponed, given_values, where="[trackers.t]", prefix="trackers.t")


def test_a_table_becomes_an_instance_with_its_defaults() -> None:
    assert read(url="x", tags=["a"]) == Postponed("x", 3, ("a",), "on")


def test_real_types_are_supported_as_well_as_strings() -> None:
    values = {"count": 2, "either": "x", "names": ["y"], "kind": "b", "ratio": 1}
    made = read_dataclass(Written, values, where="here", prefix="t")
    assert (made.count, made.either, made.names, made.kind, made.ratio) == (2, "x", ["y"], "b", 1)
    for wrong in ({"count": "2"}, {"either": 1.5}, {"names": [1]}, {"kind": "c"}, {"ratio": "1"}):
        with pytest.raises(ConfigError):
            read_dataclass(Written, wrong, where="here", prefix="t")


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({}, "[trackers.t]: trackers.t.url is missing; set it to a string."),
        (
            {"url": "x", "retires": 1},
            "[trackers.t]: there is no setting trackers.t.retires. Did you mean retries?",
        ),
        (
            {"url": "x", "foo": 1},
            "[trackers.t]: there is no setting trackers.t.foo. Available: url, retries, tags, mode.",
        ),
        (
            {"url": "x", "retries": 10},
            "[trackers.t]: trackers.t.retries = 10 is out of range; it must be at least 0 and at most 9.",
        ),
        ({"url": "x", "mode": "onn"}, "[trackers.t]: trackers.t.mode = 'onn' is not one of on, off."),
        ({"url": "a b"}, "[trackers.t]: trackers.t: url has a space in it"),
    ],
)
def test_an_invalid_option_of_a_tracker_names_its_location(
    given_values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**given_values)
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class Options:
    size: int = field(default=1, metadata={"min": 1, "below": 9})
    names: tuple[str, ...] = ()
    ratio: "float | None" = field(default=None, metadata={"min": 0})  # noqa: UP037


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 0}, "f: t.size = 0 is out of range; it must be at least 1 and below 9."),
        ({"size": 9}, "f: t.size = 9 is out of range; it must be at least 1 and below 9."),
        ({"ratio": -1}, "f: t.ratio = -1 is out of range; it must be at least 0."),
        ({"siz": 2}, "f: there is no setting t.siz. Did you mean size?"),
        ({"qqqqq": 2}, "f: there is no setting t.qqqqq. Available: size, names, ratio."),
        ({"a\nb": 2}, 'f: there is no setting t."a\\nb". Available: size, names, ratio.'),
    ],
)
def test_an_invalid_table_is_reported(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_dataclass(Options, given, where="f", prefix="t")
    assert str(caught.value) == says
