"""Whatever a tracker or its service does, the training is unaffected and everything is delivered eventually.

Each test is a real training with a real fault. The table of faults in docs/reliability.md is generated from
their results by `FMSTUNE_FAULT_TABLE=1 pytest tests/faults`.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.report import DeliveryReport, report
from fmstune.delivery.sync import sync
from fmstune.run.run import run
from fmstune.run.tracking import TrackerCheckFailed
from fmstune.trackers.registry import reference
from tests.support import scenarios
from tests.support.documents import put
from tests.support.scenario import LAST, Scenario
from tests.support.scenarios import BAD_IMPORT, ROUNDS, SCENARIOS
from tests.support.service_scenarios import wandb
from tests.support.tuned import weights
from tests.support.warm_shippers import Around, around

STEPS, CLOSE_SECONDS, CHECK_SECONDS = LAST, 3, 2
AGAIN = set({who: fault for fault, (who, _) in SCENARIOS.items()}.values())
"""The last fault of each tracker, after which a second sync has to change nothing."""


def configured(output: str, trackers: tuple[str, ...], options: dict[str, Any]) -> RunConfig:
    import dataclasses

    sets = [
        f"training.max_steps={STEPS}", "training.logging_steps=1", "training.eval_steps=6",
        "resources.interval=0",  # the test counts events
        # As few rows as the steps need, and few to evaluate: neither is tested here.
        "training.per_device_train_batch_size=1", f"data.max_rows={STEPS}",
        "model.path=demo", "data.train=demo", 'data.eval=[{path="demo", max_rows=4}]',
        f"tracking.close_timeout={CLOSE_SECONDS}", f"tracking.check_timeout={CHECK_SECONDS}",
    ]  # fmt: skip
    flags = [("training.output_dir", output, "--output-dir"), ("tracking.trackers", trackers, "--tracker")]
    return dataclasses.replace(load(None, flags, sets), trackers=options)


def train(config: RunConfig) -> float:
    """Train, and return the seconds that it took."""
    began = time.monotonic()
    run(config, RunConsole(Console(file=io.StringIO())))
    return time.monotonic() - began


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The weights of the run without a tracker, and its seconds."""
    output = str(tmp_path_factory.mktemp("untracked") / "out")
    train(configured(output, (), {}))  # warm up
    again = output + "-2"
    seconds = train(configured(again, (), {}))
    return weights(again), seconds


@dataclass(frozen=True)
class Round:
    """The result of a training with faults: its folder, seconds and weights, and the delivery report of each
    fault's tracker when it ended."""

    folder: Path
    scenarios: dict[str, Scenario]
    seconds: float
    weights: str
    at_end: dict[str, DeliveryReport]


class Rounds:
    """The trainings with faults, one at a time: the next starts after the scenarios of the last have
    ended."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, -1
        self._round: Round | None = None
        self._running = contextlib.ExitStack()

    def of(self, fault: str) -> Round:
        """The training in which this fault occurs, in a tracker of its own."""
        if self._round is None or self._number != ROUNDS[fault]:
            self.end()
            self._number = ROUNDS[fault]
            self._round = self._train(Path(tempfile.mkdtemp(dir=self._folder)))
        return self._round

    def _train(self, folder: Path) -> Round:
        running = self._running.enter_context(scenarios.running(self._number, folder))
        names = [scenario.name for scenario in running.values()]
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)
            waits = inject_at_their_steps(list(running.values()), patched)
            options = {scenario.name: dict(scenario.options) for scenario in running.values()}
            seconds = train(configured("out", tuple(names), options)) - sum(waits)
            lines = report(Path("out"), names)
            return Round(folder, running, seconds, weights("out"), dict(zip(running, lines, strict=True)))

    def end(self) -> None:
        """Stop everything that the scenarios started."""
        self._running.close()
        self._round = None


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    """The trainings with faults; each runs once for the tests of all its faults."""
    found = Rounds(tmp_path_factory.mktemp("rounds"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, str]]:
    """The rows of the table in docs/reliability.md, as observed."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("FMSTUNE_FAULT_TABLE") and len(rows) == len(SCENARIOS):
        head = [
            "| tracker | fault | delivered when the run ended | after `trackers sync` |",
            "|---|---|---|---|",
        ]
        text = "\n".join([*head, *(rows[fault] for fault in SCENARIOS)]) + "\n"
        put("faults", text)


@pytest.mark.parametrize("fault", sorted(SCENARIOS, key=ROUNDS.__getitem__))
def test_a_fault_leaves_the_training_unaffected_and_loses_nothing(
    fault: str,
    rounds: Rounds,
    untracked: tuple[str, float],
    seen: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = rounds.of(fault)
    monkeypatch.chdir(finished.folder)
    assert finished.weights == untracked[0]
    # Its own time: the check and the closing have time limits, and a hanging tracker hangs for an hour.
    assert finished.seconds < 20 * (untracked[1] + CHECK_SECONDS + CLOSE_SECONDS)

    who, scenario, at_end = SCENARIOS[fault][0], finished.scenarios[fault], finished.at_end[fault]
    scenario.recover()
    options = {scenario.name: scenario.options_after_recovery} if scenario.options_after_recovery else {}
    (line,) = sync(Path("out"), scenario.name, options, reference, check_within=300)
    assert line.state == "complete", line
    assert scenario.points() == scenario.expected(Path("out"))
    if fault in AGAIN:
        (again,) = sync(Path("out"), scenario.name, options, reference, check_within=300)
        assert again.state == "complete"
        assert scenario.points() == scenario.expected(Path("out"))
    seen[fault] = f"| {who} | {fault} | {at_end.delivered}/{at_end.total} | {line.delivered}/{line.total} |"


@pytest.mark.parametrize(
    ("fault", "said"), [("raise", "RuntimeError: no licence found"), ("exit", "SystemExit: no licence found")]
)
def test_a_plug_in_that_cannot_be_imported_is_an_error_before_anything_is_created(
    fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAD_IMPORT", f"{fault} {tmp_path / 'well'}")
    name = f"{BAD_IMPORT}:Collector"
    with pytest.raises(TrackerCheckFailed, match=f"cannot be loaded from {name}: {said}") as error:
        train(configured("out", (name,), {}))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [401, 403])
def test_a_cloud_that_rejects_the_key_is_an_error_before_anything_is_created(
    answer: Literal[401, 403], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with wandb(answer, 0)(tmp_path, "wandb") as scenario:
        monkeypatch.setitem(around, "wandb", Around())  # one of a round is still registered
        for name, value in scenario.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(TrackerCheckFailed, match=f"rejects the API key .{answer}") as error:
            train(configured("out", ("wandb",), {"wandb": scenario.options}))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def inject_at_their_steps(running: Sequence[Scenario], patched: pytest.MonkeyPatch) -> list[float]:
    """Inject the mid-run faults in the training loop, after their step. Returns the seconds spent waiting for
    a tracker to have started, which are not the training's."""
    from fmstune.training.callbacks.progress import ProgressCallback

    took: list[float] = []

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        began = time.monotonic()
        for scenario in running:
            if state.global_step == scenario.at_step:
                scenario.inject_in(Path(args.output_dir))
        took.append(time.monotonic() - began)

    patched.setattr(ProgressCallback, "on_step_end", on_step_end)
    return took
