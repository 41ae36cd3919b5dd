"""Stopping a run from outside: a checkpoint first, then the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.user_code import UserStop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is how a long run ends most often: its terminal, or the connection to it, is closed."""


class Interrupted(UserStop):
    """The run was stopped by a signal. Not an `Exception`, so that nothing on the way takes it for one."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}.")


class StopCallback(TrainerCallback):
    """Ends the training at the next step with a checkpoint, once `signum` has been set. To be the last of the
    callbacks: of several ranks all stop when one of them does."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.training = False
        self.begin: Callable[[], None] = lambda: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin()
        self.training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            # A signal reaches each rank at a moment of its own, and one that stops alone leaves the others
            # waiting for it in the next step; so does one that a callback of the user's own stops.
            signum, wanted = _largest([self.signum or 0, control.should_training_stop], args.device)
            self.signum = signum or None
            control.should_training_stop = bool(wanted)
        if self.signum is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1 and self.training:
            control.should_training_stop = bool(_largest([control.should_training_stop], args.device)[0])


def _largest(numbers: list[int], device: Any) -> list[int]:
    """The largest of the numbers that all ranks bring, each by its place."""
    import torch

    largest = torch.tensor(numbers, device=device, dtype=torch.int64)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


@contextmanager
def stopping(stop: StopCallback, say: Callable[[str], None], *, main_process: bool = True) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP: during the training they set `stop`, at other times, and at the
    second SIGINT, they raise `Interrupted` where the program is. SIGHUP stays ignored where it was (`nohup`).
    Only the main thread can handle signals; elsewhere this does nothing. A process that is forked meanwhile
    has the handlers that were there before, so that SIGTERM ends it, see `_Handlers`.

    Other ranks begin with the training alone: before it they wait for rank zero in calls that no handler
    of Python's can interrupt, and torchrun kills such a process only after 30 seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    handlers = _Handlers(stop, say)
    _open.append(handlers)
    if main_process:
        handlers.install()
    else:
        stop.begin = handlers.install
    try:
        yield
    finally:
        _open.remove(handlers)
        handlers.remove()


class _Handlers:
    """The handlers of one `stopping`. Children that are forked inherit them, and what ends a child (`Pool`,
    daemonic processes at the interpreter's exit) sends SIGTERM and then waits without a limit: in a child
    SIGTERM does what it did before.

    SIGINT and SIGHUP come from the terminal, to all that run in it at once. The training process saves a
    checkpoint then, and needs the workers of its data loader and its pools for the rest of the step: a child
    leaves the first of them to its parent, and the next one does what it did before.
    """

    def __init__(self, stop: StopCallback, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        for signum in SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                self._before.setdefault(signum, signal.signal(signum, self._handle))

    def remove(self) -> None:
        for signum, handler in self._before.items():
            # The kernel and the shell both tell of a closed terminal; the second must not end what follows.
            again = signum == self._stop.signum == signal.SIGHUP and handler is signal.SIG_DFL
            signal.signal(signum, signal.SIG_IGN if again else handler)

    def become_child(self) -> None:
        # A handler that somebody has put in the place of ours stays.
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        stop = self._stop
        if os.getpid() != self._process:
            self._handle_in_child(signum, frame)
            return
        if not stop.training or (stop.signum is not None and signum == signal.SIGINT):
            raise Interrupted(signum)
        if stop.signum is None:
            stop.signum = signum
            again = " (Ctrl-C again: leave at once)" if signum == signal.SIGINT else ""
            self._say(f"{signal.Signals(signum).name}: saving a checkpoint after this step{again}")

    def _handle_in_child(self, signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGTERM and self._stop.training and self._stop.signum is None:
            self._stop.signum = signum  # of this process: its parent has its own
            return
        before = self._before[signum]
        if callable(before):
            before(signum, frame)
        elif before is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


_open: list[_Handlers] = []
_mask = threading.local()


def _before_fork() -> None:
    # A signal that comes between the fork and `become_child` would be lost: Python forgets in a child what
    # its handlers have not been called for yet.
    if _open:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    for handlers in _open:
        handlers.become_child()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
