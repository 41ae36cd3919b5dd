"""Tables of plain text, as wide as they need to be, or as the terminal is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_GAP = "  "
_NARROWEST = 8
"""A column is not made narrower than this."""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    width: int | None = None,
    optional: Sequence[str] = (),
) -> list[str]:
    """The lines of a table whose cells are printable texts. Columns without any value are left out; the
    columns named by `right` are numbers. Within `width`, the longest cells lose their middle, but those of
    the first column, which people paste; where that is not enough, columns of `optional` are left out, the
    first one first."""
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
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _least(widths: list[int]) -> int:
    """The least width of a table with columns of these widths."""
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
    """The text without its middle."""
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
