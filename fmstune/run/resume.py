"""Resume from a checkpoint: check that it fits the run, and finish a run that has no steps left."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.config.inspect.compare import Difference, differences, read_tables
from fmstune.config.inspect.dump import to_mapping
from fmstune.config.rules.evaluation import FOLLOWING_A_METRIC
from fmstune.config.rules.parallel import STATE_DICT_TYPES, fsdp_setting
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME
from fmstune.models.checkpoints import STATE
from fmstune.secrets.redaction import REDACTED
from fmstune.text import shown

if TYPE_CHECKING:
    from fmstune.training.tuned_trainer import TunedTrainer

_KINDS = {"LORA": "lora", "PROMPT_TUNING": "prompt tuning"}
_HOW = {"lora": "a LoRA adapter (--lora)", "prompt tuning": "a tuned prompt (prompt_tuning.enabled)"}
_WHOLE = "all weights"
_SHAPES = {
    "lora": (
        "lora.target_modules", "lora.target_parameters", "lora.bias", "lora.dora", "lora.modules_to_save",
        "lora.alpha", "lora.rslora", "model.add_tokens", "model.lr_multipliers",
    ),
    "prompt tuning": ("prompt_tuning.tokens", "model.lr_multipliers"),
    "": ("model.trainable", "model.add_tokens", "model.lr_multipliers"),
}  # fmt: skip
"""Settings that must match a checkpoint's weights and optimizer: with another scale of an adapter, they would
be others, and so would those of the best checkpoint."""
_UNSET = ("model.lr_multipliers",)
"""Those of them that may be without a value."""
_NAMES_OF_WEIGHTS = (
    "lora.target_modules", "lora.target_parameters", "lora.modules_to_save", "model.trainable",
)  # fmt: skip
"""Those of them whose order says nothing, as that of `model.add_tokens` does."""
_HELD = (
    "training.learning_rate", "training.weight_decay", "training.adam_beta1", "training.adam_beta2",
    "training.adam_epsilon", "training.optim_args", "prompt_tuning.text",
    "run.early_stopping_patience", "run.early_stopping_threshold",
)  # fmt: skip
"""Settings that a checkpoint determines: by its optimizer, its weights, and the state of its callbacks."""
_DECIDING = ("model", "data", "training", "lora", "prompt_tuning")
_OF_RUN = ("method", "on_nonfinite", "save_dtype", "early_stopping_patience", "early_stopping_threshold")
_NAMED = 5
"""The maximum number of changed settings to list."""
_AS_BEFORE = 1.25
"""Up to this factor, a step may have another share of an epoch: its last batch may be incomplete."""


def require_fitting(checkpoint: Path, config: RunConfig) -> None:
    """Raise `ConfigError` if the checkpoint is from another kind of training than `config` describes: its
    weights would not fit, which the libraries report with a line for each of them."""
    where = f"--resume {checkpoint}"
    _require_same_division(checkpoint, config, where)
    adapter = _adapter(checkpoint)
    there = _KINDS.get(str(adapter.get("peft_type"))) if adapter else None
    if there != config.adapter:
        trained, asked = _HOW.get(there or "", _WHOLE), _HOW.get(config.adapter or "", _WHOLE)
        raise ConfigError(f"{where}: this checkpoint is from a run that trains {trained}, not {asked}.")
    if there == "lora" and adapter.get("r") not in (None, config.lora.r):
        raise ConfigError(
            f"{where}: its adapter has lora.r = {adapter['r']}, this run {config.lora.r}; make them equal."
        )
    method = _tables(checkpoint.parent).get("run", {}).get("method", config.run.method)
    if method != config.run.method:
        raise ConfigError(
            f"{where}: it is from a run with --method {method}, but this one uses {config.run.method}; to "
            f"start from its weights, use --model {checkpoint}."
        )
    _require_same_shape(checkpoint, config, where)
    _require_same_best(checkpoint, config, where)
    before, now = _optimizer(_tables(checkpoint.parent)), _optimizer(to_mapping(config))
    if before is not None and before != now:
        raise ConfigError(
            f"{where}: its optimizer state is that of {before}, and does not fit training.optim = {now!r}. "
            f"Keep that setting, or start from its weights with --model {checkpoint}."
        )


def _require_same_division(checkpoint: Path, config: RunConfig, where: str) -> None:
    """Raise `ConfigError` if the checkpoint was written with FSDP or DeepSpeed and this run is without, or
    the other way round: the state of the optimizer is in other files."""
    shards = _is_sharded(checkpoint)
    there = {
        "fsdp": shards or (checkpoint / "pytorch_model_fsdp.bin").exists(),
        "deepspeed": any(checkpoint.glob("global_step*")),
    }
    start = "" if shards else f", or start from its weights with --model {checkpoint}"
    for name, used in there.items():
        if used != bool(config.training.get(name)):
            do = (
                f"written with training.{name}: set it"
                if used
                else f"written without training.{name}: leave it out"
            )
            raise ConfigError(f"{where}: it was {do}{start}.")
    kind = STATE_DICT_TYPES[shards]
    if there["fsdp"] and str(fsdp_setting(config, "state_dict_type", STATE_DICT_TYPES[0])).upper() != kind:
        raise ConfigError(
            f'{where}: it was written with training.fsdp_config.state_dict_type = "{kind}": set it{start}.'
        )


def _is_sharded(checkpoint: Path) -> bool:
    """Whether each process of FSDP has written its part of the model into a checkpoint."""
    return (checkpoint / "pytorch_model_fsdp_0").is_dir()


def _require_same_shape(checkpoint: Path, config: RunConfig, where: str) -> None:
    """Raise `ConfigError` for changed settings that determine the trained weights, or the schedule's
    state."""
    before, now = _tables(checkpoint.parent), to_mapping(config)
    keys = _SHAPES.get(config.adapter or "", ())
    for key in (*keys, "training.lr_scheduler_type"):
        table, _, name = key.partition(".")
        old, new = before.get(table, {}).get(name), now[table].get(name)
        if table not in before or (old is None and key not in _UNSET):  # of an earlier version
            continue
        if table == "training" and _keeps_figures(str(old)) == _keeps_figures(str(new)):
            continue
        if _weights_named(key, old) != _weights_named(key, new) and REDACTED not in str(old):
            made = f"without {key}" if old in (None, {}) else f"with {key} = {shown(old)}"
            raise ConfigError(
                f"{where}: it is from a run {made}, and its state does not fit "
                f"{'one without it' if new in (None, {}) else shown(new)}. Keep that setting, or start a new "
                "run with --model."
            )


def _weights_named(key: str, value: Any) -> Any:
    """A value to compare: names of weights in any order, as each weight has its place in the model."""
    if key not in _NAMES_OF_WEIGHTS or value is None:
        return value
    names = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return {str(name).strip() for name in names}


def _require_same_best(checkpoint: Path, config: RunConfig, where: str) -> None:
    """Raise `ConfigError` if another metric decides which evaluation is the best than the one of which the
    checkpoint has the best value: transformers would compare the two."""
    before, now = _best(_tables(checkpoint.parent)), _best(to_mapping(config))
    if before is None or now is None or before == now:
        return
    if json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_metric") is None:
        return
    (name, larger), key = before, "training.metric_for_best_model"
    key = "training.greater_is_better" if name == now[0] else key
    raise ConfigError(
        f"{where}: its best evaluation is that of the {'largest' if larger else 'smallest'} {name}, which "
        f"another {key} would compare with other values. Keep that setting, or start from its weights with "
        f"--model {checkpoint}."
    )


def _best(tables: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The metric of the best evaluation as transformers chooses it, and whether larger is better; `None` if
    the run keeps none."""
    training = tables.get("training", {})
    keeps = training.get("load_best_model_at_end") or _keeps_figures(str(training.get("lr_scheduler_type")))
    name = training.get("metric_for_best_model") or ("loss" if keeps else None)
    if name is None:
        return None
    plain, larger = re.sub("^eval[_/]", "", name), training.get("greater_is_better")
    return plain, bool(not plain.endswith("loss") if larger is None else larger)


def _keeps_figures(schedule: str) -> str:
    """The schedule, if it keeps metrics of evaluations, which each does in its own way; the others count
    steps."""
    return schedule if schedule in FOLLOWING_A_METRIC else ""


def _optimizer(tables: Mapping[str, Any]) -> str | None:
    """The optimizer of a configuration, by the kind of its state."""
    name = str(tables.get("training", {}).get("optim", "adamw_torch"))
    return (name.removesuffix("_fused") if name.startswith("adamw_torch") else name) if tables else None


def changed_settings(run: Path, config: RunConfig) -> str:
    """The settings that affect training or tracking and differ from those that the run in a directory started
    with: `training.max_steps (4 → 6), lora.r (not set → 8)`; or an empty string."""
    return _in_words(_changes(run, config))


@dataclass(frozen=True, slots=True)
class Resumed:
    """The configuration of a run that resumes from a checkpoint: `changed` lists the settings that differ
    from before, `held` the requested changes that do not apply."""

    config: RunConfig
    changed: str
    held: str


def resumed(checkpoint: Path, config: RunConfig) -> Resumed:
    """The configuration that applies when resuming from a checkpoint: some values are those of the run that
    wrote it, whatever is requested now, and are recorded as such."""
    found = _changes(checkpoint.parent, config)
    held = [each for each in found if _is_held(each, config)]
    for each in held:
        table, _, name = each.key.partition(".")
        if table == "training":
            kept = {key: value for key, value in config.training.items() if key != name}
            before = {} if each.first is None else {name: each.first}
            config = dataclasses.replace(config, training=kept | before)
        else:
            values = dataclasses.replace(getattr(config, table), **{name: each.first})
            config = dataclasses.replace(config, **{table: values})
    return Resumed(config, _in_words([each for each in found if each not in held]), _in_words(held))


def _is_held(change: Difference, config: RunConfig) -> bool:
    if change.key.startswith("run.early_stopping"):  # without the callback, none of its state is kept
        return change.first is not None and config.run.early_stopping_patience is not None
    return change.key in _HELD


def _changes(run: Path, config: RunConfig) -> list[Difference]:
    before = _tables(run)
    if not before:
        return []
    found = differences(_deciding(before), _deciding(to_mapping(config)))
    return [each for each in found if REDACTED not in str(each.first)]


def _in_words(changes: list[Difference]) -> str:
    found = [f"{each.key} ({_change(each)})" for each in changes]
    more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join(found[:_NAMED] + more)


def _change(change: Difference) -> str:
    before, now = change.first, change.second
    if not (isinstance(before, list) and isinstance(now, list)):
        return f"{_shown(before)} → {_shown(now)}"
    # Two long lists may look the same when they are shortened.
    words = [f"with {shown(each)}" for each in now if each not in before]
    words += [f"without {shown(each)}" for each in before if each not in now]
    more = [f"{len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return ", ".join(words[:_NAMED] + more) or "in another order"


def _shown(value: Any) -> str:
    return "not set" if value in (None, {}) else shown(value)


def _deciding(tables: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: dict(tables.get(name, {})) for name in _DECIDING}
    found["run"] = {name: tables.get("run", {}).get(name) for name in _OF_RUN}
    found["tracking"] = {"trackers": sorted(tables.get("tracking", {}).get("trackers", []))}
    found["model"].pop("revision", None)  # a name on the hub has become a commit
    for name in ("train", "eval"):
        sources = found["data"].get(name) or []
        given = sources if isinstance(sources, list) else [sources]
        found["data"][name] = [_source(each) if isinstance(each, Mapping) else each for each in given]
    return found


def _source(table: Mapping[str, Any]) -> Any:
    """A source without its revision (see above), in its shortest form."""
    given = {name: value for name, value in table.items() if name != "revision" and value is not None}
    return given["path"] if given.keys() == {"path"} else given


def moved(trainer: TunedTrainer, checkpoint: Path) -> str:
    """A message about the rows that a resumed run leaves out or learns again, as its steps have other numbers
    of rows than those of the checkpoint: the Trainer counts steps; or an empty string."""
    args, rows = trainer.args, trainer.train_dataset
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    steps, before = state["global_step"], state.get("epoch") or 0.0
    if not hasattr(rows, "__len__") or args.ignore_data_skip or not steps or not before:
        return ""
    share = len(rows) / (args.train_batch_size * args.world_size)
    batches = math.floor(share) if args.dataloader_drop_last else math.ceil(share)
    whole, rest = divmod(steps, math.ceil(batches / args.gradient_accumulation_steps))
    now = whole + rest * args.gradient_accumulation_steps / batches
    if max(now, before) <= _AS_BEFORE * min(now, before):
        return ""
    what = "left out" if now > before else "learnt again"
    return (
        f"a step has another number of rows than before: step {steps} was at epoch {before:.3g}, and is at "
        f"{now:.3g} now; the rows between are {what}. To go on where it was, keep the product of the batch "
        "size, gradient_accumulation_steps and the number of processes"
    )


def stopped_early(checkpoint: Path, config: RunConfig) -> bool:
    """Whether early stopping had ended the run with this checkpoint: transformers would train on."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    kept = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    patience = config.run.early_stopping_patience
    if patience is None or not isinstance(kept, dict):
        return False
    return int(kept.get("attributes", {}).get("early_stopping_patience_counter", 0)) >= patience


def finish(trainer: TunedTrainer, checkpoint: Path) -> None:
    """Load a checkpoint after which no step is left: transformers would make one more. Loads the best weights
    if those are to be kept."""
    from transformers import TrainerState

    from fmstune.training.trl_compat.saving import load_checkpoint

    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    chosen = best if best and Path(best).is_dir() else str(checkpoint)
    load_checkpoint(trainer, chosen)


def _adapter(checkpoint: Path) -> dict[str, Any]:
    """The settings of the adapter in a checkpoint. One with FSDP's shards contains no settings: those are the
    run's."""
    if _is_sharded(checkpoint):
        tables = _tables(checkpoint.parent)
        kinds = {"lora": "LORA", "prompt_tuning": "PROMPT_TUNING"}
        found = (name for name in kinds if tables.get(name, {}).get("enabled"))
        name = next(found, None)
        return {} if name is None else {"peft_type": kinds[name], "r": tables[name].get("r")}
    try:
        found = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tables(run: Path) -> dict[str, Any]:
    """The configuration of the run in a directory; empty if there is none."""
    return read_tables(run, CONFIG_NAME) if (run / CONFIG_NAME).exists() else {}
