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
from tests.support.scene import STEP, Play, Scene, nothing
from tests.support.swanlab_cloud import SwanLabCloud
from tests.support.trackio_servers import TOKEN, trackio_server
from tests.support.wandb_cloud import Answer, WandbCloud


def aim(what: str, at_step: int = STEP) -> Play:
    """A real `aim server` that is down or does not answer at the start, or is killed or stopped after a
    step."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
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
            scene = Scene(name, options, points, at_step=at_step, heal=start_again)
            if what == "killed":
                scene.strike = end(signal.SIGKILL)
            elif what == "stopped":
                scene.strike, scene.heal = end(signal.SIGSTOP), end(signal.SIGCONT)
            yield scene

    return play


def mlflow(what: str, at_step: int = STEP) -> Play:
    """A real `mlflow server` that is down at the start, or is killed after a step."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(mlflow_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(mlflow_server(home, port))

            scene = Scene(
                name, {"tracking_uri": f"http://127.0.0.1:{port}"},
                functools.partial(mlflow_points, home / "mlflow.db"), at_step=at_step, heal=start,
            )  # fmt: skip
            if server is not None:
                scene.strike = kill
            yield scene

    return play


def trackio(what: str) -> Play:
    """A real trackio server that is down at the start, or is killed after a step."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(trackio_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(trackio_server(home, port))

            scene = Scene(
                name, {"server_url": f"http://127.0.0.1:{port}"},
                functools.partial(trackio_points, home / "fmstune.db"), heal=start,
                environment={"TRACKIO_WRITE_TOKEN": TOKEN},
            )  # fmt: skip
            if server is not None:
                scene.strike = kill
            yield scene

    return play


def wandb(answer: Answer | Literal["refused"], at_step: int) -> Play:
    """W&B's real SDK against a cloud that gives this answer from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        with WandbCloud() as cloud:
            cloud.delay = 0.8  # opening a run takes five or more requests

            def strike() -> None:
                if answer == "refused":
                    cloud.hang_up()
                else:
                    cloud.answer = answer

            def heal() -> None:
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
                strike()
            yield Scene(
                name,
                {"mode": "online", "project": "faults", "dir": str(folder)},
                points,
                strike,
                at_step,
                heal,
                {"WANDB_BASE_URL": cloud.url, "WANDB_API_KEY": cloud.key, "WANDB_INIT_TIMEOUT": "3"},
                begun=lambda: cloud.runs,
            )

    return play


def comet(answer: int | Literal["refused"], at_step: int) -> Play:
    """Comet's tracker against a server that gives this answer from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        with CometCloud() as cloud:

            def strike() -> None:
                if answer == "refused":
                    cloud.hang_up()
                else:
                    cloud.answer = answer

            def heal() -> None:
                cloud.answer = "ok"
                if answer == "refused":
                    cloud.listen()

            if at_step == 0:
                strike()
            yield Scene(
                name, {"mode": "online", "project": "faults"}, lambda: comet_points(cloud.run.read()),
                strike, at_step, heal, {"COMET_URL_OVERRIDE": cloud.url, "COMET_API_KEY": cloud.key},
                begun=lambda: cloud.experiments,
            )  # fmt: skip

    return play


def swanlab(at_step: int) -> Play:
    """SwanLab's cloud, which refuses connections from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        with SwanLabCloud() as cloud:

            def points() -> Points:
                (run,) = cloud.runs.values()
                return swanlab_points(run.scalars)

            if at_step == 0:
                cloud.hang_up()
            strike = nothing if at_step == 0 else cloud.hang_up
            environment = cloud.environment
            yield Scene(
                name, {}, points, strike, at_step, cloud.listen, environment, begun=lambda: cloud.runs
            )

    return play


def clearml(answer: int, at_step: int) -> Play:
    """ClearML's tracker against a server that gives this answer from a step on."""

    @contextlib.contextmanager
    def play(folder: Path, name: str) -> Iterator[Scene]:
        with ClearmlCloud() as cloud:

            def strike() -> None:
                cloud.answer = answer

            def heal() -> None:
                cloud.answer = "ok"

            def points() -> Points:
                (task,) = cloud.tasks
                return clearml_points(cloud.events(task))

            yield Scene(
                name, {"project": "faults"}, points, strike, at_step, heal, cloud.environment,
                begun=lambda: cloud.tasks,
            )  # fmt: skip

    return play
