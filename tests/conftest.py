"""What many tests use: a journal with a few events, and an environment without anybody's settings."""

from __future__ import annotations

import os

# Before torch is imported: models this small gain nothing from a second thread, and two test processes
# with two threads each on two cores spin for minutes.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.system.locks import Lock

# A suite that was started in the background or by nohup has these ignored, and so have its children.
if threading.current_thread() is threading.main_thread():
    for _signum, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(_signum) is signal.SIG_IGN:
            signal.signal(_signum, _usual)

# The same examples every time; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No key, setting or home directory of whoever runs the tests has a say in them."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "AIM_", "__AIM_", "FMSTUNE_", "RANK", "WORLD_SIZE", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """An empty run directory."""
    directory = tmp_path / "run"
    (directory / TRACKING_DIR).mkdir(parents=True)
    return directory


@pytest.fixture
def recorder(run_directory: Path) -> Iterator[Recorder]:
    """A Recorder that writes the journal of `run_directory`."""
    made = Recorder(open_journal(run_directory), Redactor({}))
    yield made
    made.journal.close()


def open_journal(directory: Path, lock: Lock | None = None) -> JournalWriter:
    """Begin, or go on with, the journal of a run directory, whose lock may have been taken before."""
    header = Header("id-1", directory.name, time.time(), str(directory.parent))
    return JournalWriter(directory / TRACKING_DIR / JOURNAL_NAME, header, lock=lock)
