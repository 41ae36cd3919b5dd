"""Faults of real trackers and servers, as scenes: what happens, how it is mended, and what arrived."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from fmstune.delivery.report import report
from fmstune.testing.compare import as_single
from tests.sample_trackers import collected
from tests.support.aim_servers import aim_server, empty_repository, free_port
from tests.support.clearml_cloud import ClearmlCloud
from tests.support.comet_cloud import CometCloud
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
from tests.support.mlflow_servers import mlflow_server
from tests.support.no_room import NoRoom
from tests.support.swanlab_cloud import SwanLabCloud
from tests.support.trackio_servers import TOKEN, trackio_server
from tests.support.waiting import wait_for
from tests.support.wandb_cloud import Answer, WandbCloud

COLLECTOR = "tests.sample_trackers:Collector"
BAD_IMPORT = "tests.bad_import:Collector"
STEP, LAST = 4, 12
"""The optimizer step at which what happens in mid-run happens, and the last one."""


def nothing() -> None:
    """What happens in a scene in which nothing has to be done."""


@dataclass
class Scene:
    """A tracker with its options and a service in trouble. `strike` is called after step `at_step`;
    `heal` ends the trouble; `points` are those that the service holds in the end."""

    tracker: str
    options: Mapping[str, Any]
    points: Callable[[], Points]
    strike: Callable[[], None] = nothing
    at_step: int = STEP
    heal: Callable[[], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    options_when_well: Mapping[str, Any] = field(default_factory=dict)

    def expected(self, directory: Path) -> Points:
        """The points of the run's journal, as the service can hold them."""
        points = journal_points(directory)
        single = self.tracker in ("tensorboard", "clearml")
        return {key: as_single(value) for key, value in points.items()} if single else points


Play = Callable[[Path], AbstractContextManager[Scene]]


def plugin(fault: str, at: str) -> Play:
    """Somebody's tracker that misbehaves in its own process."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        well, path = folder / "well", folder / "collected"
        options = {"path": str(path), "fault": fault, "at": at, "until": str(well)}

        def points() -> Points:
            calls = [call for call in collected(path) if call["call"] == "track"]
            return {
                (call["stage"], name, call["step"] or 0): value
                for call in calls
                for name, value in call["values"].items()
            }

        if at == "import":
            environment = {"BAD_IMPORT": f"{fault} {well}"}
            yield Scene(BAD_IMPORT, options, points, heal=well.touch, environment=environment)
        else:
            yield Scene(COLLECTOR, options, points, heal=well.touch)

    return play


@contextlib.contextmanager
def leaking_plugin(folder: Path) -> Iterator[Scene]:
    """Somebody's tracker that keeps 50 MB at each call, with a limit that the demo's few calls reach."""
    with pytest.MonkeyPatch.context() as limits, plugin("leak", "track")(folder) as scene:
        limits.setattr("fmstune.delivery.shippers._MOST_MEMORY", 300_000_000)
        limits.setattr("fmstune.delivery.shippers._LOOK_SECONDS", 0.1)
        yield scene


def aim(what: str, at_step: int = STEP) -> Play:
    """A real `aim server` that is not there or does not answer at the start, or is killed or stopped after
    a step."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
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
            scene = Scene("aim", options, points, at_step=at_step, heal=start_again)
            if what == "killed":
                scene.strike = end(signal.SIGKILL)
            elif what == "stopped":
                scene.strike, scene.heal = end(signal.SIGSTOP), end(signal.SIGCONT)
            yield scene

    return play


def mlflow(what: str, at_step: int = STEP) -> Play:
    """A real `mlflow server` that is not there at the start, or is killed after a step."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(mlflow_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(mlflow_server(home, port))

            scene = Scene(
                "mlflow", {"tracking_uri": f"http://127.0.0.1:{port}"},
                functools.partial(mlflow_points, home / "mlflow.db"), at_step=at_step, heal=start,
            )  # fmt: skip
            if server is not None:
                scene.strike = kill
            yield scene

    return play


def trackio(what: str) -> Play:
    """A real server of trackio's that is not there at the start, or is killed after a step."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        port, home = free_port(), folder / "server"
        with contextlib.ExitStack() as servers:
            server = None if what == "refused" else servers.enter_context(trackio_server(home, port))

            def kill() -> None:
                assert server is not None
                os.killpg(server.pid, signal.SIGKILL)

            def start() -> None:
                servers.enter_context(trackio_server(home, port))

            scene = Scene(
                "trackio", {"server_url": f"http://127.0.0.1:{port}"},
                functools.partial(trackio_points, home / "fmstune.db"), heal=start,
                environment={"TRACKIO_WRITE_TOKEN": TOKEN},
            )  # fmt: skip
            if server is not None:
                scene.strike = kill
            yield scene

    return play


def wandb(answer: Answer | Literal["refused"], at_step: int) -> Play:
    """W&B's real SDK against a cloud that answers like this from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        with WandbCloud() as cloud:
            cloud.delay = 0.8  # opening a run asks it five times or more

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
                "wandb",
                {"mode": "online", "project": "faults", "dir": str(folder)},
                points,
                strike,
                at_step,
                heal,
                {"WANDB_BASE_URL": cloud.url, "WANDB_API_KEY": cloud.key, "WANDB_INIT_TIMEOUT": "3"},
            )

    return play


def comet(answer: int | Literal["refused"], at_step: int) -> Play:
    """Comet's tracker against a server that answers like this from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
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
                "comet", {"mode": "online", "project": "faults"}, lambda: comet_points(cloud.run.read()),
                strike, at_step, heal, {"COMET_URL_OVERRIDE": cloud.url, "COMET_API_KEY": cloud.key},
            )  # fmt: skip

    return play


def swanlab(at_step: int) -> Play:
    """SwanLab's cloud, which refuses connections from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        with SwanLabCloud() as cloud:

            def points() -> Points:
                (run,) = cloud.runs.values()
                return swanlab_points(run.scalars)

            if at_step == 0:
                cloud.hang_up()
            strike = nothing if at_step == 0 else cloud.hang_up
            environment = cloud.environment
            yield Scene("swanlab", {}, points, strike, at_step, cloud.listen, environment)

    return play


def clearml(answer: int, at_step: int) -> Play:
    """ClearML's tracker against a server that answers like this from a step on."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        with ClearmlCloud() as cloud:

            def strike() -> None:
                cloud.answer = answer

            def heal() -> None:
                cloud.answer = "ok"

            def points() -> Points:
                (task,) = cloud.tasks
                return clearml_points(cloud.events(task))

            yield Scene("clearml", {"project": "faults"}, points, strike, at_step, heal, cloud.environment)

    return play


@contextlib.contextmanager
def comet_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """An archive of Comet's that cannot grow any more."""
    place = folder / "archives"

    def strike() -> None:
        wait_for(lambda: report(Path("out"), ["comet"])[0].delivered)
        disk.fill(50)

    def points() -> Points:
        from tests.support.comet_archives import archives

        return comet_points(point for archive in archives(place) for point in archive.points())

    with NoRoom() as disk:
        options = {"mode": "offline", "dir": str(place)}
        yield Scene("comet", options, points, strike, heal=disk.free)


@contextlib.contextmanager
def swanlab_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """SwanLab's file of an offline run, which cannot grow any more in the middle of a record."""
    place = folder / "swanlog"

    def strike() -> None:
        wait_for(lambda: report(Path("out"), ["swanlab"])[0].delivered)
        disk.fill(50)

    with NoRoom() as disk:
        options = {"mode": "offline", "dir": str(place)}
        points = functools.partial(_swanlab_points_in, place)
        yield Scene("swanlab", options, points, strike, heal=disk.free)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Scene]:
    """The tracker `file` on a device that has no room; mended by choosing another file."""
    full, moved = folder / "full", folder / "moved.jsonl"
    full.symlink_to("/dev/full")
    yield Scene(
        "file", {"path": str(full)}, lambda: file_points(moved), options_when_well={"path": str(moved)}
    )


@contextlib.contextmanager
def file_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """The tracker `file`, whose file cannot grow any more in the middle of a line."""
    path = folder / "metrics.jsonl"

    def strike() -> None:
        wait_for(lambda: report(Path("out"), ["file"])[0].delivered)
        disk.fill(path.stat().st_size + 50)

    with NoRoom() as disk:
        yield Scene("file", {"path": str(path)}, lambda: file_points(path), strike, heal=disk.free)


@contextlib.contextmanager
def aim_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """Aim's local repository, in which no file can grow any more."""
    repository = folder / "repository"
    shutil.copytree(empty_repository(), repository)

    with NoRoom() as disk:

        def strike() -> None:
            # Opening it takes longer than the whole demo.
            wait_for(lambda: report(Path("out"), ["aim"])[0].delivered)
            disk.fill(2048)

        yield Scene("aim", {"repo": str(repository)}, lambda: aim_points(repository), strike, heal=disk.free)


@contextlib.contextmanager
def tensorboard_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """Event files that end in the middle of a record."""
    logs = folder / "logs"

    def strike() -> None:
        wait_for(lambda: report(Path("out"), ["tensorboard"])[0].delivered)
        disk.fill(50)  # each process begins a file, of which it gets so far

    with NoRoom() as disk:
        points = functools.partial(tensorboard_points, logs)
        yield Scene("tensorboard", {"dir": str(logs)}, points, strike, heal=disk.free)


@contextlib.contextmanager
def dvclive_on_a_disk_that_fills(folder: Path) -> Iterator[Scene]:
    """A folder of DVCLive's in which no file can grow any more."""
    place = folder / "dvclive"

    def strike() -> None:
        wait_for(lambda: report(Path("out"), ["dvclive"])[0].delivered)
        disk.fill(50)

    with NoRoom() as disk:
        points = functools.partial(dvclive_points, place)
        yield Scene("dvclive", {"dir": f"{place}/{{run}}"}, points, strike, heal=disk.free)


@contextlib.contextmanager
def tensorboard_whose_shipper_is_killed(folder: Path) -> Iterator[Scene]:
    """Event files whose writer is killed again and again from a step on."""
    logs, before = folder / "logs", set(psutil.Process().children())
    healed = threading.Event()

    def kill() -> None:
        while not healed.wait(0.05):
            for process in set(psutil.Process().children()) - before:
                with contextlib.suppress(psutil.Error):  # one that ends meanwhile
                    for child in process.children():
                        child.kill()

    killer = threading.Thread(target=kill)

    def heal() -> None:
        healed.set()
        killer.join()

    points = functools.partial(tensorboard_points, logs)
    yield Scene("tensorboard", {"dir": str(logs)}, points, killer.start, heal=heal)


def _swanlab_points_in(folder: Path) -> Points:
    return swanlab_points(swanlab_scalars(folder))


def file_points(path: Path) -> Points:
    """The points in a file of the tracker `file`, without a line that was cut off."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return {
        (row["stage"], name, row.get("step", 0)): value
        for row in rows
        if row["kind"] == "metrics"
        for name, value in row["values"].items()
    }


SCENES: dict[str, tuple[str, Play]] = {
    "raises on every call": ("a plug-in", plugin("raise", "track")),
    "raises when it is opened": ("a plug-in", plugin("raise", "open")),
    "raises on params": ("a plug-in", plugin("raise", "set_params")),
    "raises when it is closed": ("a plug-in", plugin("raise", "close")),
    "hangs on import": ("a plug-in", plugin("hang", "import")),
    "hangs in a call": ("a plug-in", plugin("hang", "track")),
    "hangs when it is opened": ("a plug-in", plugin("hang", "open")),
    "hangs when it is closed": ("a plug-in", plugin("hang", "close")),
    "hangs in its check": ("a plug-in", plugin("hang", "check")),
    "is slow (0.2 s per call)": ("a plug-in", plugin("slow", "track")),
    "calls sys.exit": ("a plug-in", plugin("exit", "track")),
    "is killed (SIGKILL)": ("a plug-in", plugin("kill", "track")),
    "crashes (SIGSEGV)": ("a plug-in", plugin("segv", "track")),
    "crashes on import": ("a plug-in", plugin("segv", "import")),
    "leaks 50 MB per call": ("a plug-in", leaking_plugin),
    "server not there at the start": ("aim", aim("refused")),
    "server is a black hole from the start": ("aim", aim("silent")),
    "server killed mid-run": ("aim", aim("killed")),
    "server stops answering mid-run": ("aim", aim("stopped")),
    "server killed at the end": ("aim", aim("killed", LAST)),
    "disk of the repository full mid-run": ("aim", aim_on_a_disk_that_fills),
    "cloud refuses connections from the start": ("wandb", wandb("refused", 0)),
    "cloud is a black hole from the start": ("wandb", wandb("black_hole", 0)),
    "cloud answers 500 from the start": ("wandb", wandb(500, 0)),
    "cloud answers 429 from the start": ("wandb", wandb(429, 0)),
    "cloud is slow (0.8 s per request)": ("wandb", wandb("slow", 0)),
    "cloud refuses connections mid-run": ("wandb", wandb("refused", STEP)),
    "cloud is a black hole mid-run": ("wandb", wandb("black_hole", STEP)),
    "cloud answers 401 mid-run": ("wandb", wandb(401, STEP)),
    "cloud answers 403 mid-run": ("wandb", wandb(403, STEP)),
    "cloud answers 429 mid-run": ("wandb", wandb(429, STEP)),
    "cloud answers 500 mid-run": ("wandb", wandb(500, STEP)),
    "cloud answers 500 at the end": ("wandb", wandb(500, LAST)),
    "server not there from the start": ("mlflow", mlflow("refused")),
    "server killed after some steps": ("mlflow", mlflow("killed")),
    "server killed at its end": ("mlflow", mlflow("killed", LAST)),
    "disk of the folder full mid-run": ("tensorboard", tensorboard_on_a_disk_that_fills),
    "its process killed repeatedly": ("tensorboard", tensorboard_whose_shipper_is_killed),
    "disk full after some steps": ("dvclive", dvclive_on_a_disk_that_fills),
    "Comet's server refuses connections from the start": ("comet", comet("refused", 0)),
    "Comet's server answers 429 mid-run": ("comet", comet(429, STEP)),
    "disk of the archives full mid-run": ("comet", comet_on_a_disk_that_fills),
    "ClearML's server answers 503 mid-run": ("clearml", clearml(503, STEP)),
    "its server is not there from the start": ("trackio", trackio("refused")),
    "its server is killed after some steps": ("trackio", trackio("killed")),
    "its cloud is not there from the start": ("swanlab", swanlab(0)),
    "its cloud refuses connections mid-run": ("swanlab", swanlab(STEP)),
    "no room for its file mid-run": ("swanlab", swanlab_on_a_disk_that_fills),
    "disk full from the start": ("file", full_disk),
    "disk full mid-run": ("file", file_on_a_disk_that_fills),
}
