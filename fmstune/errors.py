"""The exceptions that end a command, each with its exit code.

A message is one short paragraph: what is wrong, where, and how to fix it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

_MOST_PROBLEMS = 3  # to keep it a short paragraph


class ConfigError(Exception):
    """A wrong command line or configuration."""

    exit_code = 2

    def __init__(self, message: str, listing: Sequence[str] = ()) -> None:
        """`listing` are lines that follow the message."""
        super().__init__("\n  ".join(map(_printable, (message, *listing))))


def _printable(text: str) -> str:
    # Keys and file names may hold anything: line breaks and escape sequences are shown escaped.
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class DataError(Exception):
    """The data is missing, damaged, or in a format that cannot be trained on."""

    exit_code = 2


class ModelError(Exception):
    """The model or its tokenizer cannot be loaded or used."""

    exit_code = 2


class RunError(Exception):
    """The run failed."""

    exit_code = 1


class Interrupted(BaseException):
    """A signal stopped the run. Not an `Exception`, so that no `except Exception` on the way up swallows
    it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}.")


def combined(problems: Sequence[str]) -> ConfigError:
    """One error for several problems: the first of them, and how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    rest = [f"There {'is 1 more problem' if more == 1 else f'are {more} more problems'}."] * (more > 0)
    return ConfigError(" ".join([*problems[:_MOST_PROBLEMS], *rest]))


def is_stop(error: BaseException) -> bool:
    """Whether the error means that the user wants to stop. A `KeyboardInterrupt` does only while Python's own
    handler is installed: during training the run has its own handler, so user code must have raised it. The
    same holds for `SystemExit`, `asyncio.CancelledError` and panics of Rust extensions, none of which is an
    `Exception`."""
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Interrupted)
