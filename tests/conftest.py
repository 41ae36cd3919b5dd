"""What many tests use: a journal with a few events, and an environment without anybody's settings."""

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
from tests.support.journals import close_journals, open_journal
from tests.support.logs import LOGS, Logs
from tests.support.metadata import read_once
from tests.support.small_demo import smaller
from tests.support.surroundings import ENVIRONMENT, closed, restore, usual_signals
from tests.support.warm import share, worker
from tests.support.warm_shippers import install

read_once()
gc.disable()  # a fifth of the time of imports, after which nearly all stays
install()
_HOME = closed()  # before test modules import torch and the hub's client, which read the environment then


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, or, of a session of several workers, the one that starts them."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        gc.enable()  # it collects no tests
        paths = (Path(config.invocation_params.dir, arg.partition("::")[0]) for arg in config.args)
        share(filter(Path.exists, paths))
        return
    from hypothesis import settings  # pytest takes two seconds to rewrite it, which the other needs not

    # The same examples every time; `HYPOTHESIS_PROFILE=search` looks for new ones.
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.register_profile("search", deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Have the workers forked from an interpreter that has their imports."""
    for spec in specs:
        if spec.popen and not spec.python:
            spec.python = worker()


def pytest_unconfigure() -> None:
    """Take the home directory away; processes of xdist end without their atexit functions."""
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at the end of a session no worker waits for another's."""
    items.sort(key=lambda item: RANKS.get(item.nodeid.partition("::")[0], len(RANKS)))


def pytest_collection_finish() -> None:
    """Take what the test modules have imported out of the garbage collector's rounds, which begin here."""
    gc.freeze()
    gc.enable()


_rounds = 0


def _keep_rounds_short() -> None:
    """Take what an earlier test has left, such as more modules, out of the garbage collector's rounds.

    accelerate starts one at each training, which takes as long as the training of a small model when it looks
    at all of torch, transformers and the trackers' SDKs. Without one nothing is taken out: what a test leaves
    may be in cycles, whose memory nobody would give back."""
    global _rounds
    if _rounds != gc.get_stats()[2]["collections"]:
        gc.collect()
        gc.freeze()
        _rounds = gc.get_stats()[2]["collections"]


_homes = itertools.count()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Each test begins with a home directory of its own, the environment of the suite, without what imports
    and other tests have set, and the signal handlers of a new process; it leaves no file open."""
    _keep_rounds_short()
    restore(ENVIRONMENT)
    # Not with `tmp_path_factory`, which looks at all folders that it has made for a new one's number.
    home = Path(_HOME, str(next(_homes)))
    home.mkdir()
    os.environ["HOME"] = str(home)
    usual_signals()
    logs.begin()
    yield
    restore(ENVIRONMENT)
    usual_signals()
    close_journals()
    LOGS.clear()  # whose tracebacks keep what the test has made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what was logged in the report of a test that failed."""
    report = yield
    if report.failed and LOGS.records:
        report.sections.append((f"Captured log {report.when}", LOGS.text))
    return report


@pytest.fixture
def caplog() -> Iterator[Logs]:
    """What the test logs."""
    with logs.captured() as found:
        yield found


_folders = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own, as pytest makes it.

    pytest's own fixture keeps a symbolic link to the newest folder of each name as well, and to replace it
    takes ten times as long as to make the folder."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}_{next(_folders)}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="module")
def small_demo() -> Iterator[None]:
    """All tests of a module have a demo model of one narrow layer."""
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
