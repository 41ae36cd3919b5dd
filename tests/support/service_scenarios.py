"""Scenarios of services: servers and clouds that are down, refuse requests, stop or die."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from tests.support.aim_servers import aim_server, free_port
from tests.support.clearml_cloud import ClearmlCloud
from tests.support.comet_cloud import CometCloud
from tests.support.end_to_end import (
    Points,
    aim_points,
    clearml_points,
    comet_points,
    mlflow_points,
    swanlab_points,
    trackio_points,
)
from tests.support.mlflow_servers import mlflow_server
from tests.support.scenario import STEP, Scenario, StartScenario, nothing
from tests.support.swanlab_cloud import SwanLabCloud
from tests.support.trackio_servers import TOKEN, trackio_server
from tests.support.wandb_cloud import Answer, WandbCloud


def aim(what: str, at_step: int = STEP) -> StartScenario:
    """A real `aim server` that is down or does not answer at the start, or is killed or stopped after a
    step."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        port, repository = free_port(), folder / "remote"
        with contextlib.ExitStack() as servers:
            server = None
            if what == "silent":
                hole = servers.enter_context(socket.create_server(("127.0.0.1", port)))
            elif what != "refused":
                server = servers.enter_context(aim_server(repository, port))

            def end(signum: int) -> Callable[[], None]:
                assert server is not None
                group = server.pid
                return lambda: os.killpg(group, signum)

            def start_again() -> None:
                if what == "silent":
                    hole.close()
                servers.enter_context(aim_server(repository, port))

            options = {"repo": f"aim://127.0.0.1:{port}"}
            points = functools.partial(aim_points, repository, reindex=True)
            scenario = Scenario(name, options, points, at_step=at_step, recover=start_again)
            if what == "killed":
                scenario.inject = end(signal.SIGKILL)
            elif what == "stopped":
                scenario.inject, scenario.recover = end(signal.SIGSTOP), end(signal.SIGCONT)
            yield scenario

    return start


def mlflow(what: str, at_step: int = STEP) -> StartScenario:
    """A real `mlflow server` that is down at the start, or is killed after a step."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(mlflow_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(mlflow_server(home, port))

            scenario = Scenario(
                name, {"tracking_uri": f"http://127.0.0.1:{port}"},
                functools.partial(mlflow_points, home / "mlflow.db"), at_step=at_step, recover=start,
            )  # fmt: skip
            if server is not None:
                scenario.inject = kill
            yield scenario

    return start


def trackio(what: str) -> StartScenario:
    """A real trackio server that is down at the start, or is killed after a step."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(trackio_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(trackio_server(home, port))

            scenario = Scenario(
                name, {"server_url": f"http://127.0.0.1:{port}"},
                functools.partial(trackio_points, home / "fmstune.db"), recover=start,
                environment={"TRACKIO_WRITE_TOKEN": TOKEN},
            )  # fmt: skip
            if server is not None:
                scenario.inject = kill
            yield scenario

    return start


def wandb(answer: Answer | Literal["refused"], at_step: int) -> StartScenario:
    """W&B's real SDK against a cloud that gives this answer from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        with WandbCloud() as cloud:
            cloud.delay = 0.8  # opening a run takes five or more requests

            def inject() -> None:
                if answer == "refused":
                    cloud.hang_up()
                else:
                    cloud.answer = answer

            def recover() -> None:
                cloud.answer = "ok"
                if answer == "refused":
                    cloud.listen()

            def points() -> Points:
                (run,) = cloud.runs.values()
                assert len(run.steps) == len(set(run.steps)), "a row arrived twice"
                return {
                    (key.rpartition("/")[0], key.rpartition("/")[2], row.get("train/global_step", 0)): value
                    for row in run.history
                    for key, value in row.items()
                    if not key.startswith("_") and key not in ("train/global_step", "train/epoch")
                }

            if at_step == 0:
                inject()
            yield Scenario(
                name,
                {"mode": "online", "project": "faults", "dir": str(folder)},
                points,
                inject,
                at_step,
                recover,
                {"WANDB_BASE_URL": cloud.url, "WANDB_API_KEY": cloud.key, "WANDB_INIT_TIMEOUT": "3"},
                started=lambda: cloud.runs,
            )

    return start


def comet(answer: int | Literal["refused"], at_step: int) -> StartScenario:
    """Comet's tracker against a server that gives this answer from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        with CometCloud() as cloud:

            def inject() -> None:
                if answer == "refused":
                    cloud.hang_up()
                else:
                    cloud.answer = answer

            def recover() -> None:
                cloud.answer = "ok"
                if answer == "refused":
                    cloud.listen()

            if at_step == 0:
                inject()
            yield Scenario(
                name, {"mode": "online", "project": "faults"}, lambda: comet_points(cloud.run.read()),
                inject, at_step, recover, {"COMET_URL_OVERRIDE": cloud.url, "COMET_API_KEY": cloud.key},
                started=lambda: cloud.experiments,
            )  # fmt: skip

    return start


def swanlab(at_step: int) -> StartScenario:
    """SwanLab's cloud, which refuses connections from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        with SwanLabCloud() as cloud:

            def points() -> Points:
                (run,) = cloud.runs.values()
                return swanlab_points(run.scalars)

            if at_step == 0:
                cloud.hang_up()
            inject = nothing if at_step == 0 else cloud.hang_up
            environment = cloud.environment
            yield Scenario(
                name, {}, points, inject, at_step, cloud.listen, environment, started=lambda: cloud.runs
            )

    return start


def clearml(answer: int, at_step: int) -> StartScenario:
    """ClearML's tracker against a server that gives this answer from a step on."""

    @contextlib.contextmanager
    def start(folder: Path, name: str) -> Iterator[Scenario]:
        with ClearmlCloud() as cloud:

            def inject() -> None:
                cloud.answer = answer

            def recover() -> None:
                cloud.answer = "ok"

            def points() -> Points:
                (task,) = cloud.tasks
                return clearml_points(cloud.events(task))

            yield Scenario(
                name, {"project": "faults"}, points, inject, at_step, recover, cloud.environment,
                started=lambda: cloud.tasks,
            )  # fmt: skip

    return start
