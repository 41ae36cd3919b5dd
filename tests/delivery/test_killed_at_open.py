"""A process that is killed after it created a run in the service, before it could store the run's id."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.sync import sync
from fmstune.testing.compare import as_single
from fmstune.trackers.registry import reference
from tests.support.aim_servers import aim_server, free_port
from tests.support.clearml_cloud import ClearmlCloud
from tests.support.comet_cloud import CometCloud
from tests.support.commands import fmstune
from tests.support.end_to_end import (
    Points,
    aim_points,
    clearml_points,
    comet_points,
    dvclive_points,
    journal_points,
    mlflow_points,
    swanlab_points,
    swanlab_scalars,
    tensorboard_points,
    trackio_points,
)
from tests.support.made_runs import make_run
from tests.support.mlflow_servers import mlflow_server
from tests.support.swanlab_cloud import SwanLabCloud
from tests.support.trackio_servers import TOKEN, trackio_server
from tests.support.wandb_cloud import WandbCloud
from tests.support.wandb_isolation import isolate_wandb

_KILLED = """
import json, os, sys
from pathlib import Path
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.trackers.registry import get_tracker

directory, name, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
tracker = get_tracker(name, **options)
opened = tracker.open

def open(start):
    opened(start)
    os._exit(9)

tracker.open = open
ledger = Ledger(name)
ledger.save(directory)
Delivery(directory, tracker, ledger).run(lambda: True)
"""


@dataclass
class Service:
    """A service with a tracker's options, and the points of the only run that it holds."""

    tracker: str
    options: dict[str, Any]
    points: Callable[[], Points]


@contextlib.contextmanager
def aim_in_a_folder(folder: Path) -> Iterator[Service]:
    yield Service("aim", {"repo": str(folder)}, lambda: aim_points(folder, reindex=True))


@contextlib.contextmanager
def aim_behind_a_server(folder: Path) -> Iterator[Service]:
    port = free_port()
    with aim_server(folder, port):
        yield Service("aim", {"repo": f"aim://127.0.0.1:{port}"}, lambda: aim_points(folder, reindex=True))


@contextlib.contextmanager
def mlflow_behind_a_server(folder: Path) -> Iterator[Service]:
    port = free_port()
    with mlflow_server(folder, port):
        uri = f"http://127.0.0.1:{port}"
        yield Service("mlflow", {"tracking_uri": uri}, lambda: mlflow_points(folder / "mlflow.db"))


@contextlib.contextmanager
def wandb_online(folder: Path) -> Iterator[Service]:
    with WandbCloud() as cloud, pytest.MonkeyPatch.context() as world:
        folder.mkdir()
        isolate_wandb(folder, world)
        world.setenv("WANDB_BASE_URL", cloud.url)
        world.setenv("WANDB_API_KEY", cloud.key)
        world.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

        def points() -> Points:
            (run,) = cloud.runs.values()
            return {
                (key.rpartition("/")[0], key.rpartition("/")[2], row["train/global_step"]): value
                for row in run.history
                for key, value in row.items()
                if not key.startswith("_") and key not in ("train/global_step", "train/epoch")
            }

        yield Service("wandb", {"mode": "online", "project": "p", "dir": str(folder)}, points)


@contextlib.contextmanager
def tensorboard_in_a_folder(folder: Path) -> Iterator[Service]:
    yield Service("tensorboard", {"dir": str(folder)}, lambda: tensorboard_points(folder))


@contextlib.contextmanager
def trackio_in_a_folder(folder: Path) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as world:
        world.setenv("TRACKIO_DIR", str(folder))
        yield Service("trackio", {}, lambda: trackio_points(folder / "fmstune.db"))


@contextlib.contextmanager
def trackio_behind_a_server(folder: Path) -> Iterator[Service]:
    port = free_port()
    with trackio_server(folder, port), pytest.MonkeyPatch.context() as world:
        world.setenv("TRACKIO_WRITE_TOKEN", TOKEN)
        options = {"server_url": f"http://127.0.0.1:{port}"}
        yield Service("trackio", options, lambda: trackio_points(folder / "fmstune.db"))


@contextlib.contextmanager
def comet_online(folder: Path) -> Iterator[Service]:
    with CometCloud() as cloud, pytest.MonkeyPatch.context() as world:
        world.setenv("COMET_URL_OVERRIDE", cloud.url)
        world.setenv("COMET_API_KEY", cloud.key)
        yield Service("comet", {"mode": "online"}, lambda: comet_points(cloud.run.read()))


@contextlib.contextmanager
def clearml_online(folder: Path) -> Iterator[Service]:
    with ClearmlCloud() as cloud, pytest.MonkeyPatch.context() as world:
        for name, value in cloud.environment.items():
            world.setenv(name, value)

        def points() -> Points:
            (task,) = cloud.tasks
            return clearml_points(cloud.events(task))

        yield Service("clearml", {}, points)


@contextlib.contextmanager
def dvclive_in_a_folder(folder: Path) -> Iterator[Service]:
    yield Service("dvclive", {"dir": f"{folder}/{{run}}"}, lambda: dvclive_points(folder))


@contextlib.contextmanager
def swanlab_in_a_folder(folder: Path) -> Iterator[Service]:
    options = {"mode": "offline", "dir": str(folder)}
    yield Service("swanlab", options, lambda: swanlab_points(swanlab_scalars(folder)))


@contextlib.contextmanager
def swanlab_online(folder: Path) -> Iterator[Service]:
    with SwanLabCloud() as cloud, pytest.MonkeyPatch.context() as world:
        for name, value in cloud.environment.items():
            world.setenv(name, value)

        def points() -> Points:
            (run,) = cloud.runs.values()
            return swanlab_points(run.scalars)

        yield Service("swanlab", {}, points)


SERVICES: dict[str, Callable[[Path], AbstractContextManager[Service]]] = {
    "aim in a folder": aim_in_a_folder,
    "aim behind a server": aim_behind_a_server,
    "mlflow behind a server": mlflow_behind_a_server,
    "wandb online": wandb_online,
    "tensorboard in a folder": tensorboard_in_a_folder,
    "dvclive in a folder": dvclive_in_a_folder,
    "comet online": comet_online,
    "clearml online": clearml_online,
    "trackio in a folder": trackio_in_a_folder,
    "swanlab in a folder": swanlab_in_a_folder,
    "swanlab online": swanlab_online,
    "trackio behind a server": trackio_behind_a_server,
}


@pytest.mark.parametrize("service", SERVICES)
def test_the_next_process_opens_the_existing_run_and_creates_no_second_one(
    service: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", {1: 2.0, 2: 1.5, 3: 1.25})
    with SERVICES[service](tmp_path / "service") as found:
        script = tmp_path / "killed.py"
        script.write_text(_KILLED)
        arguments = (str(run), found.tracker, json.dumps(found.options))
        died = fmstune(*arguments, cwd=tmp_path, module=str(script), life=found.tracker)
        assert died.returncode == 9, died.stderr
        (line,) = sync(run, None, {found.tracker: found.options}, reference, check_within=300)
        assert line.state == "complete", line
        there, wanted = found.points(), journal_points(run)
        if found.tracker in ("tensorboard", "clearml"):
            wanted = {key: as_single(value) for key, value in wanted.items()}
        assert there == wanted
