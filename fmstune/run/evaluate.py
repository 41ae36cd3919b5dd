"""Evaluate a model on data, as its run does."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.config.inspect.compare import read_tables
from fmstune.config.load.layers import FROM_PYTHON, Flag
from fmstune.config.load.load import load
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.paths.models import AdapterFile
from fmstune.config.paths.runs import holds_run
from fmstune.config.schema.tables import RunConfig
from fmstune.config.schema.training import methods_with
from fmstune.console import RunConsole
from fmstune.demo import is_demo
from fmstune.errors import ConfigError
from fmstune.hub import pinned
from fmstune.layout import CONFIG_FILE, CONFIG_NAME
from fmstune.models.base_weights import changed_base
from fmstune.models.locate import Place
from fmstune.run.ending import stoppable
from fmstune.run.look_ahead import look_ahead
from fmstune.run.run import one_at_a_time
from fmstune.text import shown
from fmstune.trackers.base import Tracker

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer

_OFF: Mapping[str, Any] = {
    "tracking.trackers": (),
    "training.save_strategy": "no",
    "training.load_best_model_at_end": False,
    "training.deepspeed": None,
    "training.fsdp": None,
    "training.fsdp_config": None,
    "run.early_stopping_patience": None,
    "run.auto_batch": False,
    "run.callbacks": (),
    "training.lr_scheduler_type": "constant",
    "training.lr_scheduler_kwargs": None,
    "training.metric_for_best_model": None,
    "training.greater_is_better": None,
    "training.dataloader_drop_last": False,  # of training batches
    "training.gradient_accumulation_steps": 1,
    "samples.rows": 0,
    "samples.prompts": (),
    "model.trainable": (),
    "model.lr_multipliers": None,
}
"""Settings of a training that an evaluation has not."""
_OF_ITS_DATA: Mapping[str, Any] = {
    "data.eval_fraction": 0.0,
    "data.streaming": False,
}
_OF_ITS_MODEL: Mapping[str, Any] = {"model.revision": None, "model.gguf_file": None, "model.add_tokens": ()}
_OTHERWISE = ("loss_type", "beta")
"""Settings of `[training]` that mean something else to each method."""
_OF_ITS_ADAPTER = (
    "lora.enabled",
    "lora.r",
    "lora.alpha",
    "lora.rslora",
    "lora.dora",
    "prompt_tuning.enabled",
)
_LEFT_OUT = ("runtime", "_per_second", "epoch", "num_tokens", "preparation_time")
"""Metrics of the evaluation itself, by the end of their name."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to evaluate: the configuration, and the directory of the weights if they are not those of
    `model.path`, to which they are compared. `left_out` are settings of the run that its method has alone."""

    config: RunConfig
    weights: str | None = None
    left_out: tuple[str, ...] = ()


def evaluation_of(
    named: str, place: Place, data: Sequence[str], given: Mapping[str, Any], sets: Sequence[str]
) -> Evaluation:
    """The evaluation of a run, or of a model at `place`, on `data` or else on the data of the run. `given`
    are further settings by key. Raises `ConfigError`."""
    run = _run_of(Path(named))
    if place.checkpoint:  # once the run has removed it, a relative path would be asked for on the hub
        place = replace(place, path=str(Path(place.path).absolute()))
    settings = {**_OFF, **given}
    if data:
        settings |= {**_OF_ITS_DATA, "data.train": tuple(data), "data.eval": tuple(data)}
    file = run / CONFIG_NAME if run is not None else None
    flags = _flags(settings)
    if run is None:
        if not data and not Path(CONFIG_FILE).exists():
            raise ConfigError("there is no evaluation data; add --data FILE.")
        its = _flags({"model.path": place.path})
        config = load(None, [*flags, *its], sets, without=_of_another_model())
        _require(config, place)
        if _has_reference(config):
            raise ConfigError(
                f"--method {config.run.method} compares a model with the one before the training, which only "
                "a run knows: give a run, or use --method reward or orpo."
            )
        return Evaluation(config)
    left_out = _of_its_method(run, given.get("run.method"))
    config = load(file, flags, sets, without=left_out)
    _require(config, place)
    if place.adapter is not None:
        _require_its_adapter(config, place.adapter)
    if _has_reference(config) or place.adapter is not None:
        return Evaluation(config, place.path, left_out)
    tuned = {**_OF_ITS_MODEL, "model.path": place.path}
    return Evaluation(load(file, [*flags, *_flags(tuned)], sets, without=left_out), None, left_out)


def _of_another_model() -> tuple[str, ...]:
    """The settings in fmstune.toml of what a training adds to its model: a new adapter, virtual or added
    tokens."""
    if not Path(CONFIG_FILE).exists():
        return ()
    tables = read_tables(Path(), CONFIG_FILE)
    added = [f"{table}.{key}" for table in ("lora", "prompt_tuning") for key in tables.get(table, {})]
    return (*added, *_OF_ITS_MODEL)


def _of_its_method(run: Path, method: str | None) -> tuple[str, ...]:
    """The settings of a run that mean nothing, or something else, to another method."""
    tables = read_tables(run, CONFIG_NAME)
    its = tables.get("run", {}).get("method", DEFAULT)
    if method not in METHODS or method == its:
        return ()
    names = tables.get("training", {})
    other = [name for name in names if name in _OTHERWISE or method not in (methods_with(name) or METHODS)]
    return tuple(f"training.{name}" for name in other)


def _require_its_adapter(config: RunConfig, adapter: AdapterFile) -> None:
    """Raise `ConfigError` for settings of an adapter that are not those of its weights."""
    own = {name: value for name, value in adapter.as_settings().items() if name in _OF_ITS_ADAPTER}
    for key, value in own.items():
        table, _, name = key.partition(".")
        now = getattr(getattr(config, table), name)
        if now != value:
            raise ConfigError(
                f"{config.at(key)}{key} = {shown(now)}, but the adapter in {adapter.directory} has "
                f"{shown(value)}: leave it as the run has it."
            )


def _flags(settings: Mapping[str, Any]) -> list[Flag]:
    origins = {"data.train": "--data", "data.eval": "--data"}
    return [
        (key, value, FROM_PYTHON if value is None else origins.get(key, "fmstune evaluate"))
        for key, value in settings.items()
    ]


def _run_of(path: Path) -> Path | None:
    """The run that is named, or of which a checkpoint is named."""
    for directory in (path, path.parent):
        if path.is_dir() and holds_run(directory) and (directory / CONFIG_NAME).is_file():
            return directory
    return None


def _has_reference(config: RunConfig) -> bool:
    return config.run.method in ("dpo", "kto")


def _require(config: RunConfig, place: Place) -> None:
    if not config.data.eval and not config.data.eval_fraction:
        raise ConfigError("there is no evaluation data; add --data FILE.")
    scores = METHODS[config.run.method].scores
    if (Path(place.path).exists() or is_demo(place.path)) and place.is_reward_model != scores:
        raise _of_other_kind(place.path, scores=scores)


def _require_kind(config: RunConfig, built: BuiltTrainer) -> None:
    """The same for a model of the hub, of which no more is known before it is loaded."""
    saved = getattr(built.trainer.model.config, "architectures", None) or ()
    scores, path = METHODS[config.run.method].scores, str(built.model_identity["path"])
    if built.adapter is None and scores and not any("Classification" in name for name in saved):
        raise _of_other_kind(path, scores=scores)


def _of_other_kind(path: str, *, scores: bool) -> ConfigError:
    """Without the head of its method, a model would be evaluated with a random one."""
    return ConfigError(
        f"{path} is a language model, which gives a text no score: evaluate a reward model, or use another "
        "--method."
        if scores
        else f"{path} is a reward model, which scores texts: use --method reward."
    )


def _is_likelihood(config: RunConfig) -> bool:
    """Whether the loss is the mean negative log-likelihood of the tokens."""
    return config.training.get("loss_type") != "dft" and not config.training.get("label_smoothing_factor")


def _describe(built: BuiltTrainer, evaluation: Evaluation, out: RunConsole) -> None:
    identity, training = built.model_identity, evaluation.config.training
    out.say("model", f"{identity['path']} · {built.precision.line(identity['dtype'])}")
    if evaluation.weights is not None:
        out.say("weights", evaluation.weights)
    if built.adapter:
        out.say("adapter", built.adapter)
    out.say("data", built.data.eval_line())
    if evaluation.left_out:
        out.warn(f"settings of the run's own method are left out: {', '.join(evaluation.left_out)}")
    for note in (*built.data.unused_lines(), *built.notes):
        out.warn(note)
    for line in built.bad_rows.lines():
        out.say("skipped", line)
    if training.get("sync_ref_model"):
        out.warn(
            "training.sync_ref_model: the run's reference followed the model; here it is the model before "
            "the run, and the rewards are others"
        )
    if evaluation.weights is not None:
        weights = built.trainer.own_files.weights
        if other := changed_base(Path(evaluation.weights), str(identity["path"]), weights):
            out.warn(other)


def _without_training_rows(config: RunConfig) -> RunConfig:
    """The configuration without the training data, unless the evaluation data are a part of them."""
    data = config.data
    return replace(config, data=replace(data, train=(), streaming=False)) if data.eval else config


def evaluate(evaluation: Evaluation, out: RunConsole) -> dict[str, float]:
    """The metrics of the model on the evaluation data, by name. Raises the same errors as a run."""
    config = _without_training_rows(evaluation.config)
    look_ahead(config)
    config = pinned(config, out.warn)
    with one_at_a_time(), stoppable() as signals, tempfile.TemporaryDirectory() as scratch:
        from fmstune.training.build import build_trainer
        from fmstune.training.callbacks.progress import BatchesCallback
        from fmstune.training.trl_compat.saving import load_checkpoint

        signals.raise_again()
        built = build_trainer(config, Tracker(), Path(scratch))
        built.bad_rows.file = None  # it goes with the scratch directory
        _require_kind(config, built)
        _describe(built, evaluation, out)
        built.trainer.add_callback(BatchesCallback(out))
        if evaluation.weights is not None:
            load_checkpoint(built.trainer, evaluation.weights)
        try:
            found = built.trainer.evaluate()
        finally:
            built.trainer.end_workers()
    metrics = {
        name.removeprefix("eval_"): float(value)
        for name, value in found.items()
        if not name.endswith(_LEFT_OUT) and isinstance(value, (int, float))
    }
    if not METHODS[config.run.method].compares and "loss" in metrics and _is_likelihood(config):
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700))
    return metrics
