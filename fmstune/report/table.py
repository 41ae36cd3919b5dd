"""Plain-text tables, as wide as necessary, or limited to the terminal's width."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_GAP = "  "
_NARROWEST = 8
"""The minimum width of a column."""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    width: int | None = None,
    optional: Sequence[str] = (),
) -> list[str]:
    """The lines of a table whose cells are printable strings. Columns without values are left out; the
    columns in `right` are right-aligned. To fit into `width`, the middle of the longest cells is cut out,
    except in the first column, which users paste; if that is not enough, the columns in `optional` are
    dropped, in order."""
    used = [at for at in range(len(head)) if at == 0 or any(row[at] not in ("", "-") for row in rows)]
    rows = [[row[at] for at in used] for row in rows]
    head = [head[at] for at in used]
    ascii_only = all(each.isascii() for row in rows for each in row)
    measure = len if ascii_only else columns
    widths = [
        max(measure(name), *(measure(row[at]) for row in rows)) if rows else len(name)
        for at, name in enumerate(head)
    ]
    kept = list(range(len(head)))
    if width is not None:
        for name in optional:
            if _least([widths[at] for at in kept]) > width:
                kept = [at for at in kept if head[at] != name]
        head, rows = [head[at] for at in kept], [[row[at] for at in kept] for row in rows]
        widths = _fitted([widths[at] for at in kept], width)
    lines = []
    for row in [head, *rows]:
        cells = [
            _padded(_cut(each, size) if measure(each) > size else each, size, right=name in right)
            for each, size, name in zip(row, widths, head, strict=True)
        ]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def columns(text: str) -> int:
    """The width of a string on a terminal, in columns."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _least(widths: list[int]) -> int:
    """The minimum width of a table with columns of these widths."""
    return widths[0] + sum(len(_GAP) + min(each, _NARROWEST) for each in widths[1:])


def _fitted(widths: list[int], width: int) -> list[int]:
    fitted = list(widths)
    while sum(fitted) + len(_GAP) * (len(fitted) - 1) > width:
        longest = max(range(1, len(fitted)), key=lambda at: fitted[at], default=0)
        if not longest or fitted[longest] <= _NARROWEST:
            break
        fitted[longest] -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    """Cut out the middle of a string."""
    half = (width - 1) // 2
    return f"{_start(text, width - 1 - half)}…{_start(text[::-1], half)[::-1]}"


def _start(text: str, width: int) -> str:
    taken = ""
    for char in text:
        if columns(taken + char) > width:
            break
        taken += char
    return taken


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * max(0, width - columns(text))
    return space + text if right else text + space
