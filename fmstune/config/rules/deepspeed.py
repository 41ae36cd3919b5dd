"""Check the settings of DeepSpeed, whose contradictions to `[training]` transformers finds at the first step.

DeepSpeed itself is not imported, which takes seconds; `fmstune.system.deepspeed` runs its own checks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.check.suggest import closest
from fmstune.config.rules.deepspeed_table import (
    AUTO,
    FILLED,
    GATHER,
    SCHEDULERS,
    ZERO,
    DeepSpeedTable,
    read_table,
)
from fmstune.config.schema.tables import RunConfig
from fmstune.config.schema.training import training_fields
from fmstune.text import listed, shown, shown_key

KEY = "training.deepspeed"
# fmt: off
_KNOWN = frozenset((
    "activation_checkpointing", "aio", "allgather_size", "amp", "autotuning", "bf16", "checkpoint", "comet",
    "comms_logger", "communication_data_type", "compile", "compression_training", "csv_monitor",
    "curriculum_learning", "data_efficiency", "data_parallel_size", "data_types", "dataloader_drop_last",
    "datastates_ckpt", "disable_allgather", "disable_python_gc", "dump_state", "eigenvalue", "elasticity",
    "expert_parallel", "flops_profiler", "fp16", "gradient_accumulation_steps", "gradient_allreduce_op",
    "gradient_clipping", "gradient_predivide_factor", "graph_harvesting", "hybrid_engine", "inference",
    "keep_in_fp32_modules", "log_level", "managed_gradient_accumulation", "memory_breakdown", "model_info",
    "msamp", "nebula", "optimizer", "pipeline", "prescale_gradients", "progressive_layer_drop",
    "quantize_training", "scheduler", "seq_parallel_communication_data_type", "sequence_parallel_size",
    "sparse_attention", "sparse_gradients", "steps_per_print", "tensor_parallel", "tensorboard", "timers",
    "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "use_data_before_expert_parallelism", "vocabulary_size", "wall_clock_breakdown", "wandb",
    "weight_quantization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
))
# fmt: on
"""The keys that DeepSpeed 0.19.8, older versions and accelerate read; DeepSpeed silently ignores others."""
_RENAMED = {
    "bfloat16": "bf16",  # accelerate adds `bf16`, and DeepSpeed then ignores the older name
    "stage3_gather_fp16_weights_on_model_save": GATHER,
    "gather_16bit_weights_on_model_save": GATHER,  # accelerate only reads the other name
}
_SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
}
"""For each value that transformers compares with one of its arguments: that argument."""


def deepspeed_problems(config: RunConfig) -> Iterator[str]:
    """Problems with `training.deepspeed`."""
    given = config.training["deepspeed"]
    if given in ("", {}):
        yield f"{KEY} is empty and has no effect: set {ZERO} = {{stage = 2}} in it, or leave it out."
        return
    found = read_table(given, config.base_dir)
    if found.problem is not None:
        yield found.problem
        return
    yield from _names(found)
    yield from _zero(found)
    yield from _numbers(found, config)
    yield from _batch(found, config)
    yield from _precision(found, config)
    yield from _replaced(found, config)
    yield from _left_open(found)
    yield from _schedule(found, config)


def quoted(found: DeepSpeedTable, key: str) -> str:
    """A value at the start of a message: `training.deepspeed: zero_optimization.stage = 7 in zero.json`."""
    return f"{KEY}: {key} = {_json(found.get(key))}{found.place}"


def _names(found: DeepSpeedTable) -> Iterator[str]:
    zero = found.get(ZERO)
    names = [(name, name) for name in found.table]
    names += [(name, f"{ZERO}.{name}") for name in zero] if isinstance(zero, Mapping) else []
    for name, key in names:
        if newer := _RENAMED.get(name):
            yield f"{KEY}: {shown_key(*key.split('.'))}{found.place} is called {newer} now: rename it."
        elif key == name and name not in _KNOWN and not name.startswith("_"):  # as in `_comment`
            given = f", as{found.place}" if found.place else ""
            close = closest(name, sorted(_KNOWN), {})
            meant = f"Did you mean {close}?" if close else f"Available: {listed(sorted(_KNOWN))}."
            yield f"{KEY}: DeepSpeed has no setting {shown(name)}{given}. {meant}"


def _zero(found: DeepSpeedTable) -> Iterator[str]:
    zero, stage = found.get(ZERO), found.get(f"{ZERO}.stage")
    if zero is None:
        if any(closest(name, [ZERO], {}) for name in found.table):
            return  # misspelt, which is reported
        yield f'{KEY}: {ZERO} is missing{found.place}: add "{ZERO}": {{"stage": 2}}.'
    elif not isinstance(zero, Mapping):
        yield f'{quoted(found, ZERO)} is not an object: write {{"stage": 2}}.'
    elif stage is None:
        if not any(closest(name, ["stage"], {}) for name in zero):  # that, DeepSpeed reports
            yield f"{KEY}: {ZERO}.stage is missing{found.place}: set it to 1, 2 or 3."
    elif isinstance(stage, bool) or stage not in (0, 1, 2, 3) or not isinstance(stage, int):
        yield f"{quoted(found, f'{ZERO}.stage')} is not a stage of ZeRO: set it to 0, 1, 2 or 3."
    elif stage == 3 and GATHER in zero and zero[GATHER] is not True and zero[GATHER] != AUTO:
        yield f"{quoted(found, f'{ZERO}.{GATHER}')} would leave the run without a model: leave it out."


def _numbers(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    for key, name in _SAME.items():
        if _differs(found.get(key), _set(config, name)):
            yield _contradicts(found, key, config, name)
    betas = found.get("optimizer.params.betas")
    wanted = [_set(config, "adam_beta1"), _set(config, "adam_beta2")]
    if betas not in (None, AUTO) and betas != wanted:
        yield (
            f"{quoted(found, 'optimizer.params.betas')} contradicts training.adam_beta1 = {wanted[0]} and "
            f'training.adam_beta2 = {wanted[1]}: write "auto" there, or change these.'
        )


def _batch(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    total = found.get("train_batch_size")
    rows, times = (
        _set(config, each) for each in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    processes = os.environ.get("WORLD_SIZE", "")
    if total in (None, AUTO):
        return
    each, whole = rows * times, type(total) is int and total > 0
    if whole and (total == each * int(processes) if processes.isdigit() else total % each == 0):
        return
    yield (
        f"{quoted(found, 'train_batch_size')} contradicts training.per_device_train_batch_size = {rows} "
        f"times training.gradient_accumulation_steps = {times} times the number of processes"
        f'{f" ({processes})" if processes else ""}: write "auto" there, or change these.'
    )


def _precision(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    """Contradictions to `training.bf16` and `fp16`; unset ones depend on the device."""
    is_set = "bf16" in config.training or "fp16" in config.training
    for half in ("bf16", "fp16"):
        part, key = found.get(half), f"{half}.enabled"
        enabled = found.get(key)
        if part is not None and not isinstance(part, Mapping):
            yield f'{quoted(found, half)} is not an object: write {{"enabled": "auto"}}.'
        elif enabled not in (None, AUTO) and not isinstance(enabled, bool):
            yield f'{quoted(found, key)} is not true, false or "auto": write "auto" there.'
        elif isinstance(enabled, bool) and is_set and enabled is not bool(config.training.get(half)):
            yield _contradicts(found, key, config, half)


def _replaced(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    """Parts of DeepSpeed that replace a setting which the user has made."""
    for part, name in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        given = found.get(part)
        if given is None:
            continue
        if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            yield f'{KEY}: {part}{found.place} has no type: set "type" in it, or leave {part} out.'
        elif not isinstance(given.get("params") or {}, Mapping):
            yield f"{quoted(found, f'{part}.params')} is not an object: write {{}}."
        elif (value := config.training.get(name)) not in (None, _default(config, name)):
            yield f"{KEY}: {part}{found.place} would replace training.{name} = {shown(value)}: leave one out."


def _left_open(found: DeepSpeedTable) -> Iterator[str]:
    """Each "auto" that neither transformers nor accelerate fills; accelerate refuses it at the first step."""
    for key in _auto_keys(found.table):
        if key not in FILLED:
            part, _, name = key.rpartition(".")
            there = [each.rpartition(".")[2] for each in FILLED if each.rpartition(".")[0] == part]
            close = closest(name, there, {})
            meant = f"Did you mean {close}?" if close else "Write a value there, or leave it out."
            yield f"{quoted(found, key)} is filled by nothing in [training]. {meant}"


def _auto_keys(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _auto_keys(value, f"{before}{name}.")
        elif value == AUTO and (before or name in _KNOWN):  # others are refused by their name
            yield before + name


def _schedule(found: DeepSpeedTable, config: RunConfig) -> Iterator[str]:
    kind = found.get("scheduler.type")
    if isinstance(kind, str) and kind not in SCHEDULERS:
        close = closest(kind, list(SCHEDULERS), {})
        meant = f"Did you mean {close}?" if close else f"Available: {listed(list(SCHEDULERS))}."
        yield f"{quoted(found, 'scheduler.type')} is no scheduler of DeepSpeed. {meant}"
    # How many steps a run has is often known only with its data.
    steps, warmup = _set(config, "max_steps") or 0, _set(config, "warmup_steps") or 0
    wanted = {"total_num_steps": steps if steps > 0 else None}
    wanted["warmup_num_steps"] = max(1, int(warmup)) if warmup >= 1 or not warmup else None
    for name, number in wanted.items():
        key = f"scheduler.params.{name}"
        if found.get(key) in (None, AUTO) or not _differs(found.get(key), number):
            continue
        setting = "max_steps" if name == "total_num_steps" else "warmup_steps"
        reason = (
            f"contradicts training.{setting} = {_json(_set(config, setting))}"
            if number is not None
            else "may contradict the number of steps, which depends on the data"
        )
        yield f'{quoted(found, key)} {reason}: write "auto" there.'


def _set(config: RunConfig, name: str) -> Any:
    """The value of a setting of `[training]`, or its default."""
    return config.training.get(name, _default(config, name))


def _default(config: RunConfig, name: str) -> Any:
    fields = training_fields(config.run.method)
    return config.defaults.get(name, fields[name].default if name in fields else None)


def _differs(value: Any, wanted: Any) -> bool:
    if value in (None, AUTO):
        return False
    return isinstance(value, bool) or not isinstance(value, (int, float)) or value != wanted


def _contradicts(found: DeepSpeedTable, key: str, config: RunConfig, name: str) -> str:
    value, own = found.get(key), _json(_set(config, name))
    number = isinstance(value, (bool, int, float))
    other = f", or set training.{name} = {_json(value)}" if number else ""
    return f'{quoted(found, key)} contradicts training.{name} = {own}: write "auto" there{other}.'


def _json(value: Any) -> str:
    """A value as in JSON, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
