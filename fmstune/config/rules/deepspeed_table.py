"""DeepSpeed's settings as fmstune passes them on: what they leave open follows `[training]`.

transformers fills a value from its arguments only where the table says "auto". Where a key is missing,
accelerate and DeepSpeed use defaults of their own, such as clipping at 1.0, whatever `[training]` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.rules.json_object import table_or_file
from fmstune.text import shown_path

AUTO = "auto"
ZERO = "zero_optimization"
GATHER = "stage3_gather_16bit_weights_on_model_save"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
SCHEDULERS: dict[str, tuple[str, ...]] = {
    "WarmupLR": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"),
    "WarmupDecayLR": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"),
    "WarmupCosineLR": ("warmup_num_steps", "total_num_steps"),
    "LRRangeTest": (),
    "OneCycle": (),
}
"""DeepSpeed's schedulers, with the parameters of each that transformers fills."""

FILLED = (
    *(*BATCH, "gradient_clipping", "bf16.enabled", "fp16.enabled", f"{ZERO}.{GATHER}"),
    *(f"optimizer.params.{name}" for name in ("lr", "betas", "eps", "weight_decay")),
    *(f"scheduler.params.{name}" for name in SCHEDULERS["WarmupDecayLR"]),
    *(f"{ZERO}.{name}" for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size")),
    f"{ZERO}.stage3_param_persistence_threshold",
    *(f"{ZERO}.offload_{part}.{name}" for part in ("param", "optimizer") for name in ("device", "nvme_path")),
)
"""The values that may be "auto": transformers and accelerate fill these and no others."""


@dataclass(frozen=True, slots=True)
class DeepSpeedTable:
    """The table of `training.deepspeed`, and where it is: ` in zero.json`, or "" for a table in the
    configuration itself."""

    table: Mapping[str, Any]
    place: str = ""
    problem: str | None = None

    def get(self, dotted: str) -> Any:
        """The value at `zero_optimization.stage`; `None` if it is missing or null."""
        found: Any = self.table
        for name in dotted.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def read_table(given: Any, base: Path) -> DeepSpeedTable:
    """The settings given as a table or as a JSON file."""
    table, problem = table_or_file("training.deepspeed", given, base)
    place = "" if isinstance(given, Mapping) else f" in {shown_path(Path(str(given)))}"
    return DeepSpeedTable(table, place, problem)


def deepspeed_table(given: Any, base: Path) -> dict[str, Any]:
    """The settings of `training.deepspeed` for transformers, with "auto" for each missing value that
    `[training]` also sets. At ZeRO's stage 3 the weights are gathered when a model is saved: by default, a
    run would end without a model."""
    found = read_table(given, base)
    table = {**dict.fromkeys((*BATCH, "gradient_clipping"), AUTO), **_given(found.table)}
    if found.get(f"{ZERO}.stage") == 3:
        table[ZERO] = {**table[ZERO], GATHER: True}
    # Where the whole table is missing, accelerate adds one that follows the precision.
    for half in ("bf16", "fp16"):
        if isinstance(table.get(half), Mapping):
            table[half] = {"enabled": AUTO, **_given(table[half])}
    kind = str(found.get("optimizer.type")).lower()
    if found.get("optimizer") is not None:
        adam = ("betas", "eps") if "adam" in kind or "lamb" in kind else ()
        table["optimizer"] = _with_params(table["optimizer"], ("lr", "weight_decay", *adam))
    if found.get("scheduler") is not None:
        filled = SCHEDULERS.get(str(found.get("scheduler.type")), ())
        table["scheduler"] = _with_params(table["scheduler"], filled)
    return table


def _given(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without null, which means the same as a missing key to DeepSpeed, but not to transformers."""
    return {key: value for key, value in table.items() if value is not None}


def _with_params(part: Any, names: tuple[str, ...]) -> Any:
    return {**part, "params": {**dict.fromkeys(names, AUTO), **_given(part.get("params") or {})}}
