"""Faults of real trackers and servers, as scenes: what happens, how it is mended, and what arrived."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.end_to_end import Points, aim_points
from tests.sample_trackers import collected
from tests.stand_ins.wandb_cloud import Answer, WandbCloud
from tests.trackers.test_aim_tracker import aim_server, free_port

COLLECTOR = "tests.sample_trackers:Collector"
STEP = 4
"""The optimizer step at which what happens in mid-run happens."""


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

        yield Scene(COLLECTOR, options, points, heal=well.touch)

    return play


def aim(what: str) -> Play:
    """A real `aim server` that is not there at the start, is killed, or is stopped, in mid-run."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        port, repository = free_port(), folder / "remote"
        with contextlib.ExitStack() as servers:
            server = servers.enter_context(aim_server(repository, port)) if what != "refused" else None

            def end(signum: int) -> Callable[[], None]:
                assert server is not None
                group = server.pid
                return lambda: os.killpg(group, signum)

            def start_again() -> None:
                servers.enter_context(aim_server(repository, port))

            def points() -> Points:
                command = [Path(sys.executable).with_name("aim"), "storage", "--repo", str(repository)]
                subprocess.run([*command, "reindex", "-y"], capture_output=True, check=False)
                return aim_points(repository)

            scene = Scene("aim", {"repo": f"aim://127.0.0.1:{port}"}, points, heal=start_again)
            if what == "killed":
                scene.strike = end(signal.SIGKILL)
            elif what == "stopped":
                scene.strike, scene.heal = end(signal.SIGSTOP), end(signal.SIGCONT)
            yield scene

    return play


def wandb(answer: Answer, at_step: int) -> Play:
    """W&B's real SDK against a cloud that answers like this from a step on; step 0 is the start."""

    @contextlib.contextmanager
    def play(folder: Path) -> Iterator[Scene]:
        with WandbCloud() as cloud:

            def strike() -> None:
                cloud.answer = answer

            def heal() -> None:
                cloud.answer = "ok"

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


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Scene]:
    """The tracker `file` on a device that has no room; mended by choosing another file."""
    path = folder / "moved.jsonl"

    def points() -> Points:
        import json

        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {
            (row["stage"], name, row.get("step", 0)): value
            for row in rows
            if row["kind"] == "metrics"
            for name, value in row["values"].items()
        }

    yield Scene("file", {"path": str(folder / "full")}, points, options_when_well={"path": str(path)})


def refused_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SCENES: dict[str, tuple[str, Play]] = {
    "raises in every call": ("a plug-in", plugin("raise", "track")),
    "raises when it is opened": ("a plug-in", plugin("raise", "open")),
    "raises at the params": ("a plug-in", plugin("raise", "set_params")),
    "raises at the end": ("a plug-in", plugin("raise", "close")),
    "hangs in a call for ever": ("a plug-in", plugin("hang", "track")),
    "hangs when it is opened": ("a plug-in", plugin("hang", "open")),
    "hangs at the end": ("a plug-in", plugin("hang", "close")),
    "hangs in its check": ("a plug-in", plugin("hang", "check")),
    "is slow (0.2 s a call)": ("a plug-in", plugin("slow", "track")),
    "calls sys.exit": ("a plug-in", plugin("exit", "track")),
    "is killed (SIGKILL)": ("a plug-in", plugin("kill", "track")),
    "crashes (SIGSEGV)": ("a plug-in", plugin("segv", "track")),
    "server not there at the start": ("aim", aim("refused")),
    "server killed in mid-run": ("aim", aim("killed")),
    "server stops answering in mid-run": ("aim", aim("stopped")),
    "cloud is a black hole from the start": ("wandb", wandb("black_hole", 0)),
    "cloud answers 500 from the start": ("wandb", wandb(500, 0)),
    "cloud is a black hole in mid-run": ("wandb", wandb("black_hole", STEP)),
    "cloud answers 401 in mid-run": ("wandb", wandb(401, STEP)),
    "cloud answers 403 in mid-run": ("wandb", wandb(403, STEP)),
    "cloud answers 429 in mid-run": ("wandb", wandb(429, STEP)),
    "cloud answers 500 in mid-run": ("wandb", wandb(500, STEP)),
    "cloud answers 500 at the end": ("wandb", wandb(500, 12)),
    "disk of the service is full": ("file", full_disk),
}
