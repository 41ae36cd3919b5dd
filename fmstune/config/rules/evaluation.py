"""Check the configuration as a whole; several problems are reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fmstune.config.check.suggest import hint, similar_file
from fmstune.config.paths.data import exists, is_local
from fmstune.config.paths.runs import means_run, nearest_run
from fmstune.config.rules.accelerate import accelerate_problems
from fmstune.config.rules.adapters import adapter_problems
from fmstune.config.rules.data import data_problems
from fmstune.config.rules.installed import misnamed_attention, missing
from fmstune.config.rules.methods import method_problems
from fmstune.config.rules.parallel import parallel_problems
from fmstune.config.rules.training import training_problems
from fmstune.config.schema.tables import CHAT_TEMPLATES, RunConfig
from fmstune.errors import combined
from fmstune.text import shown

FOLLOWING_A_METRIC = ("reduce_lr_on_plateau", "greedy")
"""The schedules that evaluations decide: they follow `metric_for_best_model`."""
_NEED_EVALUATION = {
    "load_best_model_at_end": (True,),
    "eval_on_start": (True,),
    "save_strategy": ("best",),
    "lr_scheduler_type": FOLLOWING_A_METRIC,
}
"""Settings of `[training]`, with the values that require evaluations."""
_STEPS = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")


def check_consistency(config: RunConfig, *, trains: bool) -> RunConfig:
    """Return the configuration if it is consistent, if it `trains` also with the environment. Raises a
    `ConfigError` that lists the problems."""
    problems = [
        *_evaluation(config),
        *_training(config),
        *_paths(config),
        *misnamed_attention(config),
        *((*missing(config), *accelerate_problems(config)) if trains else ()),
    ]
    found = (
        *method_problems(config),
        *data_problems(config),
        *adapter_problems(config),
        *parallel_problems(config),
        *training_problems(config),
    )
    problems += [f"{config.at(key)}{what}" for key, what in found]
    if problems:
        raise combined(problems)
    return config


def _evaluation(config: RunConfig) -> Iterator[str]:
    data, training = config.data, config.training
    if data.eval and data.eval_fraction:
        yield f"{config.at('data.eval_fraction')}set data.eval or data.eval_fraction, not both."
    strategy = training.get("eval_strategy", "no")
    if strategy != "no" and not (data.eval or data.eval_fraction):
        yield (
            f"{config.at('training.eval_strategy')}training.eval_strategy = {strategy!r} needs evaluation "
            "data: add --eval-data, or set data.eval_fraction = 0.1."
        )
    for key, wanted in (("samples.rows", config.samples.rows), ("samples.prompts", config.samples.prompts)):
        if wanted and strategy == "no":
            yield (
                f"{config.at(key)}{key} are answered at evaluations: add --eval-data, or set "
                "data.eval_fraction = 0.1."
            )
    patience = config.run.early_stopping_patience
    if patience is not None and strategy == "no":
        yield (
            f"{config.at('run.early_stopping_patience')}run.early_stopping_patience needs evaluations: "
            "add --eval-data, or set data.eval_fraction = 0.1."
        )
        return
    if patience is not None and not training.get("load_best_model_at_end"):
        yield (
            f"{config.at('training.load_best_model_at_end')}run.early_stopping_patience keeps the weights "
            "of the best evaluation; leave out training.load_best_model_at_end."
        )
    for name, values in _NEED_EVALUATION.items():
        value = training.get(name)
        if value in values and strategy == "no":
            yield (
                f"{config.at(f'training.{name}')}training.{name} = {shown(value)} needs evaluations: add "
                '--eval-data, or set data.eval_fraction = 0.1, with training.eval_strategy = "epoch".'
            )


def _training(config: RunConfig) -> Iterator[str]:
    training = config.training
    evaluated, saved = training.get("eval_strategy", "no"), training.get("save_strategy", "steps")
    best = training.get("load_best_model_at_end") and evaluated != "no" and saved != "best"
    key = "training.load_best_model_at_end"
    if best and evaluated != saved:
        yield (
            f"{config.at(key)}{key} needs a checkpoint for each evaluation, but training.eval_strategy = "
            f"{evaluated!r} and training.save_strategy = {saved!r}: make them the same."
        )
    evaluate_every = training.get("eval_steps") or training.get("logging_steps", 10)
    save_every = training.get("save_steps", 500)
    counted = evaluated == saved == "steps" and min(evaluate_every, save_every) >= 1
    if best and counted and save_every % evaluate_every:
        yield (
            f"{config.at(key)}{key} needs checkpoints at evaluated steps: make training.save_steps "
            f"= {save_every} a multiple of the steps between evaluations, {evaluate_every}."
        )
    for name in _STEPS:
        value = training.get(name)
        if isinstance(value, float) and value > 1 and value != int(value):
            yield (
                f"{config.at(f'training.{name}')}training.{name} = {value} is not a number of steps: "
                "use an integer, or a fraction of all steps below 1."
            )
    steps = training.get("max_steps", -1)
    if steps != -1 and steps <= 0:  # transformers would silently train whole epochs instead
        yield (
            f"{config.at('training.max_steps')}training.max_steps = {steps} is out of range; it must be "
            "more than 0, or -1 for whole epochs."
        )
    if training.get("fp16") and training.get("bf16"):
        yield f"{config.at('training.fp16')}set training.fp16 or training.bf16, not both."


def _paths(config: RunConfig) -> Iterator[str]:
    model = config.model.path
    gguf = model.lower().endswith(".gguf")  # see `adapter_problems`
    local = is_local(model) or means_run(model, config.base_dir)
    if model != "demo" and not gguf and local and not exists(config.base_dir / model):
        path = Path(model)
        yield (
            f"{config.at('model.path')}model.path = {shown(model)}: there is no such directory."
            f"{similar_file(path, config.base_dir) or nearest_run(path)}"
        )
    template = config.model.chat_template
    if template is not None and template not in CHAT_TEMPLATES and not exists(config.base_dir / template):
        named = "/" not in template and "." not in template
        what = (
            f"there is no such template.{hint(template, CHAT_TEMPLATES)}"
            if named
            else (f"there is no such file.{similar_file(Path(template), config.base_dir)}")
        )
        known = (
            f" Available: {', '.join(CHAT_TEMPLATES)}, and Jinja files; leave it out for the model's own."
            if named
            else ""
        )
        yield f"{config.at('model.chat_template')}model.chat_template = {shown(template)}: {what}{known}"
