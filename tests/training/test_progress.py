"""What a run shows of its training, besides its steps."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from fmstune.console import RunConsole
from fmstune.training.callbacks.progress import ProgressCallback


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_that_compiles_says_so_before_its_first_step(compiled: bool) -> None:
    screen = io.StringIO()
    callback = ProgressCallback(RunConsole(Console(file=screen, width=100)), ())
    args: Any = SimpleNamespace(torch_compile=compiled)
    callback.on_train_begin(args, TrainerState(max_steps=3), TrainerControl())
    assert ("compiles the model in the first steps, which can take minutes" in screen.getvalue()) == compiled
