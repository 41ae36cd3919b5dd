"""Scenarios of local storage: disks that are full or fill up, and a writer that is killed."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.aim_servers import empty_repository
from tests.support.end_to_end import (
    Points,
    aim_points,
    comet_points,
    dvclive_points,
    swanlab_points,
    swanlab_scalars,
    tensorboard_points,
)
from tests.support.full_disk import FullDisk
from tests.support.scenario import Scenario
from tests.support.warm_shippers import around


@contextlib.contextmanager
def comet_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """A Comet archive that can no longer grow."""
    place = folder / "archives"

    def inject() -> None:
        disk.fill(50)

    def points() -> Points:
        from tests.support.comet_archives import archives

        return comet_points(point for archive in archives(place) for point in archive.points())

    with FullDisk(name) as disk:
        options = {"mode": "offline", "dir": str(place)}
        yield Scenario(name, options, points, inject, recover=disk.free)


@contextlib.contextmanager
def swanlab_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """SwanLab's file of an offline run, which can no longer grow in the middle of a record."""
    place = folder / "swanlog"

    def inject() -> None:
        disk.fill(50)

    with FullDisk(name) as disk:
        options = {"mode": "offline", "dir": str(place)}
        points = functools.partial(_swanlab_points_in, place)
        yield Scenario(name, options, points, inject, recover=disk.free)


@contextlib.contextmanager
def full_disk(folder: Path, name: str) -> Iterator[Scenario]:
    """The tracker `file` on a device without space; fixed by choosing another file."""
    full, moved = folder / "full", folder / "moved.jsonl"
    full.symlink_to("/dev/full")
    yield Scenario(
        name, {"path": str(full)}, lambda: file_points(moved), options_after_recovery={"path": str(moved)}
    )


@contextlib.contextmanager
def file_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """The tracker `file`, whose file can no longer grow in the middle of a line."""
    path = folder / "metrics.jsonl"

    def inject() -> None:
        disk.fill(path.stat().st_size + 50)

    with FullDisk(name) as disk:
        yield Scenario(name, {"path": str(path)}, lambda: file_points(path), inject, recover=disk.free)


@contextlib.contextmanager
def aim_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """Aim's local repository, in which no file can grow any more."""
    repository = folder / "repository"
    shutil.copytree(empty_repository(), repository)

    with FullDisk(name) as disk:

        def inject() -> None:
            disk.fill(2048)

        yield Scenario(
            name, {"repo": str(repository)}, lambda: aim_points(repository), inject, recover=disk.free
        )


@contextlib.contextmanager
def tensorboard_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """Event files that end in the middle of a record."""
    logs = folder / "logs"

    def inject() -> None:
        disk.fill(50)  # each process starts a file, and gets no further than this

    with FullDisk(name) as disk:
        points = functools.partial(tensorboard_points, logs)
        yield Scenario(name, {"dir": str(logs)}, points, inject, recover=disk.free)


@contextlib.contextmanager
def dvclive_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scenario]:
    """A DVCLive folder in which no file can grow any more."""
    place = folder / "dvclive"

    def inject() -> None:
        disk.fill(50)

    with FullDisk(name) as disk:
        points = functools.partial(dvclive_points, place)
        yield Scenario(name, {"dir": f"{place}/{{run}}"}, points, inject, recover=disk.free)


@contextlib.contextmanager
def tensorboard_whose_shipper_is_killed(folder: Path, name: str) -> Iterator[Scenario]:
    """Event files whose writer is killed repeatedly from a step on."""
    logs, healed = folder / "logs", threading.Event()

    def kill() -> None:
        # At no fixed interval: that could hit the same event each time, which is then the one that kills.
        while not healed.wait(random.uniform(0.05, 0.25)):
            with contextlib.suppress(psutil.Error):  # a process that ends meanwhile
                for child in psutil.Process(around[name].pid).children():
                    child.kill()

    killer = threading.Thread(target=kill, daemon=True)

    def recover() -> None:
        healed.set()
        killer.join()

    points = functools.partial(tensorboard_points, logs)
    yield Scenario(name, {"dir": str(logs)}, points, killer.start, recover=recover)


def _swanlab_points_in(folder: Path) -> Points:
    return swanlab_points(swanlab_scalars(folder))


def file_points(path: Path) -> Points:
    """The points in a file of the tracker `file`, without a truncated line."""
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
