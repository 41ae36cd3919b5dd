"""The Trainer's metrics, sorted by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.trackers.values.plain import text_of

_STAGES = ("eval", "test")
_NOT_METRICS = ("epoch", "step")


def split_stages(logs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort what the Trainer logs by stage: `eval_loss` is `loss` of the stage `eval`.

    Names that start with neither `eval_` nor `test_` belong to the stage `train` and keep their name,
    including `train_runtime`, as in transformers' own integrations.
    """
    stages: dict[str, dict[str, Any]] = {}
    for key, value in logs.items():
        name = key if type(key) is str else text_of(key)  # a user's own `{0: 0.5}`
        if name in _NOT_METRICS or value is None:
            continue
        prefix, _, rest = name.partition("_")
        if prefix in _STAGES and rest:
            stages.setdefault(prefix, {})[rest] = value
        else:
            stages.setdefault("train", {})[name] = value
    return stages
