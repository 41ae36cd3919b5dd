"""Trackers whose storage is removed, or replaced by an older copy, in the middle of a delivery.

They are the real trackers; the storage is changed once, in the state in which the real SDK has left it.
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
    if how == "overwritten":  # in place, as some editors save
        storage.write_bytes(copy.read_bytes())
        return
    if storage.is_dir():
        shutil.rmtree(storage)
    else:
        storage.unlink()
    if how == "older":
        copy.rename(storage)


class _Flushing(_Vanishing):
    """A tracker whose SDK stores nothing before it is flushed."""

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
    """The class `VanishingAim` and so on, made on demand: each process imports only its own."""
    kind = name.removeprefix("Vanishing")
    if kind == name or kind not in _KINDS:
        raise AttributeError(name)
    how, storage = _KINDS[kind]
    return type(name, (how, tracker_class(kind.lower())), {"storage": storage})


def options(kind: str) -> dict[str, Any]:
    """The options of one of these trackers."""
    found: dict[str, dict[str, Any]] = {
        "File": {"path": "stored.jsonl"}, "Aim": {"repo": "."}, "Wandb": {"mode": "offline", "dir": "."},
        "Mlflow": {"tracking_uri": "sqlite:///mlflow.db"}, "Tensorboard": {"dir": "tensorboard"},
        "Trackio": {}, "DvcLive": {}, "SwanLab": {"mode": "offline"}, "Comet": {"mode": "offline"},
        "Clearml": {"offline": True, "dir": "clearml"},
    }  # fmt: skip
    return found[kind]
