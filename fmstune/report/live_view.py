"""Draw a running run on a terminal of any width: its phase, its progress, and its metrics."""

from __future__ import annotations

import math
import time

from rich.text import Text

from fmstune.report.charts import Chart, Line
from fmstune.report.live_state import LiveState
from fmstune.report.text_chart import text_chart
from fmstune.report.words import cell, duration, printable
from fmstune.secrets.redaction import hide

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_HEIGHT = 7
_NARROWEST_CHART = 40
_LONGEST_PROBLEM = 60


def drawn(state: LiveState, width: int) -> Text:
    """The display, as lines of at most `width` columns."""
    lines = [_doing(state, width), *_chart(state, width), *_figures(state, width), *_deliveries(state, width)]
    text = Text("\n").join(lines)
    text.no_wrap = True
    return text


def _doing(state: LiveState, width: int) -> Text:
    elapsed = time.monotonic() - state.phase_began
    mark = " " if state.status else _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)]
    done, total = state.done, state.total
    if state.phase == "training":
        done, total = state.step, state.steps
    head = f"{mark} {state.status or state.phase}"
    if total:
        tail = [f"{done:,}/{total:,}", *_epoch_and_left(state)]
        behind = "  ".join(tail)
        room = max(0, min(width - len(head) - len(behind) - 6, 50))
        filled = round(room * min(1.0, done / total))
        bar = Text.assemble(("━" * filled, "green"), ("─" * (room - filled), "dim")) if room > 4 else Text()
        return _fitted(Text.assemble((head, "bold"), "  ", bar, "  " if room > 4 else "", behind), width)
    counted = f"  {done:,}" if done else ""
    waited = "" if state.status else f"  {duration(elapsed)}"
    return _fitted(Text.assemble((head, "bold"), counted, (waited, "dim")), width)


def _epoch_and_left(state: LiveState) -> list[str]:
    if state.phase != "training" and not state.status:
        return []
    epoch = [f"epoch {state.epoch:.2f}"] if state.epoch is not None else []
    left = [] if state.left is None or state.status else [f"{duration(state.left)} left"]
    return [*epoch, *left]


def _chart(state: LiveState, width: int) -> list[Text]:
    points = [(step, loss) for step, loss in state.losses if math.isfinite(loss)]
    if len(points) < 2 or width < _NARROWEST_CHART:
        return []
    chart = Chart("loss", "step", [Line("", [step for step, _ in points], [loss for _, loss in points])])
    lines = text_chart(chart, min(width - 2, 100), _HEIGHT)[2:]  # without its title and legend
    return [_fitted(Text(line, style="cyan"), width) for line in lines]


def _figures(state: LiveState, width: int) -> list[Text]:
    named = [f"loss {cell(state.losses[-1][1])}"] if state.losses else []
    named += [f"eval loss {cell(state.eval_loss)}"] if state.eval_loss is not None else []
    for name, value in state.figures.items():
        named.append(f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}")
    named += [f"memory {state.memory_mb:,.0f} MB"] if state.memory_mb is not None else []
    return [_fitted(Text(f"  {line}"), width) for line in _wrapped(named, width - 2)]


def _deliveries(state: LiveState, width: int) -> list[Text]:
    found = []
    for each in state.deliveries:
        problem = " ".join(hide(printable(each.problem)).split())[:_LONGEST_PROBLEM]
        line = Text(f"  {printable(each.tracker)} {each.delivered:,}/{each.total:,}")
        found.append(_fitted(line + Text(f"  {problem}" if problem else "", style="yellow"), width))
    return found


def _wrapped(words: list[str], width: int) -> list[str]:
    """Wrap the words into as few lines as possible, without breaking any."""
    lines: list[list[str]] = [[]]
    for word in words:
        if lines[-1] and len("   ".join([*lines[-1], word])) > width:
            lines.append([])
        lines[-1].append(word)
    return ["   ".join(line) for line in lines if line]


def _fitted(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
