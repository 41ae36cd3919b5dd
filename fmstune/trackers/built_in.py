"""fmstune's own trackers, as `fmstune trackers list` knows them without importing one.

tests/trackers/test_registry.py compares what is duplicated here and in each class: importing all of them
would take longer than everything else that the list does, and longer with each tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmstune.requirements import unmet_requirement


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """The location of the class (`module:Class`), and copies of its attributes."""

    where: str
    description: str
    package: str | None = None
    distributions: tuple[str, ...] = ()

    def unmet(self, version: str) -> str | None:
        """The requirement of fmstune that a version of the package does not meet, as `aim>=3.25,<4`."""
        return unmet_requirement(version, *self.distributions, self.package or "")


BUILT_IN: Mapping[str, BuiltIn] = {
    "none": BuiltIn("fmstune.trackers.base:Tracker", "no tracking"),
    "aim": BuiltIn(
        "fmstune.trackers.aimstack_tracker:AimStackTracker",
        "Aim, in a local repository or on an aim server",
        "aim",
    ),
    "wandb": BuiltIn("fmstune.trackers.wandb_tracker:WandbTracker", "Weights & Biases", "wandb"),
    "mlflow": BuiltIn(
        "fmstune.trackers.mlflow_tracker:MlflowTracker",
        "MLflow: a server, Databricks, or a store on this machine",
        "mlflow",
        ("mlflow", "mlflow-skinny"),
    ),
    "tensorboard": BuiltIn(
        "fmstune.trackers.tensorboard_tracker:TensorBoardTracker",
        "TensorBoard: event files in a folder, for `tensorboard --logdir`",
        "tensorboard",
    ),
    "trackio": BuiltIn(
        "fmstune.trackers.trackio_tracker:TrackioTracker",
        "trackio: a database on this machine, a server, or a Space on the hub",
        "trackio",
    ),
    "dvclive": BuiltIn(
        "fmstune.trackers.dvclive_tracker:DvcLiveTracker",
        "DVCLive: a folder for `dvc plots` and `dvc metrics`, with Git or without",
        "dvclive",
    ),
    "swanlab": BuiltIn(
        "fmstune.trackers.swanlab_tracker:SwanLabTracker",
        "SwanLab: its cloud or a server of yours, or a folder for `swanlab sync`",
        "swanlab",
    ),
    "comet": BuiltIn(
        "fmstune.trackers.comet_tracker:CometTracker",
        "Comet, online, or as archives for `comet upload`",
        "comet_ml",
        ("comet_ml", "comet-ml"),
    ),
    "clearml": BuiltIn(
        "fmstune.trackers.clearml_tracker:ClearmlTracker",
        "ClearML: a server, or offline sessions",
        "clearml",
    ),
    "file": BuiltIn(
        "fmstune.trackers.file_tracker:FileTracker",
        "every event as JSON lines or CSV, in a file of yours",
    ),
}


def unmet(tracker: type[object], version: str) -> str | None:
    """`BuiltIn.unmet` of a tracker's class; `None` for others, which may support other versions."""
    where = f"{tracker.__module__}:{tracker.__qualname__}"
    return next((known.unmet(version) for known in BUILT_IN.values() if known.where == where), None)
