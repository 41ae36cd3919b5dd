"""Checkpoints are written in the background: identical to the Trainer's own, complete or not at all, and a
failed one ends the run."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import Trainer, TrainerCallback

from fmstune.errors import Interrupted, RunError
from fmstune.layout import UNFINISHED
from fmstune.models.checkpoints import obstacle
from fmstune.system.memory import Capacity
from fmstune.training.extensions import Extensions
from fmstune.training.trainers import checkpoints as beside
from fmstune.training.trainers import copy_room
from fmstune.training.trl_compat import saving
from tests.support.tuned import tune, weights

SETS = ["training.eval_strategy=no", "training.save_steps=2", "training.logging_steps=1"]
ALL_KEPT = "training.save_total_limit=5"
OF_THE_RUN = {"training_args.bin", "trainer_state.json"}
"""They hold objects and times."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class AtStep(TrainerCallback):
    """Sets an event when a step is done."""

    def __init__(self, step: int) -> None:
        self.made, self._step = threading.Event(), step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self.made.set()


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_equals_the_trainers_own_though_training_continues_meanwhile(
    lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = AtStep(4)
    ours, write = saving.write_parts, beside._Writing.run

    def both(trainer: Any, folder: Path, named: Path) -> None:
        ours(trainer, folder, named)
        if named.name == "checkpoint-3":  # in another thread, whose files do not concern the first one
            other = threading.Thread(target=Trainer._save_checkpoint, args=(trainer, trainer.model, None))
            other.start()
            other.join()
            shutil.move(named, "reference")

    def held(self: Any) -> None:
        if self.checkpoint == "checkpoint-3":
            assert later.made.wait(60)
        write(self)

    monkeypatch.setattr(saving, "write_parts", both)
    monkeypatch.setattr(beside._Writing, "run", held)
    adapter = f"lora.enabled={lora}".lower()
    tune("out", *SETS, "training.save_steps=3", adapter, extensions=Extensions((later,)))
    found, reference = Path("out/checkpoint-3"), Path("reference")
    files = {path.name for path in reference.iterdir()}
    assert {path.name for path in found.iterdir() if path.is_file()} == files
    assert "optimizer.pt" in files
    for name in files:
        assert (found / name).stat().st_mode == (reference / name).stat().st_mode, name
    for name in files - OF_THE_RUN:
        assert (found / name).read_bytes() == (reference / name).read_bytes(), name
    assert weights(found) != weights("out")
    assert not Path("out", UNFINISHED).exists()


def test_a_failure_of_the_last_background_checkpoint_also_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later, write = AtStep(6), beside._Writing.run

    def fails(self: Any) -> None:
        if self.checkpoint == "checkpoint-5":
            assert later.made.wait(60)  # after the last step nothing else would check for it
            self._write = wrong
        write(self)

    def wrong() -> None:
        raise PermissionError("not this one")

    monkeypatch.setattr(beside._Writing, "run", fails)
    with pytest.raises(PermissionError, match="not this one"):
        tune("out", *SETS, "training.save_steps=5", extensions=Extensions((later,)))
    assert not list(Path("out").glob("checkpoint-*"))


class Breaking(TrainerCallback):
    """Makes a trained weight NaN before the checkpoint of a step; sets `gone_on` when the next step
    begins."""

    def __init__(self, step: int) -> None:
        self._step, self.gone_on = step, threading.Event()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            trained = [each for each in kwargs["model"].parameters() if each.requires_grad]
            with torch.no_grad():
                trained[-1].view(-1)[-1] = torch.nan

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self.gone_on.set()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_broken_weights_are_detected_in_the_copy_and_never_saved(
    lora: bool, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking, write = Breaking(4), beside._Writing.run

    def held(self: Any) -> None:
        if self.checkpoint == "checkpoint-4":
            assert breaking.gone_on.wait(60)
        write(self)

    def uncopied(value: Any, known: Any) -> Any:
        raise saving._NotCopyable(value)

    monkeypatch.setattr(beside._Writing, "run", held)
    if not copied:
        monkeypatch.setattr(saving, "_copied_tensor", uncopied)
    with pytest.raises(
        RunError, match=r"no longer finite after step 4 .*are not saved.*checkpoint-2 is kept"
    ):
        tune("out", *SETS, f"lora.enabled={lora}".lower(), extensions=Extensions((breaking,)))
    assert breaking.gone_on.is_set() == copied
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not Path("out", UNFINISHED).exists()
    assert not list(Path("out").glob("*.safetensors"))


def test_without_memory_for_a_copy_the_training_waits_and_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little = SimpleNamespace(
        main_memory=lambda: Capacity(1_000, "the container (its cgroup)"),
        recent_peak=lambda: 0,
        in_use=lambda: 0,
    )
    monkeypatch.setattr(copy_room, "memory", little)
    monkeypatch.setattr(copy_room, "workload", lambda trainer: None)
    shown = tune("out", *SETS)
    assert shown.count("the training waits until each checkpoint is written: a copy needs 4.2 MB") == 1
    assert Path("out/checkpoint-4/optimizer.pt").exists()


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_if_allocating_a_copy_fails_the_checkpoint_is_written_in_the_foreground_and_reported(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, made = torch.empty_like, 0

    def limited(value: Any, **how: Any) -> Any:
        nonlocal made
        if how.get("device") == "cpu" and value.numel() > 1_000:
            made += value.numel() * 4
            if made > 1_500_000:  # the weights, and part of the optimizer state
                raise error("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return empty(value, **how)

    monkeypatch.setattr(torch, "empty_like", limited)
    shown = tune("out", *SETS, ALL_KEPT)
    assert made > 1_500_000
    assert shown.count("the training waits until each checkpoint is written: there was no memory") == 1
    assert [obstacle(Path("out", f"checkpoint-{step}")) for step in (2, 4, 6)] == [None] * 3


class Unsaved(TrainerCallback):
    """Makes a tokenizer unsavable after a step."""

    def __init__(self, step: int, error: Exception) -> None:
        self._step, self._error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            kwargs["processing_class"].save_pretrained = self._fail

    def _fail(self, folder: str) -> None:
        assert threading.current_thread() is not threading.main_thread()  # while the tensors are copied
        raise self._error


@pytest.mark.parametrize(
    ("error", "ends"),
    [(MemoryError("too little"), "memory ran out .* checkpoint-4 was"), (TypeError("not this"), "not this")],
    ids=["room", "kind"],
)
def test_a_tokenizer_that_cannot_be_saved_ends_the_run_though_tensors_are_being_copied(
    error: Exception, ends: str
) -> None:
    with pytest.raises((RunError, TypeError), match=ends):
        tune("out", *SETS, extensions=Extensions((Unsaved(4, error),)))
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not Path("out", UNFINISHED).exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"main memory ran out .*: free some memory, .*save_only_model = true needs less"),
        (OSError(5, "Input/output error"), r"\(Input/output error\): .*: check its disk, and resume"),
        (safetensors.SafetensorError("I/O error: (os error 5)"), r"\(I/O error: .*: check its disk"),
    ],
    ids=["memory", "disk", "safetensors"],
)
def test_a_checkpoint_that_cannot_be_written_in_the_background_is_reported_with_the_one_that_is_kept(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, files = safetensors.torch.save_file, 0

    def fails(*given: Any, **how: Any) -> None:
        nonlocal files
        files += 1
        if files == 2:
            assert threading.current_thread() is not threading.main_thread()
            raise error
        save_file(*given, **how)

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(RunError, match=message) as found:
        tune("out", *SETS)
    assert "checkpoint-4 was incomplete and is removed. out/checkpoint-2 is complete" in str(found.value)
    assert "batch_size" not in str(found.value)
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]


class AlsoAtEpochs(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = True


TWICE = ["training.max_steps=-1", "training.num_train_epochs=2", "training.save_total_limit=1"]
"""Epochs of six steps: steps 6 and 12 are saved twice."""


def test_a_step_that_is_saved_twice_keeps_the_second_checkpoint(tmp_path: Path) -> None:
    found = []

    class Between(AlsoAtEpochs):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_epoch_end(args, state, control)
            with torch.no_grad():
                next(kwargs["model"].parameters()).zero_()
            found.append(state.global_step)

    tune("out", *SETS, *TWICE, extensions=Extensions((Between(),)))
    assert found == [6, 12]
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-12"]
    saved = safetensors.torch.load_file("out/checkpoint-12/model.safetensors")
    assert any(not bool(each.any()) for each in saved.values())


def test_what_a_second_interrupt_left_behind_does_not_affect_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_file, reached, go_on = safetensors.torch.save_file, threading.Event(), threading.Event()
    left: list[threading.Thread] = []

    def held(*args: Any, **kwargs: Any) -> None:
        if not left and threading.current_thread() is not threading.main_thread():
            left.append(threading.current_thread())
            reached.set()
            assert go_on.wait(60)
        save_file(*args, **kwargs)

    class Leaving(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                assert reached.wait(60)
                raise Interrupted(signal.SIGINT)

    class Writing(TrainerCallback):
        """Lets the thread continue while another checkpoint of this name is written."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                go_on.set()
                left[0].join(60)

    monkeypatch.setattr(safetensors.torch, "save_file", held)
    with pytest.raises(Interrupted):
        tune("out", *SETS, extensions=Extensions((Leaving(),)))
    shown = tune(
        "out", *SETS, ALL_KEPT, "training.seed=7", "training.learning_rate=1e-5", overwrite=True,
        extensions=Extensions((Writing(),)),
    )  # fmt: skip
    assert not left[0].is_alive()
    assert "was not written" not in shown
    assert not Path("out", UNFINISHED).exists()
    for step in (2, 4):
        assert obstacle(Path("out", f"checkpoint-{step}")) is None
    tune("alone", *SETS, ALL_KEPT, "training.seed=7", "training.learning_rate=1e-5")
    assert weights("out/checkpoint-2") == weights("alone/checkpoint-2")
