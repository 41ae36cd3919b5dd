"""Trackers as a user might write them: real classes, run in real shipper processes.

`Collector` appends each call that it receives to a file, one JSON line per call. Its options `fault` and `at`
make a hook misbehave the way SDKs do.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Check, MetricPoint, RunStart, Status, TrackerRun


@dataclass(frozen=True)
class CollectorOptions:
    """`fault` occurs in the hook `at`: if `until` is a path, only while that file does not exist; with
    `from_step` or `only_step`, only at points from that step on, or of that step."""

    path: str = "collected.jsonl"
    fault: str = ""
    at: str = "track"
    until: str = ""
    from_step: int = 0
    only_step: int = 0
    api_key: str = ""


LEAKED: list[bytes] = []


class Collector(Tracker):
    """Writes every call as a line of `path`."""

    registered_name = "collector"
    description = "collects what it is told"
    Config = CollectorOptions
    config: CollectorOptions

    def open(self, start: RunStart) -> TrackerRun:
        self._misbehave("open")
        run_id = start.tracker_run_id or f"run-{time.time_ns()}"
        self._write({"call": "open", "id": run_id, "again": start.tracker_run_id is not None})
        return TrackerRun(run_id, f"file://{self.config.path}")

    def track_point(self, point: MetricPoint) -> None:
        step, only = point.step or 0, self.config.only_step
        if step >= self.config.from_step and (not only or step == only):
            self._misbehave("track")
        self._write({"call": "track", "stage": point.stage, "step": point.step, "values": dict(point.values)})

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self._misbehave("set_params")
        self._write({"call": "set_params", "name": name, "values": dict(params or {})})

    def close(self, status: Status, error: str | None = None) -> None:
        self._misbehave("close")
        self._write({"call": "close", "status": status, "error": error})

    def check(self, timeout: float) -> Check:
        self._misbehave("check")
        return Check("ok", "collects")

    def _write(self, record: Mapping[str, Any]) -> None:
        with Path(self.config.path).open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "seq": self.seq, **record}) + "\n")

    def _misbehave(self, hook: str) -> None:
        fault, until = self.config.fault, self.config.until
        if hook != self.config.at or (until and Path(until).exists()):
            return
        if fault == "raise":
            raise RuntimeError("the service is on fire")
        if fault == "fail_twice":
            with Path(self.config.path + ".failures").open("a") as failures:
                if failures.tell() < 2:
                    failures.write(".")
                    raise ConnectionResetError("connection reset")
            Path(self.config.path + ".works").touch()
        if fault == "unreachable":
            raise ConnectionRefusedError(111, "Connection refused")
        if fault == "hang":
            while True:
                time.sleep(3600)
        if fault == "wait":
            while not Path(until).exists():
                time.sleep(0.01)
        if fault == "hang_in_c":  # holding the GIL, so that no other Python thread runs
            ctypes.PyDLL(None).sleep(3600)
        if fault == "daemon":
            _start_daemon(Path(self.config.path + ".daemons"))
        if fault == "leak":
            LEAKED.append(b"x" * 50_000_000)
        if fault == "slow":
            time.sleep(0.2)
        if fault == "exit":
            sys.exit("tracker says good-bye")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.startswith("os_exit"):
            os._exit(int(fault.removeprefix("os_exit") or 0))
        if fault == "segv":
            ctypes.string_at(0)
        if fault == "print_key":
            print(f"the key is {self.config.api_key}")
            os.write(2, b"native output\n")


def _start_daemon(pids: Path) -> None:
    """Start a process outside this session, as daemons of SDKs do."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            with pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(3600)
        os._exit(0)
    os.waitpid(child, 0)


class InOrder(Collector):
    """A service that drops rows that arrive out of order, as W&B does."""

    takes_late = False


class OldShape:
    """A tracker with the old interface: no base class, and a `track` with exactly three arguments."""

    def __init__(self, name: Any = None, tracker_config: Any = None) -> None:
        self.path = Path((tracker_config or {}).get("path", "old.jsonl"))

    def track(self, metric: Any, name: str, stage: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([metric, name, stage]) + "\n")


class NotATracker:
    """Has no `track`."""


def collected(path: Path) -> list[dict[str, Any]]:
    """The calls that a `Collector` received."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
