"""Trackers whose SDK prints secrets, in every way in which a process can print, and then ends in some way."""

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
    """Prints a line by each means when its run is opened."""

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
        """What comes after it."""

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        """Only what is printed counts here."""


class PrintsAndDies(Prints):
    """Is killed within the call, with a line that has no end."""

    def end(self) -> None:
        os.kill(os.getpid(), 9)


class PrintsAndLeavesADaemon(Prints):
    """Leaves a process that keeps the log open, and still writes into it."""

    def end(self) -> None:
        subprocess.Popen(["yes", SECRETS[1]], start_new_session=True)
        time.sleep(0.2)


class PrintsWithTheInterpreterHeld(Prints):
    """Holds the interpreter's lock when it is killed, so that no thread of its process could read."""

    def end(self) -> None:
        if os.fork() == 0:
            time.sleep(0.3)
            os.kill(os.getppid(), 9)
            os._exit(0)
        ctypes.PyDLL(None).sleep(60)


class ClosesEverything(Prints):
    """Closes all descriptors that it can find."""

    def end(self) -> None:
        os.closerange(0, 3)


class PrintsMegabytes(Tracker):
    """Prints some megabytes at each call, in lines and without ends of lines."""

    registered_name = "printer"
    track = Prints.track

    def open(self, start: RunStart) -> TrackerRun:
        print("x" * 3_000_000)
        print("y\n" * 300_000, file=sys.stderr)
        os.write(1, b"z" * 1_000_000)
        return TrackerRun("1")

    def close(self, status: Status, error: str | None = None) -> None:
        os.write(2, b"z\n" * 500_000)
