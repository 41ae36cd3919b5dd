"""The built-in trackers pass the conformance kit, read back through their own SDKs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from fmstune.testing import Delivered, Stored, TrackerConformance
from fmstune.testing.lives import Nursery, nursery
from tests.support.mlflow_servers import store_in


class BuiltIn(TrackerConformance):
    """Read back in processes of their own: an SDK caches what it has seen."""

    reader: ClassVar[str]
    reads_with: ClassVar[tuple[str, ...] | None] = None
    """What the reader imports, where that is not all of `modules`."""
    readers: ClassVar[Nursery]

    @pytest.fixture(scope="class", autouse=True)
    def _readers(self, request: pytest.FixtureRequest):
        modules = request.cls.modules if request.cls.reads_with is None else request.cls.reads_with
        with nursery("tests.support.stored", *modules) as made:
            request.cls.readers = made
            yield

    def read(self, delivered: Delivered) -> Stored:
        held = self.readers.read(f"tests.support.stored:{self.reader}", delivered.folder)
        params = held["params"].get("*", held["params"])
        return Stored([tuple(point) for point in held["points"]], params, held.get("status"))


class TestAim(BuiltIn):
    tracker = "aim"
    options: ClassVar = {"repo": "."}
    modules = ("aim", "pandas", "aim.sdk.index_manager")
    reader = "from_aim"


class TestWandb(BuiltIn):
    tracker = "wandb"
    options: ClassVar = {"mode": "offline", "dir": "."}
    modules = ("wandb", "wandb.proto.wandb_internal_pb2")
    reader = "from_wandb"


class TestMlflow(BuiltIn):
    tracker = "mlflow"
    options: ClassVar = {"tracking_uri": "sqlite:///{folder}/mlflow.db"}
    modules = ("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store")
    reader = "from_mlflow"

    def prepare(self, folder: Path) -> None:
        store_in(folder)
        for name in ("one", "other"):  # of the two trackers at once
            store_in(folder / name)


class TestTensorBoard(BuiltIn):
    tracker = "tensorboard"
    options: ClassVar = {"dir": "tensorboard"}
    modules = (
        "tensorboard.summary.writer.record_writer",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.plugins.hparams.plugin_data_pb2",
        "tensorboard.plugins.text.metadata",
        "tensorboard.backend.event_processing.event_accumulator",
    )
    reader = "from_tensorboard"


class TestTrackio(BuiltIn):
    tracker = "trackio"
    modules = ("trackio", "trackio.sqlite_storage")
    reader = "from_trackio"


class TestDvcLive(BuiltIn):
    tracker = "dvclive"
    modules = ("dvclive",)
    reader = "from_dvclive"


class TestSwanLab(BuiltIn):
    tracker = "swanlab"
    options: ClassVar = {"mode": "offline"}
    modules = ("swanlab.sdk", "pyroaring", "swanlab.sdk.internal.core_python.store")
    reader = "from_swanlab"


class TestComet(BuiltIn):
    tracker = "comet"
    options: ClassVar = {"mode": "offline"}
    modules = ("comet_ml",)
    reader = "from_comet"


class TestClearml(BuiltIn):
    tracker = "clearml"
    options: ClassVar = {"offline": True, "dir": "clearml"}
    modules = ("tests.support.clearml_warm",)
    reads_with = ()
    reader = "from_clearml"


class TestFile(BuiltIn):
    tracker = "file"
    options: ClassVar = {"path": "stored.jsonl"}
    reader = "from_file"


class TestNone(TrackerConformance):
    tracker = "none"
