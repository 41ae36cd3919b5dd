"""What settings of the trackers are here, where the value differs or depends on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.config.translate.foreign import Foreign
from fmstune.config.translate.rule import Here, Left, Rule, to


def _trackers(value: Any, theirs: Foreign) -> Here:
    names = value if isinstance(value, list) else str(value).split(",")
    names = [str(name).strip() for name in names]
    if names == ["all"]:
        raise Left("Name them in tracking.trackers.")
    return {"tracking.trackers": [name for name in names if name not in ("none", "None")]}


def _tracked_by(name: str, option: str = "") -> Rule:
    def rule(value: Any, theirs: Foreign) -> Here:
        if value is False:
            return {}
        chosen: Here = {"tracking.trackers": [name]}
        return chosen | ({f"trackers.{name}.{option}": value} if option else {})

    return rule


def _logger(value: Any, theirs: Foreign) -> Here:
    names = {"WandBLogger": "wandb", "TensorBoardLogger": "tensorboard", "CometLogger": "comet"}
    name = names.get(str(value).rpartition(".")[2])
    if name is None:
        return {}
    project = theirs.get("metric_logger.project")
    at = {f"trackers.{name}.project": project} if project and name != "tensorboard" else {}
    return {"tracking.trackers": [name], **at}


def _log_dir(value: Any, theirs: Foreign) -> Here:
    if str(theirs.get("metric_logger._component_", "")).endswith("TensorBoardLogger"):
        return {"trackers.tensorboard.dir": value}
    return {}


TRACKER_RULES: Mapping[str, Rule] = {
    "report_to": _trackers,
    "use_wandb": _tracked_by("wandb"),
    "wandb_project": _tracked_by("wandb", "project"),
    "wandb_entity": _tracked_by("wandb", "entity"),
    "wandb_name": to("run.name"),
    "wandb_run_name": to("run.name"),
    "run_name": to("run.name"),
    "use_tensorboard": _tracked_by("tensorboard"),
    "use_mlflow": _tracked_by("mlflow"),
    "mlflow_tracking_uri": _tracked_by("mlflow", "tracking_uri"),
    "mlflow_experiment_name": _tracked_by("mlflow", "experiment"),
    "use_comet": _tracked_by("comet"),
    "comet_project_name": _tracked_by("comet", "project"),
    "comet_workspace": _tracked_by("comet", "workspace"),
    "swanlab_project": _tracked_by("swanlab", "project"),
    "swanlab_workspace": _tracked_by("swanlab", "workspace"),
    "swanlab_experiment_name": _tracked_by("swanlab", "experiment_name"),
    "swanlab_mode": _tracked_by("swanlab", "mode"),
    "use_swanlab": _tracked_by("swanlab"),
    "metric_logger._component_": _logger,
    "metric_logger.log_dir": _log_dir,
    "mlflow_run_name": to("run.name"),
}
"""By the name of a setting, or its dotted key."""
