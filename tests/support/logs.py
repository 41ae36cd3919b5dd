"""The log records of a test: `caplog`, and the log section in a failed test's report.

pytest's own plugin adds two handlers to each logger that does not propagate, and removes them, in each phase
of each test. torch, transformers and the trackers' SDKs have sixty such loggers among 900: two milliseconds
of CPU per test, though few tests read a log. Here the root logger has one handler, and those sixty get
another one in tests that use `caplog`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_FROM_EARLIER_TESTS = "aim.ext.transport.heartbeat"
"""Its thread warns for as long as the process lives, once a server of a test has ended."""
_FORMAT = logging.Formatter("%(levelname)-8s %(name)s:%(filename)s:%(lineno)d %(message)s")


class Logs(logging.Handler):
    """The captured records, with the API of pytest's `LogCaptureFixture`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        record.getMessage()  # a record that cannot be formatted fails where it is logged
        if record.name != _FROM_EARLIER_TESTS:
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
        """All records as text, one per line, with the tracebacks of errors."""
        return "".join(f"{_FORMAT.format(record)}\n" for record in self.records)


LOGS = Logs()
"""The handler of the root logger, for the running test."""


def begin() -> None:
    """Start collecting the logs of a new test, even if an earlier one removed the root logger's handlers."""
    LOGS.clear()
    logging.root.addHandler(LOGS)


@contextlib.contextmanager
def captured() -> Iterator[Logs]:
    """Capture everything that is logged from here on, including by loggers that do not propagate."""
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
