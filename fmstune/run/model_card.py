"""The model card: the model, the data, the results, and how to repeat the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune._version import __version__
from fmstune.config.methods.known import METHODS
from fmstune.config.schema.tables import RunConfig
from fmstune.secrets.redaction import hide
from fmstune.trackers.values.stages import split_stages

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer

_CARD = """\
---
library_name: {library}
pipeline_tag: {task}
tags: [fmstune, {learnt}, {method}]{hub}
---
# {name}

{base} tuned with [fmstune](https://pypi.org/project/fmstune/) {version} ({learnt}, {method}).

| | |
|---|---|
| base model | {base} ({parameters:,} parameters, {trainable:,} trained) |
| training data | {data} |
{unused}| steps | {steps} |
{results}

## How to repeat it

    {command}
"""


_OF_PROCESS = ("train/train_loss", "train/train_runtime")
"""Results of all steps of a process."""


def write_card(
    directory: Path, config: RunConfig, built: BuiltTrainer, metrics: Mapping[str, float], resumed_from: int
) -> None:
    """Write the card as `README.md` into the run's directory. `metrics` are the last values of this process,
    which began at the step `resumed_from`."""
    trained, method = METHODS[config.run.method], config.adapter or "full"
    commit, state = config.model.revision, built.trainer.state
    kept, steps = _kept_step(built), f"{state.global_step}"
    if kept != state.global_step:
        metrics = {name: metrics[name] for name in _OF_PROCESS if name in metrics} | _metrics_at(kept, built)
        steps = f"{kept} of {steps}, where the evaluation was the best"
    since = f" since step {resumed_from}" if resumed_from else ""
    results = ("train/loss", "train/train_loss", "eval/loss", *trained.results, "train/train_runtime")
    rows = [
        f"| {name}{since if name in _OF_PROCESS else ''} | {metrics[name]:.4g} |"
        for name in results
        if name in metrics
    ]
    marks = ", ".join(f"`{end}`" for end in built.ends)
    ends = f"| answers end with | {marks} (in `generation_config.json`) |\n" if marks else ""
    text = _CARD.format(
        library="peft" if config.adapter else "transformers",
        method=method,
        learnt=trained.name,
        task="text-classification" if trained.scores else "text-generation",
        name=directory.resolve().name,
        base=f"`{config.model.path}`" + (f" at `{commit[:12]}`" if commit else ""),
        hub=_on_the_hub(config),
        version=__version__,
        parameters=built.model_identity["parameters"],
        trainable=built.trainable,
        data=built.data.line(),
        unused="".join(f"| not used | {line} |\n" for line in built.data.unused_lines()) + ends,
        steps=steps,
        results="\n".join(rows),
        command=_command(config.data.handler),
    )
    (directory / "README.md").write_text(hide(text), encoding="utf-8")


def _kept_step(built: BuiltTrainer) -> int:
    """The step whose weights are saved: that of the best evaluation, if the run was to load it."""
    state = built.trainer.state
    loaded = built.trainer.args.load_best_model_at_end and state.best_model_checkpoint
    return int(state.best_global_step if loaded and state.best_global_step else state.global_step)


def _metrics_at(step: int, built: BuiltTrainer) -> dict[str, float]:
    found: dict[str, float] = {}
    for logs in built.trainer.state.log_history:
        if logs.get("step") == step:
            for stage, values in split_stages(logs).items():
                found |= {f"{stage}/{name}": value for name, value in values.items()}
    return found


def _command(handler: Any) -> str:
    """The command that repeats the run. A function passed from a script or notebook cannot be found by
    name."""
    if not callable(handler):
        return "fmstune train config.toml"
    name = getattr(handler, "__name__", type(handler).__name__)
    return f'fmstune.train("config.toml", data_handler={name})  # in Python, with the same function'


def _on_the_hub(config: RunConfig) -> str:
    """The header lines by which the hub links a model to its base model and data."""
    data = dict.fromkeys(source.path for source in config.data.train if source.revision)
    lines = [f"base_model: {config.model.path}"] if config.model.revision else []
    lines += [f"datasets: [{', '.join(data)}]"] if data else []
    return "".join(f"\n{line}" for line in lines)
