"""Where values come from, and what wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmstune.config.errors import ConfigError
from fmstune.config.load import load

DEMO = ["model.path=demo", "data.train=demo"]


def write(directory: Path, text: str, name: str = "fmstune.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_set_wins_over_a_flag_over_the_file_over_the_default(tmp_path: Path) -> None:
    write(tmp_path, "[model]\npath='demo'\n[data]\ntrain='demo'\n[training]\nseed = 1\n")
    flag = [("training.seed", 2, "--seed")]
    assert load(None, cwd=tmp_path).training["seed"] == 1
    assert load(None, flag, cwd=tmp_path).training["seed"] == 2
    assert load(None, flag, ["training.seed=3", "training.seed=4"], cwd=tmp_path).training["seed"] == 4
