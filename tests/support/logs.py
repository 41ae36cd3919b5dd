"""What a test logs: `caplog`, and the section of a failed test's report.

pytest's own plugin adds two handlers to each logger that does not propagate, and removes them, in each phase
of each test. torch, transformers and the trackers' SDKs have sixty of these among 900 loggers: two
milliseconds of CPU a test, and few tests read a log. Here the root logger has one handler, and those sixty
get another in the tests that ask for `caplog`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_FORMAT = logging.Formatter("%(levelname)-8s %(name)s:%(filename)s:%(lineno)d %(message)s")


class Logs(logging.Handler):
    """The records that were logged, with the names of pytest's `LogCaptureFixture`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        record.getMessage()  # what cannot be formatted fails where it is logged
        self.records.append(record)

    def clear(self) -> None:
        """Forget the records."""
        self.records.clear()

    @property
    def messages(self) -> list[str]:
        """The message of each record."""
        return [record.getMessage() for record in self.records]

    @property
    def record_tuples(self) -> list[tuple[str, int, str]]:
        """Logger, level and message of each record."""
        return [(record.name, record.levelno, record.getMessage()) for record in self.records]

    @property
    def text(self) -> str:
        """All records as they are printed, one a line, with the tracebacks of errors."""
        return "".join(f"{_FORMAT.format(record)}\n" for record in self.records)


LOGS = Logs()
"""The handler of the root logger: of the test that runs."""


def begin() -> None:
    """Collect what a new test logs, also after one that has removed the root logger's handlers."""
    LOGS.clear()
    logging.root.addHandler(LOGS)


@contextlib.contextmanager
def captured() -> Iterator[Logs]:
    """Have what is logged from here on, also to loggers that do not propagate."""
    logs = Logs()
    loggers = [
        each
        for each in [logging.root, *logging.root.manager.loggerDict.values()]
        if isinstance(each, logging.Logger) and (each is logging.root or not each.propagate)
    ]
    for each in loggers:
        each.addHandler(logs)
    try:
        yield logs
    finally:
        for each in loggers:
            each.removeHandler(logs)
