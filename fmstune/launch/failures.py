"""Why a run failed, in words; of one of several processes, from what its launcher saw and what its ranks
reported."""

from __future__ import annotations

import glob
import signal
from pathlib import Path
from typing import Any

from fmstune.launch.rank import Cause, is_lost_peer, reported_causes


class RankFailed(Exception):
    """A process of the run has failed; `exit_code` is the contract's."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def last_reported(folder: str, run_id: str = "") -> list[Cause]:
    """What the ranks have reported in their last attempt; torchrun may have been set to start them again.

    `folder` is torchrun's for logs, which other runs, with other ids, may share.
    """
    attempts = Path(folder).glob(f"{glob.escape(run_id)}*/attempt_*")
    last = max(attempts, key=lambda path: path.stat().st_mtime, default=None)
    return reported_causes(last) if last is not None else []


def failure(error: Any, causes: list[Cause]) -> RankFailed:
    """The cause of torchrun's `ChildFailedError`: what the first rank has reported, or that a rank was killed
    before, or ended without a word: what the others report is then that they miss it."""
    spoken = {cause.local_rank for cause in causes}
    # torchrun sends SIGTERM to the others once one has failed: that they were interrupted is no cause then.
    own = [cause for cause in causes if cause.exit_code < 128]
    for rank, failed in error.failures.items():
        # torchrun itself ends the other ranks with SIGTERM once one has failed.
        killed = failed.exitcode < 0 and failed.exitcode != -signal.SIGTERM
        # In whole seconds, and of when it was noticed: the others may have missed it before.
        if killed and (not causes or failed.timestamp - 1 <= causes[0].time):
            return RankFailed(_killed(rank, failed), 1)
    for rank, failed in error.failures.items():
        # As by `os._exit`. An error of fmstune's own (`expected`) is a cause by itself.
        if failed.exitcode > 0 and failed.local_rank not in spoken and not (own and own[0].expected):
            return RankFailed(_ended(rank, failed), 1)
    if first := next(iter(own or causes), None):
        return RankFailed(first.message, first.exit_code)
    rank, failed = error.get_first_failure()
    if failed.exitcode < 0:
        return RankFailed(_killed(rank, failed), 1)
    return RankFailed(_ended(rank, failed), 1)


def in_words(error: BaseException) -> str:
    """The cause as the last line of a command says it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = str(error).strip()
    if hasattr(error, "exit_code"):
        return text
    kind = type(error).__name__
    if is_lost_peer(text):
        return f"another process of this run has ended; what it said on its machine is the cause ({kind})."
    # An unexpected error: its kind says more than its text alone.
    return f"{kind}: {text}" if text else kind


def interruption(signum: signal.Signals, causes: list[Cause]) -> RankFailed:
    """That the run was interrupted, unless a rank has failed at it: its checkpoint could not be saved."""
    for cause in causes:
        if cause.expected and cause.exit_code < 128:
            return RankFailed(cause.message, cause.exit_code)
    return RankFailed(f"interrupted by {signum.name}.", 128 + signum.value)


def not_met(error: Exception, where: str, settings: str) -> RankFailed:
    """That the machines did not meet, and which `settings` say where they should."""
    return RankFailed(
        f"the machines of this run did not meet at {where} ({type(error).__name__}): {settings} have to be "
        "the same on all of them.",
        1,
    )


def _ended(rank: int, failed: Any) -> str:
    return f"the process of rank {rank} ended with exit code {failed.exitcode}, and did not say why."


def _killed(rank: int, failed: Any) -> str:
    name = failed.signal_name()
    memory = " The kernel does that when memory runs out." if name == "SIGKILL" else ""
    return f"the process of rank {rank} was ended by {name}.{memory}"
