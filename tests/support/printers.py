"""Trackers whose SDK prints secrets in every way that a process can print, and then ends in some way."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import RunStart, Status, TrackerRun

SECRETS = ("planted-secret", "hf_abcdefghijklmnopqrstuvwxABCDEFGHIJ", "two-lines-of\na-planted-secret")
SAYS = ("print", "stderr", "native", "child", "split")


class Prints(Tracker):
    """Prints a line in each way when its run is opened."""

    registered_name = "printer"

    def open(self, start: RunStart) -> TrackerRun:
        secret = SECRETS[0]
        print("print:", secret)
        print("stderr:", secret, file=sys.stderr)
        os.write(1, f"native: {secret}\n".encode())
        subprocess.run([sys.executable, "-c", f"print('child:', {secret!r})"], check=True)
        os.write(2, f"split: {secret[:5]}".encode())
        time.sleep(0.05)
        os.write(2, f"{secret[5:]}\n".encode())
        sys.stdout.write("last words")
        self.end()
        return TrackerRun("1")

    def end(self) -> None:
        """What happens after printing."""

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        """Ignores the metric: only the output matters here."""


class PrintsAndDies(Prints):
    """Is killed during the call, after printing an unterminated line."""

    def end(self) -> None:
        os.kill(os.getpid(), 9)


class PrintsAndLeavesADaemon(Prints):
    """Leaves a process behind that keeps the log open and still writes to it."""

    def end(self) -> None:
        subprocess.Popen(["yes", SECRETS[1]], start_new_session=True)
        time.sleep(0.2)


class PrintsWithTheInterpreterHeld(Prints):
    """Holds the GIL when it is killed, so that no thread of its process could read."""

    def end(self) -> None:
        if os.fork() == 0:
            time.sleep(0.3)
            os.kill(os.getppid(), 9)
            os._exit(0)
        ctypes.PyDLL(None).sleep(60)


class ClosesEverything(Prints):
    """Closes all file descriptors that it can find."""

    def end(self) -> None:
        os.closerange(0, 3)


class PrintsMegabytes(Tracker):
    """Prints megabytes at each call, in lines and without line ends."""

    registered_name = "printer"
    track = Prints.track

    def open(self, start: RunStart) -> TrackerRun:
        print("x" * 3_000_000)
        print("y\n" * 300_000, file=sys.stderr)
        os.write(1, b"z" * 1_000_000)
        return TrackerRun("1")

    def close(self, status: Status, error: str | None = None) -> None:
        os.write(2, b"z\n" * 500_000)
