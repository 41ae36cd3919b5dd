"""The built-in trackers pass the conformance kit, read back through their own SDKs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from fmstune.testing import Delivered, Stored, TrackerConformance, examination
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives


class BuiltIn(TrackerConformance):
    """Read back in separate processes: an SDK caches what it has read."""

    reader: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _shared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fork its processes from interpreters that other tests use, too."""
        monkeypatch.setattr(examination, "_fork_server", lambda modules: lives(self.tracker))

    def read(self, delivered: Delivered) -> Stored:
        held = lives(self.tracker).read(f"tests.support.stored:{self.reader}", delivered.folder)
        params = held["params"].get("*", held["params"])
        return Stored([tuple(point) for point in held["points"]], params, held.get("status"))


class TestAim(BuiltIn):
    tracker = "aim"
    options: ClassVar = {"repo": "."}
    reader = "from_aim"


class TestWandb(BuiltIn):
    tracker = "wandb"
    options: ClassVar = {"mode": "offline", "dir": "."}
    reader = "from_wandb"


class TestMlflow(BuiltIn):
    tracker = "mlflow"
    options: ClassVar = {"tracking_uri": "sqlite:///{folder}/mlflow.db"}
    reader = "from_mlflow"

    def prepare(self, folder: Path) -> None:
        store_in(folder)
        for name in ("one", "other"):  # for the two trackers that run at once
            store_in(folder / name)


class TestTensorBoard(BuiltIn):
    tracker = "tensorboard"
    options: ClassVar = {"dir": "tensorboard"}
    reader = "from_tensorboard"


class TestTrackio(BuiltIn):
    tracker = "trackio"
    reader = "from_trackio"


class TestDvcLive(BuiltIn):
    tracker = "dvclive"
    reader = "from_dvclive"


class TestSwanLab(BuiltIn):
    tracker = "swanlab"
    options: ClassVar = {"mode": "offline"}
    reader = "from_swanlab"


class TestComet(BuiltIn):
    tracker = "comet"
    options: ClassVar = {"mode": "offline"}
    reader = "from_comet"


class TestClearml(BuiltIn):
    tracker = "clearml"
    options: ClassVar = {"offline": True, "dir": "clearml"}
    reader = "from_clearml"


class TestFile(BuiltIn):
    tracker = "file"
    options: ClassVar = {"path": "stored.jsonl"}
    reader = "from_file"


class TestNone(TrackerConformance):
    tracker = "none"
