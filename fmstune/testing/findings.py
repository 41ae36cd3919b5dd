"""The input and the results of an examination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivered run: `folder` was the current directory of the delivering processes; `run_id` and `url` are
    from the last `Tracker.open`."""

    folder: Path
    run_id: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """The data that the service stores for the delivered run.

    `points` are all stored values as (name, step, value), in any order. A name is `stage/name`, or just the
    name if there was no stage. `params` has a mapping for each namespace, or dotted names in one mapping;
    with `None` they are not compared. The same applies to `status`, `tables` as (name, step, rows), and
    `media` as (kind, name, step), where a kind is text, image or histogram, and `artifacts` as (name, the
    content of each file by its name). A tracker without `track_table` has its tables in `params`.
    """

    points: Sequence[tuple[str, int | None, Any]]
    params: Mapping[str, Any] | None = None
    status: str | None = None
    tables: Sequence[tuple[str, int | None, Sequence[Mapping[str, Any]]]] | None = None
    media: Sequence[tuple[str, str, int | None]] | None = None
    artifacts: Sequence[tuple[str, Mapping[str, bytes]]] | None = None


Read = Callable[[Delivered], Stored]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a tracker `keeps` and `breaks` of what it declares, as sentences."""

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
    """The findings of an examination: `breaks`, or `keeps` if nothing is broken."""
    return Findings(breaks=tuple(breaks)) if breaks else Findings(keeps=(keeps,))
