"""What an examination is given to look at, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Delivered:
    """A run that was delivered: `folder` was the current directory of the processes that did it, `run_id` and
    `url` are what `Tracker.open` said last."""

    folder: Path
    run_id: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the service holds of the one run that was delivered to it.

    `points` are (name, step, value), in any order: all values that are there. A name is `stage/name`, or the
    name alone where there was no stage. `params` has one mapping for each namespace, or dotted names in one
    mapping; `None`: they are not read back, and not compared. The same holds for `status`.
    """

    points: Sequence[tuple[str, int | None, Any]]
    params: Mapping[str, Any] | None = None
    status: str | None = None


Read = Callable[[Delivered], Stored]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a tracker `keeps`, and where it `breaks` what it declares; a sentence each."""

    keeps: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.breaks

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.keeps + other.keeps, self.breaks + other.breaks)

    def __str__(self) -> str:
        lines = [f"keeps   {each}" for each in self.keeps] + [f"BREAKS  {each}" for each in self.breaks]
        return "\n".join(lines)


def found(breaks: Sequence[str], keeps: str) -> Findings:
    """The findings of one examination: `keeps` holds where nothing is broken."""
    return Findings(breaks=tuple(breaks)) if breaks else Findings(keeps=(keeps,))
