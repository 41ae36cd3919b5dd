"""A power cut loses neither the checkpoint from which a run is resumed, nor an event before it, nor the final
model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import fmstune
from fmstune.delivery.journal.events import parse
from fmstune.delivery.journal.reader import JournalReader
from fmstune.layout import FILES_DIR, LAST_NAME, TRACKING_DIR
from fmstune.models.checkpoints import obstacle
from fmstune.report.replay import replay
from fmstune.training.extensions import Extensions
from tests.support.commands import fmstune as fmstune_command
from tests.support.file_systems import after_power_cut, cut_power, disk
from tests.support.journals import journal_path
from tests.support.ranks import TWO
from tests.support.tuned import tune, weights

SETS = ["training.eval_strategy=no", "training.logging_steps=1", "training.save_steps=1"]


class CutsPower(TrainerCallback):
    """Cuts the power after each step, in a copy of the disk, and once the checkpoint of the step is there."""

    reads_checkpoints: bool

    def __init__(self, image: Path, output: Path, *, reads: bool) -> None:
        self.image, self.output, self.reads_checkpoints = image, output, reads
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


@pytest.mark.parametrize("reads", [False, True], ids=["in the background", "read at once"])
def test_whenever_the_power_is_cut_a_checkpoint_and_the_events_before_it_are_on_the_disk(
    reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune("whole", *SETS)
    image = tmp_path / "image"
    with disk(tmp_path / "disk", image) as path:
        cuts = CutsPower(image, path / "out", reads=reads)
        tune("disk/out", *SETS, "training.save_total_limit=1", extensions=Extensions((cuts,)))
        cut_power(image, tmp_path / "end")
    with after_power_cut(tmp_path / "end", tmp_path / "after") as path:
        assert weights(path / "out") == weights("whole")
    found = 0
    for number, copy in enumerate(cuts.cuts):
        with after_power_cut(copy, tmp_path / f"found-{number}") as path:
            whole = [each for each in path.glob("out/checkpoint-*") if obstacle(each) is None]
            if not whole:
                assert not found, "the last checkpoint was removed before the next one was on the disk"
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
    assert found >= 2


def test_a_power_cut_after_a_run_of_two_processes_loses_neither_checkpoint_nor_model(tmp_path: Path) -> None:
    image, end = tmp_path / "image", tmp_path / "end"
    with disk(tmp_path / "disk", image) as path:
        sets = ("--set", "training.save_total_limit=1", "--set", "training.save_steps=1")
        done = fmstune_command("train", *TWO, "--max-steps", "2", *sets, cwd=path, fresh=True)
        assert done.returncode == 0, done.stderr
        written = weights(path / "out")
        cut_power(image, end)
    with after_power_cut(end, tmp_path / "after") as path:
        assert weights(path / "out") == written
        (checkpoint,) = path.glob("out/checkpoint-*")
        assert obstacle(checkpoint) is None
        last = int((checkpoint / TRACKING_DIR / LAST_NAME).read_text())
        assert sum(event.seq <= last for event in JournalReader(journal_path(path / "out"))) == last


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
