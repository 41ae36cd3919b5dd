"""What many tests use: a journal with a few events, and an environment without anybody's settings."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fmstune.delivery.recorder import Recorder
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from tests.support.commands import share
from tests.support.journals import close_journals, open_journal
from tests.support.surroundings import ENVIRONMENT, closed, restore, usual_signals
from tests.support.warm_shippers import install

install()
_HOME = closed()  # before test modules import torch and the hub's client, which read the environment then

# The same examples every time; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure(config: pytest.Config) -> None:
    """Of a session of several workers, this process is the one that starts them."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        share()


def pytest_unconfigure() -> None:
    """Take the home directory away; processes of xdist end without their atexit functions."""
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Take what the tests have imported out of the garbage collector's rounds: accelerate starts one at each
    training, which takes 0.6 s for torch and its like."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each test has a home directory of its own, and nothing that imports and other tests have set."""
    restore(ENVIRONMENT)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    restore(ENVIRONMENT)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Each test begins with the handlers of a process that was just started."""
    usual_signals()
    yield
    usual_signals()


@pytest.fixture(autouse=True)
def _journals() -> Iterator[None]:
    """No test leaves open files to the next ones."""
    yield
    close_journals()


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """An empty run directory."""
    directory = tmp_path / "run"
    (directory / TRACKING_DIR).mkdir(parents=True)
    return directory


@pytest.fixture
def recorder(run_directory: Path) -> Recorder:
    """A Recorder that writes the journal of `run_directory`."""

    return Recorder(open_journal(run_directory), Redactor({}))
