"""Scenarios of local storage: disks that are full or fill up, and a writer that is killed."""

from __future__ import annotations

import contextlib
import functools
import json
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
from tests.support.no_room import NoRoom
from tests.support.scene import Scene
from tests.support.warm_shippers import around


@contextlib.contextmanager
def comet_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """A Comet archive that can no longer grow."""
    place = folder / "archives"

    def strike() -> None:
        disk.fill(50)

    def points() -> Points:
        from tests.support.comet_archives import archives

        return comet_points(point for archive in archives(place) for point in archive.points())

    with NoRoom(name) as disk:
        options = {"mode": "offline", "dir": str(place)}
        yield Scene(name, options, points, strike, heal=disk.free)


@contextlib.contextmanager
def swanlab_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """SwanLab's file of an offline run, which can no longer grow in the middle of a record."""
    place = folder / "swanlog"

    def strike() -> None:
        disk.fill(50)

    with NoRoom(name) as disk:
        options = {"mode": "offline", "dir": str(place)}
        points = functools.partial(_swanlab_points_in, place)
        yield Scene(name, options, points, strike, heal=disk.free)


@contextlib.contextmanager
def full_disk(folder: Path, name: str) -> Iterator[Scene]:
    """The tracker `file` on a device without space; fixed by choosing another file."""
    full, moved = folder / "full", folder / "moved.jsonl"
    full.symlink_to("/dev/full")
    yield Scene(name, {"path": str(full)}, lambda: file_points(moved), options_when_well={"path": str(moved)})


@contextlib.contextmanager
def file_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """The tracker `file`, whose file can no longer grow in the middle of a line."""
    path = folder / "metrics.jsonl"

    def strike() -> None:
        disk.fill(path.stat().st_size + 50)

    with NoRoom(name) as disk:
        yield Scene(name, {"path": str(path)}, lambda: file_points(path), strike, heal=disk.free)


@contextlib.contextmanager
def aim_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """Aim's local repository, in which no file can grow any more."""
    repository = folder / "repository"
    shutil.copytree(empty_repository(), repository)

    with NoRoom(name) as disk:

        def strike() -> None:
            disk.fill(2048)

        yield Scene(name, {"repo": str(repository)}, lambda: aim_points(repository), strike, heal=disk.free)


@contextlib.contextmanager
def tensorboard_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """Event files that end in the middle of a record."""
    logs = folder / "logs"

    def strike() -> None:
        disk.fill(50)  # each process starts a file, and gets no further than this

    with NoRoom(name) as disk:
        points = functools.partial(tensorboard_points, logs)
        yield Scene(name, {"dir": str(logs)}, points, strike, heal=disk.free)


@contextlib.contextmanager
def dvclive_on_a_disk_that_fills(folder: Path, name: str) -> Iterator[Scene]:
    """A DVCLive folder in which no file can grow any more."""
    place = folder / "dvclive"

    def strike() -> None:
        disk.fill(50)

    with NoRoom(name) as disk:
        points = functools.partial(dvclive_points, place)
        yield Scene(name, {"dir": f"{place}/{{run}}"}, points, strike, heal=disk.free)


@contextlib.contextmanager
def tensorboard_whose_shipper_is_killed(folder: Path, name: str) -> Iterator[Scene]:
    """Event files whose writer is killed repeatedly from a step on."""
    logs, healed = folder / "logs", threading.Event()

    def kill() -> None:
        while not healed.wait(0.05):
            with contextlib.suppress(psutil.Error):  # a process that ends meanwhile
                for child in psutil.Process(around[name].pid).children():
                    child.kill()

    killer = threading.Thread(target=kill, daemon=True)

    def heal() -> None:
        healed.set()
        killer.join()

    points = functools.partial(tensorboard_points, logs)
    yield Scene(name, {"dir": str(logs)}, points, killer.start, heal=heal)


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
