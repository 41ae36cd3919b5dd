"""Non-finite numbers with DeepSpeed, whose engine updates the weights before they can be checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fmstune.errors import RunError
from fmstune.training.trainers.guarded import GuardedTraining
from fmstune.training.trainers.nonfinite import NonFiniteGuard

NAN, INFINITE = float("nan"), float("inf")


class Engine(torch.nn.Module):
    """Stands in for `DeepSpeedEngine`, which is not installed for the tests: an update ends when its norm is
    read, `zero_grad` takes no arguments, and a broken gradient is dropped or applied."""

    def __init__(self, stage: int = 2, *, applied: bool = False, fp16: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.stage, self.applied, self.fp16 = stage, applied, fp16
        self.optimizer = SimpleNamespace()

    def was_step_applied(self) -> bool:
        return self.applied

    def zero_optimization_stage(self) -> int:
        return self.stage

    def fp16_enabled(self) -> bool:
        return self.fp16

    def zero_grad(self) -> None:
        pytest.fail("the engine has no gradients left to clear")


class AfterBackward:
    """Stands in for a Trainer, after the backward pass of its third step."""

    state = SimpleNamespace(global_step=2)
    accelerator = SimpleNamespace(scaler=None)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm


class Tuner(GuardedTraining, AfterBackward):
    """The mixin under test, before it."""


def norm_logged(engine: Engine, norm: Any, on_nonfinite: str) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    tuner = Tuner()
    tuner.guard = NonFiniteGuard(on_nonfinite, warnings.append)
    return tuner.gradient_norm(engine, norm), warnings


def test_a_dropped_update_is_skipped() -> None:
    norm, (warning,) = norm_logged(Engine(), INFINITE, "skip")
    assert norm is None
    assert "the gradient is NaN or infinite at step 3" in warning


def test_a_dropped_update_stops_the_run_with_good_weights() -> None:
    with pytest.raises(RunError, match=r"NaN or infinite at step 3, .* the weights are unchanged"):
        norm_logged(Engine(), INFINITE, "stop")


@pytest.mark.parametrize("norm", [INFINITE, NAN, -1.0])
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_updated_weights_are_never_reported_as_unchanged(on_nonfinite: str, norm: float) -> None:
    with pytest.raises(RunError, match=r"has already updated the weights .* and are not saved"):
        norm_logged(Engine(applied=True), norm, on_nonfinite)


@pytest.mark.parametrize("norm", [1.5, None])
def test_a_good_update_and_one_without_a_norm_pass(norm: float | None) -> None:
    assert norm_logged(Engine(applied=True), norm, "stop") == (norm, [])


def test_the_search_for_an_fp16_loss_scale_raises_nothing() -> None:
    assert norm_logged(Engine(fp16=True), INFINITE, "stop") == (INFINITE, [])


@pytest.mark.parametrize(("stage", "gradient"), [(3, NAN), (1, NAN), (0, 0.0)])
def test_the_loss_of_a_skipped_batch_is_zero_and_drops_the_update(stage: int, gradient: float) -> None:
    engine, warnings = Engine(stage), list[str]()
    guard = NonFiniteGuard("skip", warnings.append)
    loss = guard.loss((engine.weight * INFINITE).sum(), {}, engine, 3)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(engine.weight.grad, torch.full((2,), gradient), equal_nan=True)
    assert ("drops the whole update" in warnings[0]) == (stage > 0)
    assert ("momentum and weight decay" in warnings[0]) == (stage == 0)
