"""The exceptions that end a command, each with its exit code.

A message is one short paragraph: what is wrong, where, and what to do.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

_MOST_PROBLEMS = 3  # more are no short paragraph


class ConfigError(Exception):
    """A wrong command line or configuration."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # Keys and file names may hold anything; a line break or an escape sequence is shown, not obeyed.
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))


class DataError(Exception):
    """The data is missing, damaged, or of a shape that cannot be trained on."""

    exit_code = 2


class ModelError(Exception):
    """The model or its tokenizer cannot be loaded or used."""

    exit_code = 2


class RunError(Exception):
    """The run failed."""

    exit_code = 1


class Interrupted(BaseException):
    """The run was stopped by a signal, and ends where the program is. Not an `Exception`, so that nothing on
    the way takes it for one: no guard may swallow it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}.")


def combined(problems: Sequence[str]) -> ConfigError:
    """One error for several problems: the first of them, and how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    rest = [f"There {'is 1 problem' if more == 1 else f'are {more} problems'} more."] * (more > 0)
    return ConfigError(" ".join([*problems[:_MOST_PROBLEMS], *rest]))
