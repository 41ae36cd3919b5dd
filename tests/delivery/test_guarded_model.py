"""A vendor's callback gets the real model: replaced attributes are restored, in-place writes are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.guarded_callback import guarded_callback
from fmstune.delivery.guarded_model import ModelGuard
from fmstune.trackers.records import TrackerError
from tests.support.commands import fmstune


def write(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(1.01)


def clip(parameter: torch.nn.Parameter) -> None:
    if parameter.grad is not None:
        parameter.grad.clamp_(-1e-4, 1e-4)


def read(parameter: torch.nn.Parameter) -> None:
    parameter.detach().float().norm().item()
    parameter.clone().mul_(2)


def halve(parameter: torch.nn.Parameter) -> None:
    parameter.data = parameter.data.half()


REPLACED: dict[str, Callable[[torch.nn.Parameter], object]] = {
    "half": halve,
    "moved": lambda parameter: setattr(parameter, "data", parameter.data.clone()),
    "frozen": lambda parameter: parameter.requires_grad_(False),
    "no gradient": lambda parameter: setattr(parameter, "grad", None),
}
WRITTEN: dict[str, Callable[[torch.nn.Parameter], object]] = {"written": write, "clipped": clip}
ACTS = {**REPLACED, **WRITTEN, "read": read}


@given(st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 3)), max_size=4))
def test_replaced_tensors_are_restored_and_in_place_writes_are_reported(done: list[tuple[str, int]]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    model(torch.ones(1, 3)).sum().backward()
    parameters = list(model.parameters())
    before = [(each.detach().clone(), each.grad.clone()) for each in parameters if each.grad is not None]
    guard = ModelGuard(model)
    for name, number in done:
        ACTS[name](parameters[number])
    said = guard.undo()
    assert all(each.requires_grad and each.dtype == torch.float32 for each in parameters)
    after = [(each, each.grad) for each in parameters]
    same = all(
        torch.equal(one, other) and grad is not None and torch.equal(grad, was)
        for (one, grad), (other, was) in zip(after, before, strict=True)
    )
    assert same or (said is not None and "training continues" in said)
    assert (said is not None) == any(name != "read" for name, _ in done) or same


def test_a_callback_that_writes_to_the_model_is_disabled() -> None:
    class Writes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            write(next(model.parameters()))

    raised: list[BaseException] = []

    def called(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    model = torch.nn.Linear(2, 2)
    guarded = guarded_callback(Writes(), called)
    args = TrainingArguments("out", report_to=[])
    guarded.on_step_end(args, TrainerState(), TrainerControl(), model=model)
    guarded.on_log(args, TrainerState(), TrainerControl(), model=model)
    (error,) = raised
    assert isinstance(error, TrackerError)
    assert "changed the model's weights" in str(error)


SCRIPT = """
import json
import fmstune

class Callback:  # no TrainerCallback, whose import would take the tracker's own process seconds
    def on_log(self, *args, **kwargs):
        pass

class Named(fmstune.Tracker):
    def get_hf_callback(self, *, strict=False):
        return Callback()
    def track(self, metric, name, stage=None, *, step=None):
        pass

fmstune.register_tracker("named", Named)
if __name__ == "__main__":
    settings = {"training.max_steps": 1, "training.output_dir": "out", "tracking.trackers": ["named"],
                "training.eval_strategy": "no", "training.save_strategy": "no"}
    result = fmstune.train(None, settings, quiet=True)
    (line,) = result.delivery
    print(json.dumps([line.state, line.delivered == line.total, line.error]))
"""


@pytest.mark.parametrize("name", ["script.py"])
def test_a_registered_tracker_with_a_callback_gets_everything_in_a_script(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SCRIPT)
    done = fmstune(cwd=tmp_path, module=str(tmp_path / name))
    assert json.loads(done.stdout.splitlines()[-1]) == ["complete", True, None], done.stderr
