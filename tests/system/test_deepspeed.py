"""DeepSpeed validates its own settings before a run has a directory; a small package stands in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.system.deepspeed import check_deepspeed

CONFIG_UTILS = """
from pydantic import BaseModel, ConfigDict

class DeepSpeedConfigModel(BaseModel):
    model_config = ConfigDict(extra="forbid")
"""
CONFIG = """
from .config_utils import DeepSpeedConfigModel

class DeepSpeedZeroConfig(DeepSpeedConfigModel):
    stage: int = 0
    overlap_comm: bool = False

DEEPSPEED_OPTIMIZERS = ["adam", "adamw", "lion"]

def DeepSpeedConfig(table):
    assert "elasticity" not in table, "elasticity has been removed"
    DeepSpeedZeroConfig(**table["zero_optimization"])
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "deepspeed/runtime"
    runtime.mkdir(parents=True)
    for file, text in {
        "../__init__": "",
        "__init__": "",
        "config_utils": CONFIG_UTILS,
        "config": CONFIG,
    }.items():
        (runtime / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("deepspeed", *(f"deepspeed.runtime{part}" for part in ("", ".config", ".config_utils"))):
        monkeypatch.setitem(sys.modules, name, sys)  # so that the test's imports are undone after it
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("zero", "others", "message"),
    [
        ({"overlap_com": True}, {}, "no setting zero_optimization.overlap_com. Did you mean overlap_comm?"),
        (
            {"overlap_comm": "so"},
            {},
            'zero_optimization.overlap_comm = "so" is refused by DeepSpeed: input should',
        ),
        ({}, {"elasticity": {}}, "DeepSpeed refuses the settings: elasticity has been removed"),
        (
            {},
            {"optimizer": {"type": "Adamm"}},
            'optimizer.type = "Adamm" is no optimizer of DeepSpeed or torch. Did you mean adam?',
        ),
        (
            {},
            {"bf16": {"enabled": True}},
            "bf16.enabled = true contradicts the precision of this run (float32",
        ),
    ],
)
def test_what_deepspeed_refuses_is_one_sentence_with_its_key(
    zero: dict[str, object], others: dict[str, object], message: str
) -> None:
    table = {"zero_optimization": {"stage": 2, **zero}, **others}
    origins = {"training.deepspeed": "fmstune.toml:7"}
    with pytest.raises(ConfigError) as caught:
        check_deepspeed(RunConfig(training={"deepspeed": table, "use_cpu": True}, origins=origins))
    assert str(caught.value).startswith("fmstune.toml:7: training.deepspeed: ")
    assert message in str(caught.value)


def test_what_deepspeed_accepts_is_accepted() -> None:
    table = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}
    check_deepspeed(RunConfig(training={"deepspeed": table, "use_cpu": True}))
    for kind in ("AdamW", "Lion", "RMSprop"):  # DeepSpeed's, in any letter case, and torch's
        each = {**table, "optimizer": {"type": kind}}
        check_deepspeed(RunConfig(training={"deepspeed": each, "use_cpu": True}))
