"""What whoever runs the tests has set has no say in them: environment, signals, warnings, umask."""

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
    "|PYTHONDONTWRITEBYTECODE|PYTHONPATH|HYPOTHESIS_PROFILE|FMSTUNE_FAULT_TABLE|FMSTUNE_DEVICE_.*"
    "|CUDA_.*|NVIDIA_.*)"
)
"""Variables that say where programs are and how the tests are run."""


ENVIRONMENT: dict[str, str] = {}
"""The variables of the suite, without those that libraries set when they are imported."""


def closed() -> str:
    """Give this process the surroundings in which all tests run; their home directory, which is a new one."""
    for name in list(os.environ):
        if not _KEPT.fullmatch(name):
            del os.environ[name]
    home = tempfile.mkdtemp(prefix="fmstune-tests-")
    os.environ.update(
        HOME=home,  # of what is imported before the first test
        LANG="C.UTF-8",
        COLUMNS="80",
        # Models this small gain nothing from a second thread, and two test processes with two threads each on
        # two cores spin for minutes.
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        COMET_DISABLE_AUTO_LOGGING="1",  # its import patches that of other libraries
        TRACKIO_DIR="trackio",  # each test's own, below its current folder
    )
    ENVIRONMENT.clear()
    ENVIRONMENT.update(os.environ)
    os.umask(0o022)
    if sys.warnoptions:  # of -W and PYTHONWARNINGS
        sys.warnoptions.clear()
        warnings.resetwarnings()
    usual_signals()
    return home


def restore(environment: Mapping[str, str]) -> None:
    """Set the variables as they were; pytest keeps one of its own."""
    for name in list(os.environ):
        if name not in environment and not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(environment)


def usual_signals() -> None:
    """Give each signal its usual handler. Of a suite that was started by `nohup`, or in the background, some
    are ignored, and so they would be in its children."""
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
