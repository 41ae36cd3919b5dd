"""The single record of what in the rows does not reach the model: columns, reasoning, empty answers, and so
on.

Nothing in a row is ignored silently. Code that finds something that is neither used nor refused calls
`reader.unused.column(name)` or `reader.unused.add(what, place)` once per row. The counts end up in
`DataSummary.unused`, and from there in `fmstune data`, in the output of `train`, in the model card and in the
run's parameters. A new kind needs no change other than its call of `add`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fmstune.text import counted

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class NotUsed:
    """One thing that is not used: a column, or another one that `what` describes, like `reasoning is not
    trained: …`.

    `rows` counts the rows of `source` that have it, `first` is the location of the first one. Without rows
    it is a sentence about the source itself.
    """

    source: str
    what: str
    rows: int
    first: str
    column: bool = False


@dataclass
class Unused:
    """Count what is not used in the rows of one source. Never raises."""

    source: str
    _found: dict[tuple[bool, str], tuple[int, str]] = field(default_factory=dict)

    def column(self, name: str, place: str) -> None:
        """Count a non-empty column that is not read."""
        self._count(True, name, place)

    def add(self, what: str, place: str) -> None:
        """Count something in a row that is not used. `what` is a clause with the reason, without the row:
        `reasoning is not trained: the chat template leaves it out`. Call it once for each row and kind."""
        self._count(False, what, place)

    def note(self, text: str) -> None:
        """Record another message about the source, such as its encoding: a sentence."""
        self._found[False, text] = 0, ""

    def entries(self) -> tuple[NotUsed, ...]:
        """What was counted, in the order in which it was found."""
        return tuple(
            NotUsed(self.source, what, rows, first, column)
            for (column, what), (rows, first) in self._found.items()
        )

    def merge(self, other: Unused) -> None:
        """Add the counts of later rows of the same source."""
        for kind, (rows, first) in other._found.items():
            before, earlier = self._found.get(kind, (0, first))
            self._found[kind] = before + rows, earlier

    def _count(self, column: bool, what: str, place: str) -> None:
        rows, first = self._found.get((column, what), (0, place))
        self._found[column, what] = rows + 1, first


def unused_lines(entries: Iterable[NotUsed]) -> list[str]:
    """Readable lines: one for the columns of each source, and one for each other kind."""
    entries = list(dict.fromkeys(entries))  # the file of the training and of the evaluation may be the same
    several = len({entry.source for entry in entries}) > 1
    columns: dict[str, list[NotUsed]] = {}
    others: list[str] = []
    for entry in entries:
        if entry.column:
            columns.setdefault(entry.source, []).append(entry)
        elif not entry.rows:
            others.append(entry.what)
        else:
            others.append(f"{entry.what} ({counted(entry.rows, 'row')}; the first is {entry.first})")
    lines = []
    for source, found in columns.items():
        of = f" of {source}" if several else ""
        lines.append(f"columns{of} not used: {_columns(found)}")
    return [*lines, *others]


def _columns(entries: list[NotUsed]) -> str:
    """The columns with their row counts; columns with the same count share it."""
    by_rows: dict[int, list[str]] = {}
    for entry in entries[:_SHOWN]:
        by_rows.setdefault(entry.rows, []).append(entry.what)
    parts = [f"{', '.join(names)} ({counted(rows, 'row')})" for rows, names in by_rows.items()]
    if len(entries) > _SHOWN:
        parts.append(f"and {len(entries) - _SHOWN} more")
    return ", ".join(parts)
