"""The sections of a report except its charts: the head, time and memory, tables, data, settings."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.config.inspect.compare import flat
from fmstune.config.inspect.provenance import written_origins
from fmstune.layout import CONFIG_NAME, DATA_ROWS
from fmstune.report.ending import Ending, memory_line
from fmstune.report.html import Markup, element, folded, join, table
from fmstune.report.show import RunView, changed_settings, further_params
from fmstune.report.summary import unread
from fmstune.report.words import cell, duration, moment
from fmstune.secrets.redaction import process_redactor
from fmstune.system.memory import format_bytes

_OF_A_TABLE, _MOST_TABLES, _MOST_COLUMNS = 20, 12, 40


@dataclass(frozen=True, slots=True)
class Size:
    """The limits of a page: the number of points in total, of rows per list, and of characters per string."""

    points: int
    rows: int
    text: int
    hide: Callable[[str], str]
    """Hides the secrets in a string."""

    def cut(self, value: Any) -> str:
        """Format a value, with secrets hidden, truncated if it is very long."""
        text = self.hide(value if isinstance(value, str) else cell(value))
        return text if len(text) <= self.text else f"{text[: self.text]}… ({len(text):,} characters)"


def sizes() -> tuple[Size, ...]:
    """The sizes of a page, of which the largest that fits is used. They share which strings hold secrets, as
    the search takes most of the time."""
    hide = functools.cache(process_redactor().text)
    limits = ((12_000, 500, 2_000), (6_000, 200, 500), (3_000, 80, 200), (1_000, 20, 80))
    return tuple(Size(*each, hide) for each in limits)


def head(view: RunView, end: Ending, size: Size) -> Markup:
    """The name of the run, how it ended, and the most important figures."""
    line = view.line
    created = moment(line.created, "%Y-%m-%d %H:%M")
    title = element(
        "h1",
        join(
            [element("span", size.cut(line.name)), element("span", view.status, cls=f"status {view.status}")]
        ),
    )
    resumed = [f"resumed from step {each.resumed_from}" for each in view.sessions[1:]]
    about = " · ".join([str(view.directory), created, *resumed, *([line.params] if line.params else [])])
    lines = dict(end.lines())
    peak, expected = end.memory.get("peak"), end.memory.get("estimate")
    estimated = f"estimated {format_bytes(expected)}" if expected else ""
    cards = [
        ("loss", cell(line.loss), lines.get("loss", "")),
        ("eval loss", cell(line.eval), lines.get("eval", "")),
        ("duration", duration(end.seconds), f"step {cell(line.step)}"),
        ("tokens", f"{end.tokens:,}" if end.tokens else "-", _per_second(end)),
        ("peak memory", format_bytes(peak) if peak else "-", estimated),
        ("energy", f"{end.energy:.3g} Wh" if end.energy else "-", ""),
    ]
    shown = [
        element(
            "div",
            join(
                [element("span", name, cls="quiet"), element("b", value), element("span", more, cls="quiet")]
            ),
            cls="card",
        )
        for name, value, more in cards
        if value != "-"
    ]
    lacks = [f"Its journal has {', '.join(lost)}."] if (lost := unread(view.detail)) else []
    problems = [element("p", size.cut(each), cls="error") for each in filter(None, [line.error, *lacks])]
    return join(
        [
            title,
            *([element("p", size.cut(end.tuned))] if end.tuned else []),
            element("p", size.cut(about), cls="quiet"),
            *problems,
            element("div", join(shown), cls="cards"),
        ]
    )


def time_and_memory(end: Ending, size: Size) -> Markup | None:
    """Bars of the time of each phase, and of the measured and estimated memory."""
    longest = max(end.time.values(), default=0.0)
    bars = [_bar(name, seconds / longest, duration(seconds)) for name, seconds in end.time.items() if longest]
    most = max(end.memory.values(), default=0)
    bars += [
        _bar(f"memory, {name}", count / most, format_bytes(count))
        for name, count in end.memory.items()
        if most
    ]
    largest = max((part.measured for part in end.memory_parts.values()), default=0)
    for name, part in end.memory_parts.items():
        estimated = "" if part.estimated is None else f" · estimated {format_bytes(part.estimated)}"
        bars.append(
            _bar(name, part.measured / (most or largest or 1), format_bytes(part.measured) + estimated)
        )
    said = [memory_line(end.memory_parts)] if end.memory_parts else []
    if end.tokens and end.mfu is None:
        said.append("model FLOPs utilisation: unknown for this device or method")
    elif end.mfu is not None:
        said.append(f"model FLOPs utilisation: {end.mfu:.1%}")
    notes = [element("p", size.cut(each), cls="quiet") for each in said]
    return element("div", join([*bars, *notes])) if bars else None


def tables(view: RunView, size: Size) -> Markup | None:
    """The newest table of each name, with its rows."""
    newest: dict[str, Mapping[str, Any]] = {}
    for each in view.tables:
        newest[f"{each['stage'] or ''} {each['name']}".strip()] = each
    parts = []
    for name, each in [*newest.items()][:_MOST_TABLES]:
        rows = each["rows"][:_OF_A_TABLE]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        # For samples, the question is shown instead of the whole prompt.
        columns = [name for name in columns if not (name == "prompt" and "question" in columns)]
        more = len(each["rows"]) - len(rows)
        caption = f"{name} at step {cell(each['step'])}" + (f", {more:,} more rows" if more else "")
        if len(columns) > _MOST_COLUMNS:
            caption += f", {len(columns) - _MOST_COLUMNS:,} more columns"
            columns = columns[:_MOST_COLUMNS]
        parts.append(element("h3", size.cut(caption)))
        parts.append(
            table([*map(size.cut, columns)], [[size.cut(row.get(key)) for key in columns] for row in rows])
        )
    return join([*parts, *_more(len(newest) - _MOST_TABLES)]) if parts else None


def rows_of_data(view: RunView, size: Size) -> Markup | None:
    """The data, and a few rows as the model saw them, with the trained parts marked."""
    data = view.detail.params.get("data", {})
    facts = {
        key: value
        for key, value in data.items()
        if not isinstance(value, (Mapping, list, tuple)) and value not in (0, False)
    }
    parts = [_listed(["data", ""], [[key, value] for key, value in facts.items()], size)] if facts else []
    unused = [each for each in data.get("unused", ()) if isinstance(each, Mapping)]
    if unused:
        columns = list(dict.fromkeys(key for each in unused for key in each))[:_MOST_COLUMNS]
        rows = [[each.get(key) for key in columns] for each in unused]
        parts += [element("h3", "not used"), _listed([*map(size.cut, columns)], rows, size)]
    for row in _seen_rows(view)[:_OF_A_TABLE]:
        pieces = [
            element("mark" if piece.get("trained") else "span", size.cut(str(piece.get("text", "")))).text
            for piece in row.get("pieces", ())[: size.rows]
            if isinstance(piece, Mapping)
        ]
        counts = f"{cell(row.get('tokens'))} tokens, {cell(row.get('trained'))} trained (marked)"
        caption = f"{row.get('name')} · {counts}"
        parts += [element("h3", size.cut(caption)), element("pre", Markup("".join(pieces)))]
    return join(parts) if parts else None


def settings(view: RunView, size: Size) -> Markup | None:
    """The settings that differ from the defaults, with their origins; then all settings, versions and
    commit."""
    origins = written_origins(view.directory / CONFIG_NAME)
    changed = changed_settings(view.detail.settings)
    rows = [[key, value, origins.get(key, "default")] for key, value in changed.items()]
    parts = [_listed(["setting", "value", "from"], rows, size)] if rows else []
    params = view.detail.params
    if params.get("params"):
        parts += [element("h3", "params"), _pairs(params["params"], size)]
    if further := further_params(view.detail):
        parts += [element("h3", "further params"), _pairs(further, size)]
    for name, title in (
        ("decided", "decided from the machine and the data"),
        ("packages", "versions"),
        ("git", "commit"),
    ):
        if params.get(name):
            parts.append(folded(title, _pairs(params[name], size)))
    every = flat(view.detail.settings)
    return (
        join([*parts, folded(f"all {len(every)} settings", _pairs(every, size))]) if parts or every else None
    )


def figures(view: RunView, size: Size) -> Markup | None:
    """The figures of each metric."""
    names = ("metric", "points", "first", "lowest", "highest", "last")
    rows = [
        [each.key, str(each.points), each.first, each.lowest, each.highest, each.last]
        for each in view.figures
    ]
    whole = _listed(names, rows, size, numbers=names[1:])
    return folded(f"{len(rows)} metrics", whole) if rows else None


def delivery(view: RunView, end: Ending, size: Size) -> Markup | None:
    """The progress of each tracker's delivery, and the command that opens its run."""
    rows = []
    for each in view.delivery:
        place = each.url or ""
        shown: Markup | str = size.cut(place)
        if place.startswith(("http://", "https://")) and len(place) <= size.text:
            shown = element("a", size.cut(place), href=size.cut(place), rel="noreferrer")
        opens = end.opens.get(each.tracker) or each.remedy or each.note or ""
        rows.append(
            [size.cut(each.tracker), f"{each.delivered}/{each.total}", each.state, shown, size.cut(opens)]
        )
    return table(["tracker", "events", "state", "run", "command"], rows) if rows else None


def commands(end: Ending, size: Size) -> Markup | None:
    """The next commands, to copy."""
    return element("pre", size.cut("\n".join(end.next))) if end.next else None


def _pairs(values: Mapping[str, Any], size: Size) -> Markup:
    rows = [[key, value] for key, value in flat(values).items()]
    return _listed(["", ""], rows, size)


def _listed(head: Sequence[str], rows: Sequence[Sequence[Any]], size: Size, **how: Any) -> Markup:
    """A table with the rows that fit, and a note about those left out."""
    shown = table(head, [[size.cut(each) for each in row] for row in rows[: size.rows]], **how)
    return join([shown, *_more(len(rows) - size.rows)])


def _more(left_out: int) -> list[Markup]:
    said = f"{left_out:,} more; `fmstune runs show` has all."
    return [element("p", said, cls="quiet")] if left_out > 0 else []


def _bar(name: str, share: float, text: str) -> Markup:
    bar = element("i", "", style=f"width: {100 * max(0.0, min(1.0, share)):.1f}%")
    return element(
        "div", join([element("span", name), element("span", bar), element("span", text)]), cls="bar"
    )


def _seen_rows(view: RunView) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads((view.directory / DATA_ROWS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # an older run, a stream, or a file edited by the user
        return []
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _per_second(end: Ending) -> str:
    return f"{end.tokens_per_second:,.0f} per second" if end.tokens_per_second else ""
