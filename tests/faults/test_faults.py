"""Whatever a tracker or its service does, the training is untouched and everything is delivered in the end.

Each test is a real training with a real fault. The table of faults in docs/reliability.md is what they saw:
`FMSTUNE_FAULT_TABLE=1 pytest tests/faults` writes it.
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
from tests.support import scenes
from tests.support.documents import put
from tests.support.scene import LAST, Scene
from tests.support.scenes import BAD_IMPORT, ROUNDS, SCENES
from tests.support.service_scenes import wandb
from tests.support.tuned import weights
from tests.support.warm_shippers import Around, around

STEPS, CLOSE_SECONDS, CHECK_SECONDS = LAST, 3, 2
AGAIN = set({who: fault for fault, (who, _) in SCENES.items()}.values())
"""The last fault of each tracker, after which a second sync has to change nothing."""


def configured(output: str, trackers: tuple[str, ...], options: dict[str, Any]) -> RunConfig:
    import dataclasses

    sets = [
        f"training.max_steps={STEPS}", "training.logging_steps=1", "training.eval_steps=6",
        "resources.interval=0",  # the events are counted
        # As few rows as the steps see, and few to evaluate: what happens to them is not tested here.
        "training.per_device_train_batch_size=1", f"data.max_rows={STEPS}",
        "model.path=demo", "data.train=demo", 'data.eval=[{path="demo", max_rows=4}]',
        f"tracking.close_timeout={CLOSE_SECONDS}", f"tracking.check_timeout={CHECK_SECONDS}",
    ]  # fmt: skip
    flags = [("training.output_dir", output, "--output-dir"), ("tracking.trackers", trackers, "--tracker")]
    return dataclasses.replace(load(None, flags, sets), trackers=options)


def train(config: RunConfig) -> float:
    """Train, and say how many seconds it took."""
    began = time.monotonic()
    run(config, RunConsole(Console(file=io.StringIO())))
    return time.monotonic() - began


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The weights of the run without a tracker, and its seconds."""
    output = str(tmp_path_factory.mktemp("untracked") / "out")
    train(configured(output, (), {}))  # once to warm up
    again = output + "-2"
    seconds = train(configured(again, (), {}))
    return weights(again), seconds


@dataclass(frozen=True)
class Round:
    """A training with faults, after its end: in how many seconds, with which weights, and what was reported
    of each fault's tracker then."""

    folder: Path
    scenes: dict[str, Scene]
    seconds: float
    weights: str
    at_end: dict[str, DeliveryReport]


class Rounds:
    """The trainings with faults. One at a time: the next begins when the scenes of the last have ended."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, -1
        self._round: Round | None = None
        self._playing = contextlib.ExitStack()

    def of(self, fault: str) -> Round:
        """The training in which this fault happens, to a tracker of its own."""
        if self._round is None or self._number != ROUNDS[fault]:
            self.end()
            self._number = ROUNDS[fault]
            self._round = self._play(Path(tempfile.mkdtemp(dir=self._folder)))
        return self._round

    def _play(self, folder: Path) -> Round:
        playing = self._playing.enter_context(scenes.played(self._number, folder))
        names = [scene.name for scene in playing.values()]
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)
            waits = strike_at_their_steps(list(playing.values()), patched)
            options = {scene.name: dict(scene.options) for scene in playing.values()}
            seconds = train(configured("out", tuple(names), options)) - sum(waits)
            lines = report(Path("out"), names)
            return Round(folder, playing, seconds, weights("out"), dict(zip(playing, lines, strict=True)))

    def end(self) -> None:
        """End what the scenes have started."""
        self._playing.close()
        self._round = None


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    """The trainings with faults, each of which is there for the tests of its faults."""
    found = Rounds(tmp_path_factory.mktemp("rounds"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, str]]:
    """The rows of the table in docs/reliability.md, as they are seen."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("FMSTUNE_FAULT_TABLE") and len(rows) == len(SCENES):
        head = [
            "| tracker | fault | delivered when the run ended | after `trackers sync` |",
            "|---|---|---|---|",
        ]
        text = "\n".join([*head, *(rows[fault] for fault in SCENES)]) + "\n"
        put("faults", text)


@pytest.mark.parametrize("fault", sorted(SCENES, key=ROUNDS.__getitem__))
def test_the_training_is_untouched_and_nothing_is_lost(
    fault: str,
    rounds: Rounds,
    untracked: tuple[str, float],
    seen: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = rounds.of(fault)
    monkeypatch.chdir(played.folder)
    assert played.weights == untracked[0]
    # Its own time, the check before and the closing after have limits, and what hangs hangs for an hour.
    assert played.seconds < 20 * (untracked[1] + CHECK_SECONDS + CLOSE_SECONDS)

    who, scene, at_end = SCENES[fault][0], played.scenes[fault], played.at_end[fault]
    scene.heal()
    options = {scene.name: scene.options_when_well} if scene.options_when_well else {}
    (line,) = sync(Path("out"), scene.name, options, reference, check_within=300)
    assert line.state == "complete", line
    assert scene.points() == scene.expected(Path("out"))
    if fault in AGAIN:
        (again,) = sync(Path("out"), scene.name, options, reference, check_within=300)
        assert again.state == "complete"
        assert scene.points() == scene.expected(Path("out"))
    seen[fault] = f"| {who} | {fault} | {at_end.delivered}/{at_end.total} | {line.delivered}/{line.total} |"


@pytest.mark.parametrize(
    ("fault", "said"), [("raise", "RuntimeError: no licence found"), ("exit", "SystemExit: no licence found")]
)
def test_a_plug_in_that_cannot_be_imported_is_an_error_before_anything_is_made(
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
def test_a_cloud_that_rejects_the_key_at_the_start_is_an_error_before_anything_is_made(
    answer: Literal[401, 403], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with wandb(answer, 0)(tmp_path, "wandb") as scene:
        monkeypatch.setitem(around, "wandb", Around())  # a round's is still there
        for name, value in scene.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(TrackerCheckFailed, match=f"rejects the API key .{answer}") as error:
            train(configured("out", ("wandb",), {"wandb": scene.options}))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def strike_at_their_steps(playing: Sequence[Scene], patched: pytest.MonkeyPatch) -> list[float]:
    """Let what happens in mid-run happen in the training loop, after its step. The seconds that it takes are
    the tests': they wait for a tracker to have begun."""
    from fmstune.training.callbacks.progress import ProgressCallback

    took: list[float] = []

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        began = time.monotonic()
        for scene in playing:
            if state.global_step == scene.at_step:
                scene.strike_in(Path(args.output_dir))
        took.append(time.monotonic() - began)

    patched.setattr(ProgressCallback, "on_step_end", on_step_end)
    return took
