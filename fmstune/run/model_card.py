"""The model card: the model, the data, the results, and how to repeat the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune._version import __version__
from fmstune.config.methods.known import METHODS
from fmstune.config.schema.tables import RunConfig
from fmstune.secrets.redaction import hide

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


def write_card(directory: Path, config: RunConfig, built: BuiltTrainer, metrics: Mapping[str, float]) -> None:
    """Write the card as `README.md` into the run's directory."""
    trained, method = METHODS[config.run.method], config.adapter or "full"
    commit = config.model.revision
    results = ("train/loss", "train/train_loss", "eval/loss", *trained.results, "train/train_runtime")
    rows = [f"| {name} | {metrics[name]:.4g} |" for name in results if name in metrics]
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
        steps=built.trainer.state.global_step,
        results="\n".join(rows),
        command=_command(config.data.handler),
    )
    (directory / "README.md").write_text(hide(text), encoding="utf-8")


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
