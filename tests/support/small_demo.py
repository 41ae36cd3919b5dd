"""The demo's model with one narrow layer, for tests that do not depend on its size: a step takes a third."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmstune import demo
from tests.support.once import made_once

_SIZES = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
_WHOLE = demo.model_dir()


@contextlib.contextmanager
def smaller() -> Iterator[None]:
    """Use a small demo model in this process; its name, tokenizer and data stay the same."""
    folder = made_once("small-demo", _make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "model_dir", lambda: folder)
        yield


def _make(folder: Path) -> None:
    shutil.copytree(_WHOLE, folder, dirs_exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | _SIZES))
