"""What can only be checked when the whole configuration is known; several problems are told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from fmstune.config.errors import ConfigError, shortened, shown
from fmstune.config.schema import RunConfig

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
_PATH_STARTS = ("/", "./", "../", "~")
_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "logging_steps",
    "max_length",
)
_TOLD = 3  # more of them are no short paragraph


def check_together(config: RunConfig, file: str | None) -> RunConfig:
    """The configuration, when its parts fit together. Raises `ConfigError` with all that does not."""
    problems = list(_problems(config, file))
    if problems:
        more = len(problems) - _TOLD
        rest = [f"There {'is 1 problem' if more == 1 else f'are {more} problems'} more."] * (more > 0)
        raise ConfigError(" ".join([*problems[:_TOLD], *rest]))
    return config


def _problems(config: RunConfig, file: str | None) -> Iterator[str]:
    data, training = config.data, config.training

    def origin(key: str) -> str:
        return config.origins.get(key, file or "default")

    if data.eval and data.eval_fraction:
        yield f"{origin('data.eval')}: set data.eval or data.eval_fraction, not both."
    strategy = training.get("eval_strategy", "no")
    if strategy != "no" and not (data.eval or data.eval_fraction):
        yield (
            f"{origin('training.eval_strategy')}: training.eval_strategy = {shown(strategy)} needs "
            "evaluation data: give --eval-data, or set data.eval_fraction = 0.1."
        )
    if training.get("load_best_model_at_end") and strategy == "no":
        yield (
            f"{origin('training.load_best_model_at_end')}: training.load_best_model_at_end needs "
            'evaluations: set training.eval_strategy = "epoch" and evaluation data.'
        )
    for name in _POSITIVE:
        value = training.get(name)
        if isinstance(value, (int, float)) and value <= 0:
            key = f"training.{name}"
            yield f"{origin(key)}: {key} = {shown(value)} is out of range; it is more than 0."
    steps = training.get("max_steps", -1)
    if isinstance(steps, int) and steps != -1 and steps <= 0:
        yield (  # transformers would train whole epochs instead, without a word
            f"{origin('training.max_steps')}: training.max_steps = {shown(steps)} is out of range; it is "
            "more than 0, or -1 for whole epochs."
        )
    for key, source in (("data.train", data.train), ("data.eval", data.eval)):
        missing = _missing(source)
        if missing is not None:
            yield f"{origin(key)}: {key} = {shown(source)}: {missing}"
    # What does not begin like a path may be a name on the hub; only the hub knows.
    if config.model.path.startswith(_PATH_STARTS) and not _exists(Path(config.model.path)):
        yield f"{origin('model.path')}: model.path = {shown(config.model.path)}: there is no such directory."
    template = config.model.chat_template
    if template is not None and not _exists(Path(template)):
        where = origin("model.chat_template")
        yield f"{where}: model.chat_template = {shown(template)}: {_no_such_file(Path(template))}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _missing(source: str) -> str | None:
    """Why a data source that reads like a file is none; hub names and `demo` are left alone."""
    path = Path(source)
    if source in ("", "demo") or _exists(path):
        return None
    looks_like_file = path.suffix in _DATA_SUFFIXES or source.startswith(_PATH_STARTS)
    if not looks_like_file:
        if "/" in source:
            return None  # owner/name, perhaps: the hub will say
        return "there is no such file here, and names on the hub read owner/name."
    return _no_such_file(path)


def _no_such_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"there is no directory {shortened(str(path.parent))}."
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return "there is no such file." + (f" Did you mean {path.parent / close[0]}?" if close else "")
