"""What foreign code raises while the training runs: a fault of that code, or the user's wish to stop."""

from __future__ import annotations

import signal


class UserStop(BaseException):
    """A signal that ends the run, raised where the program is: no guard may swallow it."""


def is_stop(error: BaseException) -> bool:
    """Whether the error is the user's wish to stop. A `KeyboardInterrupt` is one only where Python's own
    handler would raise it: during a training the run has its own handler, and the error is the foreign
    code's. So are `SystemExit`, `asyncio.CancelledError` and the panics of Rust extensions, none of which is
    an `Exception`."""
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, UserStop)
