"""Fixtures that many tests share, and an environment that no user settings reach."""

from __future__ import annotations

import gc
import itertools
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from tests.support import logs
from tests.support.durations import RANKS
from tests.support.hung import Hung, can_be_ended
from tests.support.isolation import ENVIRONMENT, isolate, reset_signal_handlers, restore
from tests.support.journals import close_journals, open_journal
from tests.support.logs import LOGS, Logs
from tests.support.metadata import read_once
from tests.support.once import SHARED
from tests.support.small_demo import smaller
from tests.support.warm import share, worker
from tests.support.warm_shippers import install

read_once()
gc.disable()  # a fifth of the import time, and nearly nothing that imports create is garbage
install()
_HOME = (
    isolate()
)  # before test modules import torch and huggingface_hub, which read the environment at import
_MOST_SECONDS = 1500
"""Without any test that begins or ends; more than the time limit of a test."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, or the controller of an xdist session."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        gc.enable()  # the controller collects no tests
        paths = (Path(config.invocation_params.dir, arg.partition("::")[0]) for arg in config.args)
        share(filter(Path.exists, paths))
        if SHARED in os.environ:
            config.pluginmanager.register(Hung(Path(os.environ[SHARED]), _MOST_SECONDS))
        return
    if hasattr(config, "workerinput") and SHARED in os.environ:
        can_be_ended(Path(os.environ[SHARED]), config.workerinput["workerid"])
    from hypothesis import settings  # takes pytest two seconds to rewrite; the controller needs none

    # The same examples on every run: more of them would find nothing new in unchanged code;
    # `HYPOTHESIS_PROFILE=search` looks for new ones, and runs more.
    settings.register_profile("same", derandomize=True, deadline=None, max_examples=50)
    most = int(os.environ.get("FMSTUNE_EXAMPLES", "200"))
    settings.register_profile("search", deadline=None, max_examples=most)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Fork the workers from an interpreter that has already imported what they need."""
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = worker()


def pytest_unconfigure() -> None:
    """Remove the home directory; xdist's processes end without running their atexit functions."""
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no worker sits idle while another finishes."""
    items.sort(key=lambda item: RANKS.get(item.nodeid.partition("::")[0], len(RANKS)))


def pytest_collection_finish() -> None:
    """Exclude everything the test modules imported from garbage collection, and enable it."""
    gc.freeze()
    gc.enable()


_rounds = 0


def _keep_rounds_short() -> None:
    """Exclude what earlier tests left behind, such as newly imported modules, from garbage collection.

    accelerate runs a full collection at each training. If it scans all of torch, transformers and the
    trackers' SDKs, that takes as long as training a small model. Without new modules nothing is frozen: what
    a test leaves behind may contain cycles, whose memory would never be freed."""
    global _rounds
    if _rounds != gc.get_stats()[2]["collections"]:
        gc.collect()
        gc.freeze()
        _rounds = gc.get_stats()[2]["collections"]


_homes = itertools.count()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Each test starts with its own home directory, the suite's environment without variables that imports
    or other tests set, and default signal handlers; it leaves no file open."""
    _keep_rounds_short()
    restore(ENVIRONMENT)
    # Not `tmp_path_factory`: it lists all folders that it has made to find the number of a new one.
    home = Path(_HOME, str(next(_homes)))
    home.mkdir()
    os.environ["HOME"] = str(home)
    reset_signal_handlers()
    logs.begin()
    yield
    restore(ENVIRONMENT)
    reset_signal_handlers()
    close_journals()
    LOGS.clear()  # their tracebacks keep the test's objects alive


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add captured logs to the report of a failed test."""
    report = yield
    if report.failed and LOGS.records:
        report.sections.append((f"Captured log {report.when}", LOGS.text))
    return report


@pytest.fixture
def caplog() -> Iterator[Logs]:
    """The log records of the test."""
    with logs.captured() as found:
        yield found


_folders = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for this test, named as pytest names it.

    pytest's own fixture also keeps a symbolic link to the newest folder of each name, and replacing it takes
    ten times as long as creating the folder."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}_{next(_folders)}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="module")
def small_demo() -> Iterator[None]:
    """Use a demo model with one narrow layer in all tests of the module."""
    with smaller():
        yield


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
