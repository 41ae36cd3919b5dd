"""The scenarios of the fault tests, by fault; misbehaving plug-ins are here."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmstune.trackers import registry
from fmstune.trackers.registry import register_tracker, tracker_class
from tests.sample_trackers import Collector, collected
from tests.support.end_to_end import Points
from tests.support.scenario import LAST, STEP, Scenario, StartScenario
from tests.support.service_scenarios import aim, clearml, comet, mlflow, swanlab, trackio, wandb
from tests.support.storage_scenarios import (
    aim_on_a_disk_that_fills,
    comet_on_a_disk_that_fills,
    dvclive_on_a_disk_that_fills,
    file_on_a_disk_that_fills,
    full_disk,
    swanlab_on_a_disk_that_fills,
    tensorboard_on_a_disk_that_fills,
    tensorboard_whose_shipper_is_killed,
)
from tests.support.warm_shippers import Around, around

BAD_IMPORT = "tests.bad_import"
_OTHERS = 4
"""Rounds of the trackers that have an SDK, each with a few of every tracker's scenarios."""


def plugin(fault: str, at: str) -> StartScenario:
    """A user's tracker that misbehaves in its own process."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        well, path = folder / "well", folder / "collected"
        options = {"path": str(path), "fault": fault, "at": at, "until": str(well)}

        def points() -> Points:
            calls = [call for call in collected(path) if call["call"] == "track"]
            return {
                (call["stage"], name, call["step"] or 0): value
                for call in calls
                for name, value in call["values"].items()
            }

        if at == "import":
            name, environment = f"{BAD_IMPORT}:{fault}", {"BAD_IMPORT": f"{fault} {well}"}
            yield Scenario(name, options, points, recover=well.touch, environment=environment)
        else:
            yield Scenario(name, options, points, recover=well.touch)

    return start


@contextlib.contextmanager
def leaking_plugin(folder: Path, name: str) -> Iterator[Scenario]:
    """A user's tracker that leaks 50 MB per call, with a limit that the demo's few calls reach."""
    with pytest.MonkeyPatch.context() as limits, plugin("leak", "track")(folder, name) as scenario:
        limits.setattr("fmstune.delivery.shippers._MOST_MEMORY", 300_000_000)
        limits.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
        yield scenario


SCENARIOS: dict[str, tuple[str, StartScenario]] = {
    "raises on every call": ("a plug-in", plugin("raise", "track")),
    "raises when it is opened": ("a plug-in", plugin("raise", "open")),
    "raises on params": ("a plug-in", plugin("raise", "set_params")),
    "raises when it is closed": ("a plug-in", plugin("raise", "close")),
    "hangs on import": ("a plug-in", plugin("hang", "import")),
    "hangs in a call": ("a plug-in", plugin("hang", "track")),
    "hangs when it is opened": ("a plug-in", plugin("hang", "open")),
    "hangs when it is closed": ("a plug-in", plugin("hang", "close")),
    "hangs in its check": ("a plug-in", plugin("hang", "check")),
    "is slow (0.2 s per call)": ("a plug-in", plugin("slow", "track")),
    "calls sys.exit": ("a plug-in", plugin("exit", "track")),
    "is killed (SIGKILL)": ("a plug-in", plugin("kill", "track")),
    "crashes (SIGSEGV)": ("a plug-in", plugin("segv", "track")),
    "crashes on import": ("a plug-in", plugin("segv", "import")),
    "leaks 50 MB per call": ("a plug-in", leaking_plugin),
    "server not there at the start": ("aim", aim("refused")),
    "server is a black hole from the start": ("aim", aim("silent")),
    "server killed mid-run": ("aim", aim("killed")),
    "server stops answering mid-run": ("aim", aim("stopped")),
    "server killed at the end": ("aim", aim("killed", LAST)),
    "disk of the repository full mid-run": ("aim", aim_on_a_disk_that_fills),
    "cloud refuses connections from the start": ("wandb", wandb("refused", 0)),
    "cloud is a black hole from the start": ("wandb", wandb("black_hole", 0)),
    "cloud answers 500 from the start": ("wandb", wandb(500, 0)),
    "cloud answers 429 from the start": ("wandb", wandb(429, 0)),
    "cloud is slow (0.8 s per request)": ("wandb", wandb("slow", 0)),
    "cloud refuses connections mid-run": ("wandb", wandb("refused", STEP)),
    "cloud is a black hole mid-run": ("wandb", wandb("black_hole", STEP)),
    "cloud answers 401 mid-run": ("wandb", wandb(401, STEP)),
    "cloud answers 403 mid-run": ("wandb", wandb(403, STEP)),
    "cloud answers 429 mid-run": ("wandb", wandb(429, STEP)),
    "cloud answers 500 mid-run": ("wandb", wandb(500, STEP)),
    "cloud answers 500 at the end": ("wandb", wandb(500, LAST)),
    "server not there from the start": ("mlflow", mlflow("refused")),
    "server killed after some steps": ("mlflow", mlflow("killed")),
    "server killed at its end": ("mlflow", mlflow("killed", LAST)),
    "disk of the folder full mid-run": ("tensorboard", tensorboard_on_a_disk_that_fills),
    "its process killed repeatedly": ("tensorboard", tensorboard_whose_shipper_is_killed),
    "disk full after some steps": ("dvclive", dvclive_on_a_disk_that_fills),
    "Comet's server refuses connections from the start": ("comet", comet("refused", 0)),
    "Comet's server answers 429 mid-run": ("comet", comet(429, STEP)),
    "disk of the archives full mid-run": ("comet", comet_on_a_disk_that_fills),
    "ClearML's server answers 503 mid-run": ("clearml", clearml(503, STEP)),
    "its server is not there from the start": ("trackio", trackio("refused")),
    "its server is killed after some steps": ("trackio", trackio("killed")),
    "its cloud is not there from the start": ("swanlab", swanlab(0)),
    "its cloud refuses connections mid-run": ("swanlab", swanlab(STEP)),
    "no room for its file mid-run": ("swanlab", swanlab_on_a_disk_that_fills),
    "disk full from the start": ("file", full_disk),
    "disk full mid-run": ("file", file_on_a_disk_that_fills),
}


def _rounds() -> dict[str, int]:
    """The plug-ins have a round of their own, because its limits are too low for an SDK."""
    others = itertools.cycle(range(1, _OTHERS + 1))
    return {fault: 0 if who == "a plug-in" else next(others) for fault, (who, _) in SCENARIOS.items()}


ROUNDS = _rounds()
"""The training in which each fault occurs, together with other trackers' faults."""


@contextlib.contextmanager
def running(number: int, folder: Path) -> Iterator[dict[str, Scenario]]:
    """The scenarios of a round, by fault. Several trackers of a kind are registered under additional
    names."""
    counts: Counter[str] = Counter()
    scenarios: dict[str, Scenario] = {}
    with contextlib.ExitStack() as stack:
        registered = stack.enter_context(pytest.MonkeyPatch.context())
        registered.setattr(registry, "_registered", dict(registry._registered))
        for fault in (each for each, of in ROUNDS.items() if of == number):
            who, start = SCENARIOS[fault]
            kind = "collector" if who == "a plug-in" else who
            counts[kind] += 1
            name = kind if counts[kind] == 1 else f"{kind}-{counts[kind]}"
            if name not in registry.BUILT_IN:
                register_tracker(name, Collector if kind == "collector" else tracker_class(kind))
            place = folder / str(len(scenarios))
            place.mkdir()
            scenario = scenarios[fault] = stack.enter_context(start(place, name))
            around[scenario.name] = Around(scenario.environment)
            stack.callback(around.pop, scenario.name)
        yield scenarios
