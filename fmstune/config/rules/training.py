"""Values of `[training]` that transformers would refuse only when the model is loaded, or later still."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.check.suggest import closest
from fmstune.config.paths.data import exists
from fmstune.config.schema.schedules import schedule_problems
from fmstune.config.schema.tables import RunConfig
from fmstune.text import shown

_OPTIM_ARGS = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
"""What transformers takes from `optim_args` for the optimizers of torch; of all else it says nothing."""


def training_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What is wrong, as (key, message)."""
    training = config.training
    yield from schedule_problems(training)
    file = training.get("accelerator_config")
    if isinstance(file, str) and file and not file.startswith("{") and not exists(config.base_dir / file):
        key = "training.accelerator_config"
        yield key, f"{key} = {shown(file)}: there is no such file."
    yield from _dealing(config, file)
    text = training.get("optim_args")
    if text and not all(re.fullmatch(r"\s*[^=\s]+\s*=[^=]+", part) for part in str(text).split(",")):
        key = "training.optim_args"
        yield key, f"{key} = {shown(text)} is not of the form NAME=VALUE,NAME=VALUE."
    else:
        yield from _optimizer_arguments(str(training.get("optim", "")), str(text or ""))
    yield from _workers(training)
    kept = training.get("save_total_limit")
    if kept is not None and kept < 1:  # transformers would keep all of them, without a word
        key = "training.save_total_limit"
        yield key, f"{key} = {kept} is out of range; it is at least 1. Leave it out to keep all checkpoints."
    multiple = training.get("pad_to_multiple_of")
    if isinstance(multiple, str) and multiple != "auto":
        key = "training.pad_to_multiple_of"
        yield key, f"{key} = {shown(multiple)} is neither a number of tokens nor auto."
    if training.get("eval_packing") and not training.get("packing"):
        key = "training.eval_packing"
        yield (
            key,
            f"{key} packs the evaluation as the training; set training.packing = true, or leave it out.",
        )
    decided = training.get("metric_for_best_model") or training.get("load_best_model_at_end")
    if training.get("save_strategy") == "best" and not decided:
        key = "training.save_strategy"
        yield key, f"{key} = 'best' needs to know by what: set training.metric_for_best_model = \"loss\"."


_DEALS = {
    "even_batches": (False, "a process without a batch would leave the others waiting for it"),
    "dispatch_batches": (True, "batches of one process's rows do not have the same shapes for all"),
}
"""Ways to deal rows out to several processes with which these abort or hang."""


def _dealing(config: RunConfig, given: Any) -> Iterator[tuple[str, str]]:
    file = given
    if isinstance(given, str):
        text = given if given.startswith("{") else None
        path = config.base_dir / given
        if text is None and given and path.is_file():
            with contextlib.suppress(OSError, ValueError):  # transformers says what is wrong with it
                text = path.read_text()
        try:
            given = json.loads(text or "null")
        except ValueError:
            return  # transformers says what is wrong with it
    if not isinstance(given, Mapping):
        return
    for name, (wrong, reason) in _DEALS.items():
        if given.get(name) is wrong:
            key = "training.accelerator_config"
            where = f" in {shown(file)}" if isinstance(file, str) and not file.startswith("{") else ""
            yield (
                key,
                f"{key}: {name} = {str(wrong).lower()}{where} fails with several processes: {reason}. "
                f"Leave {name} out.",
            )


def _optimizer_arguments(optimizer: str, text: str) -> Iterator[tuple[str, str]]:
    known = _OPTIM_ARGS.get(optimizer)
    for name in (part.partition("=")[0].strip() for part in text.split(",") if part):
        if known is not None and name not in known:
            key = "training.optim_args"
            close = closest(name, known, {})
            meant = f"Did you mean {close}?" if close else f"There are {', '.join(known)}."
            yield key, f"{key}: the optimizer {optimizer} has no argument {shown(name)}. {meant}"


def _workers(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of the processes that load data, with which torch refuses to work when there are none."""
    for name in (
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "dataloader_multiprocessing_context",
    ):
        if training.get(name) and not training.get("dataloader_num_workers"):
            key = f"training.{name}"
            yield key, f"{key} needs workers: set training.dataloader_num_workers = 2."
