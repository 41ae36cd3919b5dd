"""Isolates tests from what the user's shell has set: environment, signals, warnings, umask."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping

_KEPT = re.compile(
    "(PATH|TMPDIR|USER|LOGNAME|SHELL|LD_LIBRARY_PATH|DYLD_.*|VIRTUAL_ENV|PYENV_.*|TOX_.*|PYTEST_.*|COV_.*|COVERAGE_.*"
    "|PYTHONDONTWRITEBYTECODE|PYTHONPATH|HYPOTHESIS_PROFILE|FMSTUNE_FAULT_TABLE|FMSTUNE_EXAMPLES|FMSTUNE_DEVICE_.*"
    "|CUDA_.*|NVIDIA_.*)"
)
"""Variables that locate programs or configure the test run."""


ENVIRONMENT: dict[str, str] = {}
"""The variables of the suite, without those that libraries set at import."""


def isolate() -> str:
    """Give this process the environment in which all tests run; returns their home directory, a new one."""
    for name in list(os.environ):
        if not _KEPT.fullmatch(name):
            del os.environ[name]
    home = tempfile.mkdtemp(prefix="fmstune-tests-")
    os.environ.update(
        HOME=home,  # for what is imported before the first test
        LANG="C.UTF-8",
        COLUMNS="80",
        # Models this small gain nothing from a second thread, and two test processes with two threads each on
        # two cores spin for minutes.
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        COMET_DISABLE_AUTO_LOGGING="1",  # importing Comet patches the import of other libraries
        TRACKIO_DIR="trackio",  # a folder of each test, below its current one
    )
    ENVIRONMENT.clear()
    ENVIRONMENT.update(os.environ)
    os.umask(0o022)
    if sys.warnoptions:  # set by -W and PYTHONWARNINGS
        sys.warnoptions.clear()
        warnings.resetwarnings()
    reset_signal_handlers()
    return home


def restore(environment: Mapping[str, str]) -> None:
    """Reset the variables to these, except for pytest's own."""
    for name in list(os.environ):
        if name not in environment and not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(environment)


def reset_signal_handlers() -> None:
    """Reset all signal handlers to Python's defaults. A suite that was started by `nohup`, or in the
    background, ignores some signals, and its children would inherit that."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ignored = (signal.SIGPIPE, signal.SIGXFSZ)
    usual = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ignored, signal.SIG_IGN)}
    for signum in (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD,
        signal.SIGUSR1, signal.SIGUSR2,
    ):  # fmt: skip
        signal.signal(signum, usual.get(signum, signal.SIG_DFL))
