"""Whatever a user tracks becomes JSON that represents it, and never raises in the training."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import enum
import json
import signal
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmstune.trackers.values.plain import MOST_VALUES, Walk, plain, text_of


class Kind(enum.Enum):
    WARM = "warm"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Source:
    path: Path
    kind: Kind


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Kind.WARM, "warm"),
        (Level.HIGH, 3),
        (Source(Path("/data/a"), Kind.WARM), {"path": "/data/a", "kind": "warm"}),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        ({3, 1, 2}, [1, 2, 3]),
        (np.uint64(2**63), 2**63),
        (np.array([[1.0, np.nan]]), [[1.0, "NaN"]]),
        (torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True), 1.5),
        (torch.zeros(100, 1000), "<Tensor of shape [100, 1000]>"),
        (b"x" * 20_000, "x" * 10_000 + "… (20000 bytes)"),
        ({1: "a", "1": "b", None: "c", Kind.WARM: "d"}, {"1": "a", "1 (2)": "b", "None": "c", "warm": "d"}),
        (1 + 2j, "(1+2j)"),
        (np.ma.masked, "NaN"),
        (np.ma.array([2.0], mask=[True]), "NaN"),
        (np.ma.array([2.0, 3.0], mask=[True, False]), [None, 3.0]),
        pytest.param(Hostile(), "<Hostile>", id="hostile"),
    ],
)
def test_a_foreign_value_becomes_the_most_informative_json(value: Any, kept: Any) -> None:
    assert plain({"value": value}) == {"value": kept}
    json.dumps(plain(value), allow_nan=False)


@dataclasses.dataclass
class Node:
    children: list[Any]
    parent: Any = None


class Endless(list[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


def shared(depth: int, make: Any = lambda x: [x, x]) -> Any:
    value: Any = [1]
    for _ in range(depth):
        value = make(value)
    return value


def values_in(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(values_in, below))


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: [],
    "dict": lambda: {},
    "node": lambda: Node([]),
    "deque": lambda: collections.deque(),
    "namespace": lambda: types.SimpleNamespace(),
    "array": lambda: np.empty(0, dtype=object),
}


def join(nodes: list[Any], source: int, target: int) -> None:
    """Put one node into another, possibly into itself."""
    at, item = nodes[source], nodes[target]
    if isinstance(at, Node):
        at.children.append(item)
        at.parent = item
    elif isinstance(at, dict):
        at[len(at)] = item
    elif isinstance(at, types.SimpleNamespace):
        vars(at)[f"x{len(vars(at))}"] = item
    elif isinstance(at, np.ndarray):
        nodes[source] = np.append(at, 0)
        nodes[source][-1] = item
    else:
        at.append(item)


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30),
)
def test_a_graph_of_any_shape_is_read_within_its_budget(
    kinds: list[str], edges: list[tuple[int, int]]
) -> None:
    nodes = [KINDS[kind]() for kind in kinds]
    for source, target in edges:
        join(nodes, source % len(nodes), target % len(nodes))
    found = Walk(500).plain(nodes[0])
    json.dumps(found, allow_nan=False)
    # Where the budget ends, each enclosing container says so, and nothing more is read.
    assert values_in(found) <= 500 + 65


def test_a_tree_with_parent_links_keeps_everything_except_those_links() -> None:
    root = Node([])
    root.children = [Node([], root), Node([3], root)]
    back = "<Node, nested in itself>"
    children = [{"children": [], "parent": back}, {"children": [3], "parent": back}]
    assert plain(root) == {"children": children, "parent": None}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(shared(25), id="shared lists"),
        pytest.param(shared(25, lambda x: {"a": x, "b": x}), id="shared mappings"),
        pytest.param(list(range(MOST_VALUES + 1)), id="long list"),
        pytest.param(set(range(MOST_VALUES + 1)), id="large set"),
        pytest.param(dict.fromkeys(range(MOST_VALUES + 1), 1), id="large mapping"),
        pytest.param(Endless(), id="endless"),
    ],
)
def test_an_oversized_value_is_truncated_and_says_so(value: Any) -> None:
    written = json.dumps(plain(value))
    assert "<cut: more than 100,000 values>" in written
    assert len(written) < 3_000_000


def test_a_value_nested_too_deep_is_marked_and_not_serialized() -> None:
    written = json.dumps(plain(shared(100, lambda x: [0, x])))
    assert "<list, nested too deep>" in written
    # The text of lists that share lists would have 2 to the power of 100 characters.
    assert "nested too deep" in json.dumps(plain(shared(100, lambda x: (x,) * 2), 3))
    assert len(json.dumps(plain({Frozen(shared(100, lambda x: (x, x))): 1}))) < 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    value: Any


def test_a_string_that_is_shared_often_is_kept_as_often_as_the_budget_allows() -> None:
    text = "x" * (1 << 22)
    kept = plain([text] * 100)
    assert kept[0] == text
    assert sum(map(len, kept)) < 1.1 * (1 << 26)
    assert "cut: 4194304 characters" in kept[-1]


class Changing(dict[str, int]):
    """A mapping that another thread adds to during the first reads."""

    reads = 0

    def items(self) -> Any:
        self.reads += 1
        if self.reads < 4:
            raise RuntimeError("dictionary changed size during iteration")
        return super().items()


def test_a_mapping_that_changes_while_it_is_read_is_read_again() -> None:
    assert plain(Changing(a=1)) == {"a": 1}


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
def test_the_type_of_a_value_is_kept_whatever_the_value_raises(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raises:
        def __str__(self) -> str:
            raise error

    monkeypatch.setattr(signal, "getsignal", lambda _: print)  # as in a run, which installs its own handler
    assert plain({"a": Raises(), "b": 1}) == {"a": "<Raises>", "b": 1}
    assert text_of(Raises()) == "<Raises>"


def test_the_string_of_an_unknown_object_is_bounded() -> None:
    class Long:
        def __str__(self) -> str:
            return "x" * 1_000_000

    assert plain(Long()) == "x" * 10_000 + "… (1000000 characters)"


class Reading:
    """A number of an unknown library."""

    def __float__(self) -> float:
        return 2.5


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("no")

    def __str__(self) -> str:
        return "broken"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.25"), 0.25), (Fraction(1, 4), 0.25), (np.longdouble(1.5), 1.5), (Reading(), 2.5),
        (Decimal("NaN"), "NaN"), (Decimal("-Infinity"), "-Infinity"), (Decimal("1e999"), "1E+999"),
        (Broken(), "broken"), (1 + 2j, "(1+2j)"),
    ],
)  # fmt: skip
def test_numbers_of_other_kinds_are_numbers(value: Any, expected: Any) -> None:
    assert plain(value) == expected
