"""Restore the process state that a vendor's callback may change other than its arguments.

A callback that draws a random number, or calls `os.chdir` or `torch.set_grad_enabled`, would change the
training's weights or its working directory. What only a hostile callback would do, such as writing to the
model's parameters, is not detected here: that would cost time at each event.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fmstune.system.handlers import STOPPING


@contextlib.contextmanager
def state_restored() -> Iterator[None]:
    """Restore what the block changes in the process: the states of the random generators, the working
    directory, torch's modes, and the handlers of the signals that stop a training."""
    back = [_of_random(), _of_torch(), _of_folder(), _of_signals()]
    try:
        yield
    finally:
        for put_back in back:
            put_back()


def _of_random() -> Callable[[], None]:
    python, cpu = random.getstate(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    numpy: Any = sys.modules.get("numpy")  # a callback may be the first to import it
    numbers = numpy.random.get_state() if numpy is not None else None

    def put_back() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if numbers is not None:
            numpy.random.set_state(numbers)

    return put_back


def _of_torch() -> Callable[[], None]:
    grad, kind, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    exact, warns = torch.are_deterministic_algorithms_enabled(), _warns_only()

    def put_back() -> None:
        torch.set_grad_enabled(grad)
        if torch.get_default_dtype() != kind:
            torch.set_default_dtype(kind)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if (torch.are_deterministic_algorithms_enabled(), _warns_only()) != (exact, warns):
            torch.use_deterministic_algorithms(exact, warn_only=warns)

    return put_back


def _warns_only() -> bool:
    return bool(torch.is_deterministic_algorithms_warn_only_enabled())


def _of_folder() -> Callable[[], None]:
    try:
        folder = os.open(".", os.O_RDONLY | os.O_CLOEXEC)  # by name, a renamed one would be lost
    except OSError:
        return lambda: None

    def put_back() -> None:
        try:
            os.fchdir(folder)
        finally:
            os.close(folder)

    return put_back


def _of_signals() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():  # only that one can set them
        return lambda: None
    before = {signum: signal.getsignal(signum) for signum in STOPPING}

    def put_back() -> None:
        for signum, handler in before.items():
            if handler is not None and signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)

    return put_back
