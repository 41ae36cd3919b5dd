"""Trackers whose storage somebody removes, or replaces by an older state of it, in the middle of a delivery.

The real ones, and what is done to them is done once, to what the real SDK has written by then.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import tracker_class

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


class _Flushing(_Vanishing):
    """One whose SDK has stored nothing before it is flushed."""

    def track_point(self, point: MetricPoint) -> None:
        super().track_point(point)
        self.flush()


_KINDS: dict[str, tuple[type[_Vanishing], str]] = {
    "File": (_Vanishing, "stored.jsonl"), "Aim": (_Vanishing, ".aim"), "Wandb": (_Vanishing, "wandb"),
    "Mlflow": (_Vanishing, "mlflow.db"), "Tensorboard": (_Vanishing, "tensorboard"),
    "DvcLive": (_Flushing, "dvclive"), "SwanLab": (_Flushing, "swanlog"), "Trackio": (_Flushing, "trackio"),
    "Comet": (_Flushing, ".cometml-runs"), "Clearml": (_Flushing, "clearml"),
}  # fmt: skip


def __getattr__(name: str) -> type[Tracker]:
    """The class `VanishingAim` and so on, made when it is wanted: each process imports only its own."""
    kind = name.removeprefix("Vanishing")
    if kind == name or kind not in _KINDS:
        raise AttributeError(name)
    how, storage = _KINDS[kind]
    return type(name, (how, tracker_class(kind.lower())), {"storage": storage})


def options(kind: str) -> dict[str, Any]:
    """The options of one of them."""
    found: dict[str, dict[str, Any]] = {
        "File": {"path": "stored.jsonl"}, "Aim": {"repo": "."}, "Wandb": {"mode": "offline", "dir": "."},
        "Mlflow": {"tracking_uri": "sqlite:///mlflow.db"}, "Tensorboard": {"dir": "tensorboard"},
        "Trackio": {}, "DvcLive": {}, "SwanLab": {"mode": "offline"}, "Comet": {"mode": "offline"},
        "Clearml": {"offline": True, "dir": "clearml"},
    }  # fmt: skip
    return found[kind]
