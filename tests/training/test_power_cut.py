"""A power cut loses no event before a checkpoint from which the run is resumed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import fmstune
from fmstune.delivery.journal.events import parse
from fmstune.layout import FILES_DIR, LAST_NAME, TRACKING_DIR
from fmstune.models.checkpoints import obstacle
from fmstune.report.replay import replay
from fmstune.training.extensions import Extensions
from tests.support.file_systems import after_power_cut, cut_power, disk
from tests.support.journals import journal_path
from tests.support.tuned import tune, weights

SETS = ["training.eval_strategy=no", "training.logging_steps=1", "training.save_steps=1"]


class CutsPower(TrainerCallback):
    """Cuts the power after each step, in a copy of the disk, and once the checkpoint of the step is there."""

    def __init__(self, image: Path, output: Path) -> None:
        self.image, self.output = image, output
        self.cuts: list[Path] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fmstune.track(state.global_step * 2.0, "own")
        fmstune.track_image(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;" * state.global_step, "picture")
        before = self.output / f"checkpoint-{state.global_step - 1}"
        self._cut()
        while state.global_step > 1 and not before.exists():
            time.sleep(0.01)
        self._cut()

    def _cut(self) -> None:
        self.cuts.append(self.image.with_name(f"cut-{len(self.cuts)}"))
        cut_power(self.image, self.cuts[-1])


def test_whenever_the_power_is_cut_the_events_before_a_checkpoint_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune("whole", *SETS)
    image = tmp_path / "image"
    with disk(tmp_path / "disk", image) as path:
        cuts = CutsPower(image, path / "out")
        tune("disk/out", *SETS, extensions=Extensions((cuts,)))
    found = 0
    for number, copy in enumerate(cuts.cuts):
        with after_power_cut(copy, tmp_path / f"found-{number}") as path:
            whole = [each for each in path.glob("out/checkpoint-*") if obstacle(each) is None]
            if not whole:
                continue
            found += 1
            tracking = path / "out" / TRACKING_DIR
            last = max(int((each / TRACKING_DIR / LAST_NAME).read_text()) for each in whole)
            lines = journal_path(path / "out").read_bytes().splitlines(keepends=True)
            events = [event for line in lines if (event := parse(line))]
            assert {event.seq for event in events} >= set(range(1, last + 1))
            for event in events[:last]:
                if event.kind == "image":
                    assert (tracking / FILES_DIR / str(event.item["file"])).stat().st_size > 0
            if copy == cuts.cuts[-1]:
                said = tune(f"found-{number}/out", *SETS, resume="auto")
                assert "lost" not in said
                assert weights(path / "out") == weights("whole")
    assert found >= 4


def test_a_journal_that_lacks_events_before_the_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune("out", *SETS, "training.max_steps=2")
    last = int(Path("out/checkpoint-2", TRACKING_DIR, LAST_NAME).read_text())
    journal_path(Path("out")).write_bytes(b"")
    said = tune("out", *SETS, "training.max_steps=3", resume="out")
    lost = f"ends with event 0, but its trackers or checkpoints know {last}; {last} of its events are lost"
    assert lost in " ".join(said.split())


def test_a_run_whose_journal_is_gone_says_so_and_is_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune("out", *SETS, "training.max_steps=2")
    last = int(Path("out/checkpoint-2", TRACKING_DIR, LAST_NAME).read_text())
    shutil.rmtree(Path("out", TRACKING_DIR))
    said = tune("out", *SETS, "training.max_steps=3", resume="out")
    assert f"the run's journal is gone, with its {last} events" in " ".join(said.split())
    run = replay(journal_path(Path("out")))
    assert (run.header.after, run.missing, run.status) == (last, 0, "finished")
