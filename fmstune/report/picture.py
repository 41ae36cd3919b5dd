"""Save charts as a picture with matplotlib: PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmstune.access import reason
from fmstune.errors import ConfigError, RunError
from fmstune.report.charts import Chart
from fmstune.report.columns import whole
from fmstune.report.words import printable
from fmstune.text import shown_path

KINDS = (".png", ".svg", ".pdf")
_WIDTH, _HEIGHT = 8.0, 3.6
_MOST_NAMED = 10
"""The maximum number of runs in a legend."""


def save_picture(charts: Sequence[Chart], path: Path) -> None:
    """Draw charts below each other, and save them in the format of the file's suffix. Raises `ConfigError` if
    the suffix is not in `KINDS` or matplotlib is not installed, `RunError` if the file cannot be written."""
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"--output {shown_path(path)}: use one of the suffixes {', '.join(KINDS)}.")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib, which is not installed: pip install 'fmstune[plot]'."
        ) from None
    # Names are plain text: a `$` does not start a formula. Text stays text in an SVG.
    with matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(charts)), layout="constrained")
        for axes, chart in zip(figure.subplots(len(charts), squeeze=False).flat, charts, strict=True):
            for line in chart.lines:
                dot = "." if len(line.xs) < 30 else ""
                label = printable(line.label)
                # matplotlib leaves out labels that start with an underscore.
                label = f" {label}" if label.startswith("_") else label
                axes.plot(whole(line.xs), whole(line.ys), label=label, linewidth=1.4, marker=dot)
            axes.set_title(printable(chart.key), loc="left", fontsize=11)
            axes.set_xlabel(chart.x)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if len(chart.lines) <= _MOST_NAMED:
                axes.legend(frameon=False, fontsize=9)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise RunError(f"{shown_path(path)} cannot be written: {reason(error, path)}.") from error
