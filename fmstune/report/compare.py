"""Compare runs: first the settings that differ, then the results, then the resources used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.inspect.compare import flat
from fmstune.report.curves import Figures
from fmstune.report.show import RESOURCES, RunView, view


@dataclass(frozen=True, slots=True)
class Row:
    """A setting or metric, with its value in each run; `None` if a run does not have it."""

    key: str
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, in the given order. `settings` are those that differ, including params, versions and commits;
    `metrics` and `resources` are the figures of all runs."""

    runs: Sequence[RunView]
    settings: Sequence[Row]
    metrics: Sequence[Row]
    resources: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-compatible values: for each key, the values in the order of the runs."""
        runs = [
            {
                "run": str(run.directory),
                "status": run.status,
                "step": run.line.step,
                "seconds": run.line.seconds,
            }
            for run in self.runs
        ]
        return {
            "runs": runs,
            "settings": {row.key: list(row.values) for row in self.settings},
            "metrics": {row.key: [_figures(each) for each in row.values] for row in self.metrics},
            "resources": {row.key: [_figures(each) for each in row.values] for row in self.resources},
        }


def compared(directories: Sequence[Path]) -> Comparison:
    """Compare the runs in some directories. Raises the errors of `view`."""
    runs = [view(directory) for directory in directories]
    recorded = [_recorded(run) for run in runs]
    figures = [{each.key: each for each in run.figures} for run in runs]
    resources = {each.key for run in runs for each in run.figures if each.stage == RESOURCES}
    settings = [row for row in _rows(recorded) if any(value != row.values[0] for value in row.values)]
    rows = _rows(figures)
    return Comparison(
        runs=runs,
        settings=settings,
        metrics=[row for row in rows if row.key not in resources],
        resources=[row for row in rows if row.key in resources],
    )


def _recorded(run: RunView) -> dict[str, Any]:
    """Everything that determines a result, and the user's metadata, by dotted key."""
    found = flat(run.detail.settings)
    for name, values in run.detail.params.items():
        found |= flat(values, (name,))
    return found


def _rows(of_runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    keys = dict.fromkeys(key for each in of_runs for key in each)
    return [Row(key, [each.get(key) for each in of_runs]) for key in keys]


def _figures(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {
        name: getattr(figures, name)
        for name in (
            "first",
            "last",
            "last_step",
            "lowest",
            "lowest_step",
            "highest",
            "highest_step",
            "points",
        )
    }
