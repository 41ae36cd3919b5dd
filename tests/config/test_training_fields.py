"""The fields that are read from source are those of the real class."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema import DEMO_TRAINING, OWNED_TRAINING, RENAMED_TRAINING, TRAINING_DEFAULTS
from fmstune.config.training_fields import training_fields
from fmstune.config.typed import check_value


@pytest.fixture(scope="module")
def sft_config() -> Any:
    return pytest.importorskip("trl").SFTConfig


def test_the_names_are_those_of_the_installed_sft_config(sft_config: Any) -> None:
    assert set(training_fields()) == {f.name for f in dataclasses.fields(sft_config) if f.init}


def test_plain_defaults_are_those_of_the_installed_sft_config(sft_config: Any) -> None:
    real = {f.name: f.default for f in dataclasses.fields(sft_config)}
    wrong = {
        name: (found.default, real[name])
        for name, found in training_fields().items()
        if found.default is not None and found.default != real[name]
    }
    assert not wrong


def test_every_default_fits_its_own_field() -> None:
    for name, found in training_fields().items():
        if found.default is not None:
            check_value(found.default, found.annotation, where="", key=name, choices=found.choices)


@pytest.mark.parametrize("settings", [TRAINING_DEFAULTS, TRAINING_DEFAULTS | DEMO_TRAINING])
def test_what_fmstune_sets_is_accepted(sft_config: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    made = sft_config(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **settings)
    for name, value in settings.items():
        assert getattr(made, name) == value
        found = training_fields()[name]
        check_value(value, found.annotation, where="", key=name, choices=found.choices)


def test_enums_have_their_values_as_choices() -> None:
    choices = training_fields()["save_strategy"].choices
    assert choices is not None
    assert set(choices) >= {"no", "steps", "epoch"}
    assert "cosine" in (training_fields()["lr_scheduler_type"].choices or ())
    assert "adamw_torch" in (training_fields()["optim"].choices or ())


def test_what_fmstune_owns_or_renames_is_a_field() -> None:
    # local_rank has gone from some versions; refusing it does no harm.
    assert set(OWNED_TRAINING) - {"local_rank"} <= set(training_fields())
    assert set(RENAMED_TRAINING.values()) <= set(training_fields())


def test_reading_the_fields_imports_neither_torch_nor_trl() -> None:
    code = (
        "import sys; from fmstune.config.training_fields import training_fields; training_fields();"
        "print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
