"""What libraries warn of during a run: all of it is in its log, and what a user can act on is shown as well.

That is what is logged as a warning or worse, and Python's warnings, each once, and not those about code that
will have to change, which is the libraries' own.
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

_MOST = 10
"""So many are shown; the others are in the log."""
_LONGEST = 300
_OF_DEVELOPERS = (
    DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning,
    SyntaxWarning, BytesWarning,
)  # fmt: skip
_PACKAGES = ("site-packages", "dist-packages")


@contextlib.contextmanager
def noticed(show: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Have `show` get those of this process, within the block; what it yields has it get the number of the
    others, now and not at the end of the block."""
    notices = _Notices(show)
    make, warn = logging.getLogRecordFactory(), warnings.showwarning

    def record(*arguments: object, **named: object) -> logging.LogRecord:
        made: logging.LogRecord = make(*arguments, **named)
        notices.logged(made)
        return made

    def warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        warn(message, category, filename, lineno, file, line)
        if file is None:
            notices.warned(str(message), category, filename, lineno)

    logging.setLogRecordFactory(record)
    warnings.showwarning = warning
    try:
        yield notices.over
    finally:
        if logging.getLogRecordFactory() is record:  # else somebody has set one since, which calls it
            logging.setLogRecordFactory(make)
        if warnings.showwarning is warning:
            warnings.showwarning = warn
        notices.over()


class _Notices:
    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._process = show, os.getpid()
        self._seen: set[tuple[str, str]] = set()
        self._more = 0
        self._showing = threading.local()

    def logged(self, record: logging.LogRecord) -> None:
        """A library logs something."""
        if record.levelno < logging.WARNING or record.name == "py.warnings":
            return
        try:
            text = record.getMessage()
        except Exception:  # a format that does not fit, of which logging itself prints a traceback
            text = str(record.msg)
        self._notice(record.name.partition(".")[0], str(record.msg), text)

    def warned(self, text: str, category: type[Warning], filename: str, line: int) -> None:
        """Python warns of something."""
        if not issubclass(category, _OF_DEVELOPERS):
            self._notice(_place(filename, line), text, text)

    def over(self) -> None:
        """Say how many were not shown."""
        if self._more and os.getpid() == self._process:
            more, self._more = self._more, 0
            self._show(f"{more} more of such warnings are in the log")

    def _notice(self, source: str, kind: str, text: str) -> None:
        # In a child that was forked, the screen is its parent's; and what showing it logs is not shown.
        if os.getpid() != self._process or getattr(self._showing, "now", False) or sys.is_finalizing():
            return
        if "deprecated" in text.lower() or (source, kind) in self._seen:
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
    """`torch`, or a user's own `callbacks.py:12`."""
    parts = Path(filename).parts
    for at, part in enumerate(parts[:-1]):
        if part in _PACKAGES:
            return parts[at + 1].partition(".")[0]
    return f"{parts[-1] if parts else filename}:{line}"
