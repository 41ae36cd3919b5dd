"""Names of splits, and the parts of one that can be selected: `train`, `train[:10%]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_WORD = r"(?:^|[-._ /0-9])(?:{})(?:[-._ /0-9]|$)"
_SLICED = re.compile(r"(?P<name>[^\[\]]+)\[(?P<first>-?\d+%?)?:(?P<end>-?\d+%?)?\]")


def split_named(name: str) -> str | None:
    """The split that a name refers to: `train` for `train_sft`; `None` if there is none."""
    return split_of(Path(name))


def split_of(path: Path) -> str | None:
    """The split that a file is named after, in its folders or its own name, as on the hub."""
    text = path.as_posix().lower()
    for split, words in _SPLITS.items():
        if re.search(_WORD.format("|".join(words)), text):
            return split
    return None


def split_called(name: str) -> str:
    """The split that goes by this name: `validation` for `dev`; other names unchanged."""
    return next((split for split, words in _SPLITS.items() if name.lower() in words), name)


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of a split from `first` to before `end`, by number or in percent; negative ones count from the
    end. It selects the rows that `datasets.ReadInstruction` does."""

    first: int | None
    end: int | None
    percent: bool

    @classmethod
    def of(cls, split: str) -> tuple[str, Slice | None]:
        """The name of a split, and the slice after it, if there is one. Raises `ValueError` with a message
        for anything else in brackets, and for several splits."""
        found = _SLICED.fullmatch(split)
        if found is None and any(sign in split for sign in "[]+("):
            raise ValueError("write one split, as in train[:10%] or train[100:200]")
        if found is None:
            return split, None
        percent = "%" in split
        first, end = (int(bound.rstrip("%")) if bound else None for bound in found.group("first", "end"))
        if percent and any(abs(number or 0) > 100 for number in (first, end)):
            raise ValueError("a percentage is at most 100")
        return found["name"], cls(first, end, percent)

    def bounds(self, rows: int) -> tuple[int, int]:
        """The number of the first row, and of the one after the last, in a split with this many rows."""
        first, end = (
            round(number * rows / 100) if self.percent and number is not None else number
            for number in (self.first, self.end)
        )
        return slice(first, end).indices(rows)[:2]

    @property
    def counts(self) -> bool:
        """Whether the rows must be counted first."""
        return self.percent or (self.first or 0) < 0 or (self.end or 0) < 0

    def select(self, rows: Iterable[T], count: int) -> Iterator[T]:
        """The selected ones of `count` rows; `count` is only used if `counts`."""
        first, end = self.bounds(count) if self.counts else (self.first or 0, self.end)
        return islice(rows, first, end)
