"""Trackers whose storage somebody removes, or replaces by an older state of it, in the middle of a delivery.

The real ones, and what is done to them is done once, to what the real SDK has written by then.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.base import Tracker
from fmstune.trackers.clearml_tracker import ClearmlTracker
from fmstune.trackers.comet_tracker import CometTracker
from fmstune.trackers.dvclive_tracker import DvcLiveTracker
from fmstune.trackers.file_tracker import FileTracker
from fmstune.trackers.mlflow_tracker import MlflowTracker
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.swanlab_tracker import SwanLabTracker
from fmstune.trackers.tensorboard_tracker import TensorBoardTracker
from fmstune.trackers.trackio_tracker import TrackioTracker
from fmstune.trackers.wandb_tracker import WandbTracker

COPIED_AT, STRUCK_AT = 5, 8
_DONE = Path("struck")


class _Vanishing(Tracker):
    """Before the event `STRUCK_AT`, does to `storage` what the file `how` says."""

    storage: str

    def track_point(self, point: MetricPoint) -> None:
        storage, copy = Path(self.storage), Path("older")
        if self.seq == COPIED_AT and not copy.exists():
            shutil.copytree(storage, copy) if storage.is_dir() else shutil.copy(storage, copy)
        if self.seq == STRUCK_AT and not _DONE.exists():
            _DONE.touch()
            _strike(Path("how").read_text(), storage, copy)
        super().track_point(point)


def _strike(how: str, storage: Path, copy: Path) -> None:
    if how == "overwritten":  # as an editor may save
        storage.write_bytes(copy.read_bytes())
        return
    if storage.is_dir():
        shutil.rmtree(storage)
    else:
        storage.unlink()
    if how == "older":
        copy.rename(storage)


class VanishingFile(_Vanishing, FileTracker):
    storage = "stored.jsonl"


class VanishingAim(_Vanishing, AimStackTracker):
    storage = ".aim"


class VanishingWandb(_Vanishing, WandbTracker):
    storage = "wandb"


class VanishingMlflow(_Vanishing, MlflowTracker):
    storage = "mlflow.db"


class VanishingTensorboard(_Vanishing, TensorBoardTracker):
    storage = "tensorboard"


class VanishingDvcLive(_Vanishing, DvcLiveTracker):
    storage = "dvclive"

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


class VanishingSwanLab(_Vanishing, SwanLabTracker):
    storage = "swanlog"

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


class VanishingTrackio(_Vanishing, TrackioTracker):
    storage = "trackio"

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()  # there is nothing before


class VanishingComet(_Vanishing, CometTracker):
    storage = ".cometml-runs"

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


class VanishingClearml(_Vanishing, ClearmlTracker):
    storage = "clearml"

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


def options(kind: str) -> dict[str, Any]:
    """The options of one of them."""
    found: dict[str, dict[str, Any]] = {
        "File": {"path": "stored.jsonl"}, "Aim": {"repo": "."}, "Wandb": {"mode": "offline", "dir": "."},
        "Mlflow": {"tracking_uri": "sqlite:///mlflow.db"}, "Tensorboard": {"dir": "tensorboard"},
        "Trackio": {}, "DvcLive": {}, "SwanLab": {"mode": "offline"}, "Comet": {"mode": "offline"},
        "Clearml": {"offline": True, "dir": "clearml"},
    }  # fmt: skip
    return found[kind]
