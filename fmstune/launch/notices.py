"""Show libraries' warnings during a run: all are in its log; those that a user can act on are shown, too.

Shown are log records of level WARNING or above, and Python's warnings, each once, except those about
deprecated code, which is the libraries' own, and a few of no use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from fmstune.text import counted

_MOST = 10
"""The maximum number to show; the others are in the log."""
_LONGEST = 300
_OF_DEVELOPERS = (
    DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning,
    SyntaxWarning, BytesWarning,
)  # fmt: skip
_NOT_OF_USE = (
    # Of processes on GPUs: accelerate has chosen the device already.
    "barrier(): using the device under current context.",
    # Of PEFT 0.21 about its own entries, for experts whose gate and up projection are one parameter: it
    # compares them with the names of modules, not of parameters, but uses them. fmstune sets none.
    "The following rank_pattern keys did not match any targeted module",
    "The following alpha_pattern keys did not match any targeted module",
    # Of PEFT about the linear layers of GPT-2, whose weights are transposed: it does the right thing.
    "fan_in_fan_out is set to False but the target module is `Conv1D`",
)
"""The beginnings of messages about which no setting of a run can do anything."""
_PACKAGES = ("site-packages", "dist-packages")


@contextlib.contextmanager
def warnings_shown(show: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Pass this process's warnings to `show` within the block. Yields a function that passes it the number of
    those left out; otherwise that happens when the block ends."""
    notices = _Notices(show)
    make, warn = logging.getLogRecordFactory(), warnings.showwarning

    def record(*arguments: object, **named: object) -> logging.LogRecord:
        made: logging.LogRecord = make(*arguments, **named)
        notices.on_record(made)
        return made

    def warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        warn(message, category, filename, lineno, file, line)
        if file is None:
            notices.on_warning(str(message), category, filename, lineno)

    logging.setLogRecordFactory(record)
    warnings.showwarning = warning
    try:
        yield notices.finish
    finally:
        if logging.getLogRecordFactory() is record:  # else another one was set since, which calls it
            logging.setLogRecordFactory(make)
        if warnings.showwarning is warning:
            warnings.showwarning = warn
        notices.finish()


class _Notices:
    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._process = show, os.getpid()
        self._seen: set[tuple[str, str]] = set()
        self._more = 0
        self._showing = threading.local()

    def on_record(self, record: logging.LogRecord) -> None:
        """Handle a log record of a library."""
        if record.levelno < logging.WARNING or record.name == "py.warnings":
            return
        try:
            text = record.getMessage()
        except Exception:  # a wrong format string, for which logging itself prints a traceback
            text = str(record.msg)
        self._notice(record.name.partition(".")[0], str(record.msg), text)

    def on_warning(self, text: str, category: type[Warning], filename: str, line: int) -> None:
        """Handle a Python warning."""
        if not issubclass(category, _OF_DEVELOPERS):
            self._notice(_place(filename, line), text, text)

    def finish(self) -> None:
        """Show the number of warnings that were left out."""
        if self._more and os.getpid() == self._process:
            more, self._more = self._more, 0
            self._show(f"{counted(more, 'more warning')} in the log")

    def _notice(self, source: str, kind: str, text: str) -> None:
        # A forked child leaves the screen to its parent. Records logged while showing one are not shown.
        if os.getpid() != self._process or getattr(self._showing, "now", False) or sys.is_finalizing():
            return
        if "deprecated" in text.lower() or text.startswith(_NOT_OF_USE) or (source, kind) in self._seen:
            return
        self._seen.add((source, kind))
        if len(self._seen) > _MOST:
            self._more += 1
            return
        said = " ".join(text.split())
        self._showing.now = True
        try:
            self._show(f"{source}: {said if len(said) <= _LONGEST else f'{said[:_LONGEST]}…'}")
        finally:
            self._showing.now = False


def _place(filename: str, line: int) -> str:
    """The origin of a warning: `torch`, or the user's own `callbacks.py:12`."""
    parts = Path(filename).parts
    for at, part in enumerate(parts[:-1]):
        if part in _PACKAGES:
            return parts[at + 1].partition(".")[0]
    return f"{parts[-1] if parts else filename}:{line}"
