"""Find settings that have no effect in a run, because of another one. They are not errors, since a file may
serve several runs; but no setting is ignored silently.
"""

from __future__ import annotations

from collections.abc import Iterator

from fmstune.config.methods.known import METHODS
from fmstune.config.rules.unused_tables import unused_of_tables
from fmstune.config.schema.tables import RunConfig
from fmstune.config.schema.training import training_fields

_EVALUATION = ("eval_delay", "eval_steps", "per_device_eval_batch_size", "metric_for_best_model")
_METRICS = (
    "batch_eval_metrics",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "include_for_metrics",
    "prediction_loss_only",
)
"""For `run.compute_metrics`: without it, the logits of an evaluation are not kept."""
_HUB = ("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token")
_NOT_BY_STEPS = 'training.{0}_strategy = "{1}"; set it to "steps"'
_WORKERS = ("dataloader_in_order",)  # torch rejects the others: see `rules.training`
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_TAKE_NOTHING = ("adamw_torch", "adamw_torch_fused", "adafactor", "lomo", "adalomo")
"""Optimizers for which transformers ignores `optim_args`."""
_NEEDS = {
    "activation_checkpointing_kwargs": "activation_checkpointing",
    "liger_kernel_config": "use_liger_kernel",
    "packing_strategy": "packing",
    "precompute_ref_batch_size": "precompute_ref_log_probs",
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
    **dict.fromkeys(_HUB, "push_to_hub"),
}
"""Fields of `[training]`, each with the setting that turns it on."""


def unused(config: RunConfig, *, computes_metrics: bool = False) -> dict[str, str]:
    """The settings that were set but that this run does not use, by dotted key, each with the reason.

    `computes_metrics`: a function to compute metrics was passed from Python.
    """
    computes = computes_metrics or config.run.compute_metrics is not None
    fields = training_fields(config.run.method)
    found: dict[str, str] = {}
    for name, why in _reasons(config, computes=computes):
        key = f"training.{name}"
        given = config.origins.get(key, "default") != "default"
        value = config.training.get(name)
        # A default that turns something off is what happens; another, such as three epochs, is not.
        if given and name in fields and (value or value != fields[name].default):
            found.setdefault(key, why)
    if computes and config.training.get("eval_strategy", "no") == "no":
        found["run.compute_metrics"] = "this run does not evaluate"
    elif computes and config.training.get("prediction_loss_only"):
        found["run.compute_metrics"] = "training.prediction_loss_only keeps no predictions"
    return found | dict(unused_of_tables(config))


def _reasons(config: RunConfig, *, computes: bool) -> Iterator[tuple[str, str]]:
    """Fields of `[training]` that are not used, whether or not they are set."""
    training = config.training
    for name, switch in _NEEDS.items():
        if not training.get(switch):
            yield name, f"training.{switch} is not set"
    if config.run.name is not None:
        yield "run_name", "run.name is set"
    yield from _schedule(config)
    yield from _evaluation(config, computes=computes)
    yield from _data(config)
    yield from METHODS[config.run.method].unused(training)


def _schedule(config: RunConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if training.get("max_steps", -1) > 0:
        yield "num_train_epochs", f"training.max_steps = {training['max_steps']} overrides it"
    schedule = str(training.get("lr_scheduler_type", "linear"))
    if schedule in _WITHOUT_WARMUP:
        yield "warmup_steps", f"the schedule {schedule} has no warmup"
    optimizer = str(training.get("optim", "adamw_torch"))
    if not any(word in optimizer for word in ("adam", "lion", "ademamix", "apollo", "lomo")):
        yield from ((name, f"the optimizer {optimizer} has none") for name in _ADAM)
    if optimizer in _TAKE_NOTHING:
        yield "optim_args", f"the optimizer {optimizer} takes none"
    if not optimizer.startswith(("galore", "apollo")):
        yield "optim_target_modules", f"the optimizer {optimizer} treats all modules alike"
    saved = training.get("save_strategy", "steps")
    if saved != "steps":
        yield "save_steps", _NOT_BY_STEPS.format("save", saved)
    if saved == "no":
        yield from ((name, "there are no checkpoints") for name in ("save_total_limit", "save_only_model"))
    logged, evaluated = training.get("logging_strategy", "steps"), training.get("eval_strategy", "no")
    if logged != "steps" and not (evaluated == "steps" and training.get("eval_steps") is None):
        yield "logging_steps", _NOT_BY_STEPS.format("logging", logged)


def _evaluation(config: RunConfig, *, computes: bool) -> Iterator[tuple[str, str]]:
    training = config.training
    strategy = training.get("eval_strategy", "no")
    if strategy == "no":
        yield from ((name, "this run does not evaluate") for name in (*_EVALUATION, *_METRICS))
    elif strategy != "steps":
        yield "eval_steps", _NOT_BY_STEPS.format("eval", strategy)
    if not computes:
        yield from ((name, "run.compute_metrics is not set") for name in _METRICS)
    follows = training.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    keeps_best = follows or training.get("load_best_model_at_end")
    if training.get("metric_for_best_model") is None and not keeps_best:
        yield "greater_is_better", "training.metric_for_best_model is not set"


def _data(config: RunConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if not training.get("dataloader_num_workers"):
        yield from ((name, "training.dataloader_num_workers is 0") for name in _WORKERS)
    if training.get("packing"):
        yield "truncation_mode", "with training.packing, training.packing_strategy decides what is truncated"
    if config.data.streaming:
        why = "data.streaming draws rows from a buffer (data.shuffle_buffer)"
        yield from ((name, why) for name in ("shuffle_dataset", "train_sampling_strategy", "data_seed"))
