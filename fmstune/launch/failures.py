"""Describe why a run failed; with several processes, from the launcher's observations and the ranks'
reports."""

from __future__ import annotations

import glob
import linecache
import os
import re
import signal
import traceback
from pathlib import Path
from typing import Any

from fmstune import access
from fmstune.access import unusable_path
from fmstune.errors import ConfigError
from fmstune.launch.rank import Cause, is_lost_peer, reported_causes
from fmstune.text import first_line, shown

_INNERMOST = 4


class RankFailed(Exception):
    """A process of the run failed; `exit_code` is one of the documented ones."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def last_reported(folder: str, run_id: str = "") -> list[Cause]:
    """The causes reported by the ranks in their last attempt; torchrun may be configured to restart them.

    `folder` is torchrun's log folder, which runs with other ids may share.
    """
    attempts = Path(folder).glob(f"{glob.escape(run_id)}*/attempt_*")
    last = max(attempts, key=lambda path: path.stat().st_mtime, default=None)
    return reported_causes(last) if last is not None else []


def failure(error: Any, causes: list[Cause]) -> RankFailed:
    """The cause of torchrun's `ChildFailedError`: the first rank's report; or that a rank was killed before,
    or exited without a report, in which case the others only report that they lost it."""
    spoken = {cause.local_rank for cause in causes}
    # torchrun sends SIGTERM to the others once one has failed: their interruption is not the cause.
    own = [cause for cause in causes if cause.exit_code < 128]
    for rank, failed in error.failures.items():
        # torchrun itself terminates the other ranks with SIGTERM once one has failed.
        killed = failed.exitcode < 0 and failed.exitcode != -signal.SIGTERM
        # The timestamp is in whole seconds, and taken when torchrun noticed: the others may have earlier.
        if killed and (not causes or failed.timestamp - 1 <= causes[0].time):
            return RankFailed(_killed(rank, failed), 1)
    for rank, failed in error.failures.items():
        # For example by `os._exit`. One of fmstune's own errors (`expected`) is a cause by itself.
        if failed.exitcode > 0 and failed.local_rank not in spoken and not (own and own[0].expected):
            return RankFailed(_ended(rank, failed), 1)
    if first := next(iter(own or causes), None):
        return RankFailed(first.message, first.exit_code)
    rank, failed = error.get_first_failure()
    if failed.exitcode < 0:
        return RankFailed(_killed(rank, failed), 1)
    return RankFailed(_ended(rank, failed), 1)


def in_words(error: BaseException) -> str:
    """The cause, as in the last line of a command's output."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = str(error).strip()
    if hasattr(error, "exit_code"):
        return text
    if (words := access.in_words(error)) is not None:
        return words
    kind = type(error).__name__
    if is_lost_peer(text):
        return f"another process of this run exited; see its output on its machine for the cause ({kind})."
    # An unexpected error: its class says more than its message alone.
    return f"{kind}: {text}" if text else kind


def user_error(error: BaseException) -> ConfigError | None:
    """The user's mistake that an unexpected error shows: a path that cannot be used, or an environment
    variable that a library could not read; `None` if it shows none."""
    if message := unusable_path(error):
        return ConfigError(message)
    return _unreadable_variable(error)


def _unreadable_variable(error: BaseException) -> ConfigError | None:
    """The error for an environment variable that a library could not read, mostly while it was imported. Its
    own message has the value but not the name, which is in the source of the code that raised it."""
    text = str(error).casefold()
    written = {name: value for name, value in os.environ.items() if value and value.casefold() in text}
    source = _source_of(error) if written and not hasattr(error, "exit_code") else ""
    for name, value in written.items():
        quoted = repr(value).casefold() in text or name.casefold() in text
        if quoted and re.search(rf"""["']{re.escape(name)}["']""", source):
            why = f"{type(error).__name__}: {first_line(error)}"
            return ConfigError(f"{name}={shown(value)}: {why}. Correct or unset this environment variable.")
    return None


def _source_of(error: BaseException) -> str:
    """The source of the innermost modules in the traceback: the last may be one of Python, as `logging`."""
    frames = traceback.extract_tb(error.__traceback__)[-_INNERMOST:]
    return "".join(line for name in {each.filename for each in frames} for line in linecache.getlines(name))


def interruption(signum: signal.Signals, causes: list[Cause]) -> RankFailed:
    """Report that the run was interrupted, unless a rank failed to save its checkpoint."""
    for cause in causes:
        if cause.expected and cause.exit_code < 128:
            return RankFailed(cause.message, cause.exit_code)
    return RankFailed(f"interrupted by {signum.name}.", 128 + signum.value)


def rendezvous_failed(error: Exception, where: str, settings: str) -> RankFailed:
    """Report that the machines did not find each other at `where`, which `settings` determine."""
    return RankFailed(
        f"the machines of this run did not connect at {where} ({type(error).__name__}): {settings} must be "
        "the same on all of them.",
        1,
    )


def _ended(rank: int, failed: Any) -> str:
    return f"the process of rank {rank} exited with code {failed.exitcode}, without reporting a cause."


def _killed(rank: int, failed: Any) -> str:
    name = failed.signal_name()
    memory = " The kernel sends it when memory runs out." if name == "SIGKILL" else ""
    return f"the process of rank {rank} was killed by {name}.{memory}"
