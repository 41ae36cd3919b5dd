"""Stop a run from outside: a checkpoint first, then the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from fmstune.errors import Interrupted
from fmstune.launch.rank import report_training
from fmstune.system.handlers import Handlers


class StopCallback(TrainerCallback):
    """End the training at the next step with a checkpoint, once `signum` has been set by a signal.

    Add it as the last callback: with several processes, all do what one of them was asked to do, by a signal
    or a callback. These reach each process at a different moment, and one that alone stopped, saved,
    evaluated or logged would wait there for the others, which wait for it in the next step.
    """

    reads_checkpoints = False

    def __init__(self) -> None:
        self.signum: int | None = None
        self._agreed: int | None = None  # of any process; all know it
        self.training = False
        self.begin: Callable[[], None] = lambda: None

    @property
    def asked(self) -> int | None:
        """The signal that asked this process, or another one, to stop."""
        return self._agreed or self.signum

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin()
        self.training = True
        report_training()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree(args, control)
        if self._agreed is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree(args, control)
        # The Trainer also calls this in the middle of an epoch that it leaves. Evaluating there would take
        # the time in which the process may still end by itself, and count for the best evaluation and the
        # patience, unlike in a run that is not interrupted. The checkpoint is that of the step.
        if self._agreed is not None and control.should_training_stop and (state.epoch or 0) % 1:
            control.should_evaluate = control.should_save = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree(args, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree(args, control)
        # No step may follow. With "best", the Trainer decides after this whether to save.
        if self._agreed is not None and self.training and args.save_strategy != SaveStrategy.BEST:
            control.should_save = True
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree(args, control)

    def _agree(self, args: TrainingArguments, control: TrainerControl) -> None:
        if not self.training:
            return
        if args.world_size == 1:
            self._agreed = self.signum
            return
        asked = [self.signum or 0, *(getattr(control, name) for name in _ASKED)]
        signum, *wanted = _largest(asked, args.device)
        # Not `signum`: a signal that came meanwhile is for the next time.
        self._agreed = self._agreed or signum or None
        for name, each in zip(_ASKED, wanted, strict=True):
            setattr(control, name, bool(each))


_ASKED = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


def _largest(numbers: list[int], device: Any) -> list[int]:
    """The element-wise maximum of the numbers of all ranks."""
    import torch

    largest = torch.tensor(numbers, device=device, dtype=torch.int64)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


@contextmanager
def stopping(stop: StopCallback, say: Callable[[str], None], *, main_process: bool = True) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP: during the training they set `stop`; at other times, and at the
    second SIGINT, they raise `Interrupted` at the current code. SIGHUP stays ignored if it was (`nohup`).
    Only the main thread can handle signals; elsewhere this is a no-op.

    The terminal sends SIGINT and SIGHUP to all of its processes at once. The training process then saves a
    checkpoint, and needs its data loader workers and pools for the rest of the step: a child leaves the first
    signal to its parent, and handles the next one as before.

    Other ranks only start with the training: before it they wait for rank zero in calls that no Python
    handler can interrupt, and torchrun kills such a process only after 30 seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int) -> None:
        if not stop.training or (stop.signum is not None and signum == signal.SIGINT):
            raise Interrupted(signum)
        if stop.signum is None:
            stop.signum = signum
            again = " (Ctrl-C again: leave at once)" if signum == signal.SIGINT else ""
            say(f"{signal.Signals(signum).name}: saving a checkpoint after this step{again}")

    def leave_to_parent(signum: int) -> bool:
        first = stop.training and stop.signum is None
        if first:
            stop.signum = signum  # the child's; its parent has its own
        return first

    handlers = Handlers(handle, leave_to_parent)
    if main_process:
        handlers.install()
    else:
        stop.begin = handlers.install
    try:
        yield
    finally:
        # The kernel and the shell both signal a closed terminal; the second must not interrupt the cleanup.
        handlers.remove(ignore=[signal.SIGHUP] if stop.signum == signal.SIGHUP else [])
