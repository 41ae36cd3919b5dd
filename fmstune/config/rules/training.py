"""Check values of `[training]` that transformers would reject only once the model is loaded, or later."""

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
"""The `optim_args` that transformers passes to torch's optimizers; it silently ignores all others."""


def training_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The problems, as (key, message)."""
    training = config.training
    yield from schedule_problems(training)
    file = training.get("accelerator_config")
    if isinstance(file, str) and file and not file.startswith("{") and not exists(config.base_dir / file):
        key = "training.accelerator_config"
        yield key, f"{key} = {shown(file)}: there is no such file."
    yield from _distribution(config, file)
    text = training.get("optim_args")
    if text and not all(re.fullmatch(r"\s*[^=\s]+\s*=[^=]+", part) for part in str(text).split(",")):
        key = "training.optim_args"
        yield key, f"{key} = {shown(text)} is not of the form NAME=VALUE,NAME=VALUE."
    else:
        yield from _optimizer_arguments(str(training.get("optim", "")), str(text or ""))
    yield from _workers(training)
    kept = training.get("save_total_limit")
    if kept is not None and kept < 1:  # transformers would silently keep all of them
        key = "training.save_total_limit"
        yield (
            key,
            f'{key} = {kept} is out of range; it must be at least 1, or "none" to keep all checkpoints.',
        )
    multiple = training.get("pad_to_multiple_of")
    if isinstance(multiple, str) and multiple != "auto":
        key = "training.pad_to_multiple_of"
        yield key, f"{key} = {shown(multiple)} is neither a number of tokens nor auto."
    if training.get("eval_packing") and not training.get("packing"):
        key = "training.eval_packing"
        yield (
            key,
            f"{key} packs the evaluation like the training; set training.packing = true, or leave it out.",
        )
    decided = training.get("metric_for_best_model") or training.get("load_best_model_at_end")
    if training.get("save_strategy") == "best" and not decided:
        key = "training.save_strategy"
        yield key, f"{key} = 'best' needs a metric: set training.metric_for_best_model = \"loss\"."


_FAILING = {
    "even_batches": (False, "the others would wait for a process without a batch"),
    "dispatch_batches": (True, "batches would have different shapes on different processes"),
}
"""Ways to distribute rows over several processes that make them abort or hang."""


def _distribution(config: RunConfig, given: Any) -> Iterator[tuple[str, str]]:
    file = given
    if isinstance(given, str):
        text = given if given.startswith("{") else None
        path = config.base_dir / given
        if text is None and given and path.is_file():
            with contextlib.suppress(OSError, ValueError):  # transformers reports what is wrong with it
                text = path.read_text()
        try:
            given = json.loads(text or "null")
        except ValueError:
            return  # transformers reports what is wrong with it
    if not isinstance(given, Mapping):
        return
    for name, (wrong, reason) in _FAILING.items():
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
            meant = f"Did you mean {close}?" if close else f"Available: {', '.join(known)}."
            yield key, f"{key}: the optimizer {optimizer} has no argument {shown(name)}. {meant}"


def _workers(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of the dataloader's workers, which torch rejects if there are none."""
    for name in (
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "dataloader_multiprocessing_context",
    ):
        if training.get(name) and not training.get("dataloader_num_workers"):
            key = f"training.{name}"
            yield key, f"{key} needs workers: set training.dataloader_num_workers = 2."
    if training.get("dataloader_num_workers"):
        import multiprocessing  # not when the command starts

        if multiprocessing.current_process().daemon:
            key = "training.dataloader_num_workers"
            yield (
                key,
                (
                    f"{key}: a worker of multiprocessing.Pool may start no processes; use "
                    f"concurrent.futures.ProcessPoolExecutor, or set {key} = 0."
                ),
            )
