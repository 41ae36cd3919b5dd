"""A scenario: a tracker whose service fails, how the service recovers, and what arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.delivery.report import report
from fmstune.testing.compare import as_single
from tests.support.end_to_end import Points, journal_points
from tests.support.waiting import wait_for

STEP, LAST = 4, 12
"""The optimizer step at which mid-run faults occur, and the last one."""


def nothing() -> None:
    """Does nothing."""


@dataclass
class Scenario:
    """A tracker with its options and a failing service. `inject` makes it fail, after step `at_step` and once
    the tracker has `started`, which by default is when the first event is delivered; `recover` ends the
    failure; `points` returns what the service holds in the end. `name` is the tracker's name in the run, and
    `environment` holds the variables of its processes."""

    name: str
    options: Mapping[str, Any]
    points: Callable[[], Points]
    inject: Callable[[], None] = nothing
    at_step: int = STEP
    recover: Callable[[], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    options_after_recovery: Mapping[str, Any] = field(default_factory=dict)
    started: Callable[[], object] | None = None

    def inject_in(self, directory: Path) -> None:
        """Cause the mid-run failure in this run, once delivery has started."""
        if self.inject is not nothing:
            wait_for(self.started or (lambda: report(directory, [self.name])[0].delivered))
            self.inject()

    def expected(self, directory: Path) -> Points:
        """The points of the run's journal, in the precision of the service."""
        points = journal_points(directory)
        single = kind_of(self.name) in ("tensorboard", "clearml")
        return {key: as_single(value) for key, value in points.items()} if single else points


StartScenario = Callable[[Path, str], AbstractContextManager[Scenario]]
"""Starts a scenario in a folder, for a tracker with this name."""


def kind_of(name: str) -> str:
    """The tracker behind a name in a run with several of a kind: `wandb-2` is a `wandb`."""
    return name.partition("-")[0]
