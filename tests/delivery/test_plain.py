"""Whatever a user tracks becomes JSON that says what it was, and never an error in the training."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmstune.delivery.journal import plain


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
        pytest.param(Hostile(), "<Hostile>", id="hostile"),
    ],
)
def test_a_foreign_value_becomes_the_json_that_says_most_of_it(value: Any, kept: Any) -> None:
    assert plain({"value": value}) == {"value": kept}
    json.dumps(plain(value), allow_nan=False)
