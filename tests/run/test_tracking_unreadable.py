"""A folder `tracking` that fails while its run is going, as another disk may, does not hurt the training."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

import fmstune
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.layout import TRACKING_DIR
from fmstune.training.extensions import Extensions
from tests.support.journals import events
from tests.support.tuned import tune, weights, weights_of

SETS = ["training.save_steps=2", "tracking.artifacts=checkpoints"]
CALLS = [
    "access", "link", "listdir", "lstat", "mkdir", "open", "rename", "replace", "rmdir", "scandir", "stat",
    "statvfs", "unlink",
]  # fmt: skip
ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.EDQUOT]
STEPS = 6


class Tracks(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fmstune.track(state.global_step, "own")
        fmstune.track_text(f"at {state.global_step}", "words")
        fmstune.track_image(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;" * state.global_step, "picture")
        fmstune.set_params({f"at_{state.global_step}": 1}, "mine")


@contextlib.contextmanager
def failing(run: Path, seed: int, share: float) -> Iterator[None]:
    """Let this share of the calls for paths in `tracking` of the run fail with drawn errors, from its first
    event on. Mocks, as no disk fails at chosen calls."""
    drawn, inside = random.Random(seed), str(run / TRACKING_DIR)
    begun, os_access = False, os.access

    def instead(call: Any) -> Any:
        def called(path: Any, *args: Any, **kwargs: Any) -> Any:
            is_inside = isinstance(path, (str, os.PathLike)) and inside in os.fspath(path)
            if begun and is_inside and drawn.random() < share:
                if call is os_access:
                    return False
                number = drawn.choice(ERRORS)
                raise OSError(number, os.strerror(number), os.fspath(path))
            return call(path, *args, **kwargs)

        return called

    def append(*args: Any, **kwargs: Any) -> int:
        nonlocal begun
        begun = True
        return appended(*args, **kwargs)

    appended = JournalWriter.append
    with contextlib.ExitStack() as patched:
        for name in CALLS:
            patched.enter_context(mock.patch.object(os, name, instead(getattr(os, name))))
        patched.enter_context(mock.patch.object(io, "open", instead(io.open)))
        patched.enter_context(mock.patch.object(JournalWriter, "append", append))
        yield


@pytest.fixture(scope="module")
def whole() -> str:
    return weights_of(*SETS)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), share=st.sampled_from([0.03, 0.3, 1.0]))
@example(seed=1, share=1.0)
@example(seed=2, share=0.3)
@example(seed=3, share=0.03)
@example(seed=500, share=0.3)
def test_the_model_and_the_events_are_there(seed: int, share: float, whole: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        with failing(out, seed, share):
            said = tune(str(out), *SETS, extensions=Extensions((Tracks(),)))
        assert weights(out) == whole
        own = [event.step for event in events(out) if "own" in event.values]
        assert own == list(range(1, STEPS + 1)) or "lost" in said
