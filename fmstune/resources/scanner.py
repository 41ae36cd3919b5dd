"""The scanner of a run: a background thread that samples the machine and records the metrics."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fmstune.resources.gpus import gpu_sources
from fmstune.resources.machine import Machine
from fmstune.resources.source import Figures, Sources

_LAST_SECONDS = 5.0
"""How long the end of a run waits for the last sample: an unreachable file system can block it forever."""


@contextlib.contextmanager
def scanned(
    record: Callable[[Figures], None], interval: float, folder: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Sample the machine every `interval` seconds, and at the start and end of the block; with 0, never.

    `record` gets each sample, in the scanner's thread; `say` gets a message if a source cannot be read.
    `folder` is on the file system whose free space is sampled.
    """
    if interval <= 0:
        yield
        return
    sources = Sources([*Machine(folder).sources(), *gpu_sources()], say)
    scanner = Scanner(sources, record, interval)
    scanner.start()
    try:
        yield
    finally:
        scanner.stop()


class Scanner:
    """Records samples of `sources` every `interval` seconds."""

    def __init__(self, sources: Sources, record: Callable[[Figures], None], interval: float) -> None:
        self._sources, self._record, self._interval = sources, record, interval
        self._ending = threading.Event()
        self._over = False
        self._process = os.getpid()
        # A daemon: a thread that hangs in a system call must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="fmstune-resources", daemon=True)

    def start(self) -> None:
        """Start, with a first sample."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, with a last sample. A no-op in a forked child, which does not have the thread."""
        if os.getpid() != self._process:
            return
        self._ending.set()
        try:
            self._thread.join(_LAST_SECONDS)
        finally:
            self._over = True  # do not record a late sample after the run's status

    def _run(self) -> None:
        while True:
            last = self._ending.is_set()
            figures = self._sources.read()
            if figures and not self._over:
                self._record(figures)
            if last:
                return
            self._ending.wait(self._interval)
