"""Runs side by side: the settings that differ first, then what came of them, then what it took."""

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
    """A setting or a metric, with what each of the runs has of it; `None` where one has none."""

    key: str
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Some runs, in the order in which they were named. `settings` are those that differ, with the params,
    versions and commits; `metrics` and `resources` have the figures of all runs."""

    runs: Sequence[RunView]
    settings: Sequence[Row]
    metrics: Sequence[Row]
    resources: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON has it: for each key what each run has, in the order of the runs."""
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
    """The runs in some directories side by side. Raises what `view` does."""
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
    """All that decides a result, and what its user noted, by dotted key."""
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
