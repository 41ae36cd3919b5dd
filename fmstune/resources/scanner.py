"""The scanner of a run: a thread beside the training that only reads figures and records them."""

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
"""How long the end of a run waits for the last sample: a file system that is away can hold it for ever."""


@contextlib.contextmanager
def scanned(
    record: Callable[[Figures], None], interval: float, folder: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Sample the machine every `interval` seconds, at the begin of the block and at its end; never, with 0.

    `record` gets each sample, in the scanner's own thread; `say` gets a sentence for what can't be read.
    `folder` is on the file system whose free room is sampled.
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
    """Records what `sources` give, every `interval` seconds."""

    def __init__(self, sources: Sources, record: Callable[[Figures], None], interval: float) -> None:
        self._sources, self._record, self._interval = sources, record, interval
        self._ending = threading.Event()
        self._over = False
        self._process = os.getpid()
        # A daemon: one that hangs in a call of the kernel's must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="fmstune-resources", daemon=True)

    def start(self) -> None:
        """Begin with a first sample."""
        self._thread.start()

    def stop(self) -> None:
        """End with a last sample. A child that was forked has no such thread, and nothing to record."""
        if os.getpid() != self._process:
            return
        self._ending.set()
        try:
            self._thread.join(_LAST_SECONDS)
        finally:
            self._over = True  # a sample that comes too late is not recorded behind the run's status

    def _run(self) -> None:
        while True:
            last = self._ending.is_set()
            figures = self._sources.read()
            if figures and not self._over:
                self._record(figures)
            if last:
                return
            self._ending.wait(self._interval)
