"""A tracker whose own code is denied a path: its line names the path and what gives access, in whichever
call it is."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.progress import cause_text
from tests.support.shipping import record_steps
from tests.support.unprivileged import unprivileged

_PLUG_IN = """
from fmstune import Tracker

class Denied(Tracker):
    def __init__(self, name=None, tracker_config=None):
        super().__init__(name, tracker_config)
        self.use("init")
    def use(self, hook):
        if self.config.get("at") == hook:
            open("closed/there", "w")
    def check(self, timeout):
        self.use("check")
        return super().check(timeout)
    def open(self, start):
        self.use("open")
        return super().open(start)
    def track(self, metric, name, stage=None, *, step=None):
        self.use("track")
"""
_REMEDY = "`chmod u+rwx closed` gives you access"


@pytest.fixture
def folder(tmp_path: Path, recorder: Recorder, run_directory: Path) -> Path:
    """A folder with the plug-in, which cannot enter its folder `closed`, and a run to deliver, `run`."""
    (tmp_path / "plug.py").write_text(_PLUG_IN)
    (tmp_path / "closed").mkdir(0)
    record_steps(recorder, 1, 3)
    recorder.close("finished")
    recorder.journal.close()
    run_directory.rename(tmp_path / "to deliver")
    return tmp_path


def fmstune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return unprivileged(f"from fmstune.cli.main import main; main({list(arguments)!r})", folder)


@pytest.mark.parametrize(
    ("hook", "what"), [("init", "cannot be created: PermissionError"), ("check", "check failed")]
)
def test_a_check_says_what_gives_access_to_a_path_that_the_tracker_was_denied(
    hook: str, what: str, folder: Path
) -> None:
    done = fmstune(folder, "trackers", "check", "plug:Denied", "--set", f"trackers.plug:Denied.at={hook}")
    assert done.returncode == 3
    found, remedy = done.stdout.splitlines()
    assert found == f"plug:Denied  no permission: its {what}: closed/there: Permission denied".replace(
        "its cannot", "it cannot"
    )
    assert remedy.strip() == f"→ {_REMEDY}"


@pytest.mark.parametrize("hook", ["open", "track"])
def test_a_delivery_says_what_gives_access_to_a_path_that_the_tracker_was_denied(
    hook: str, folder: Path
) -> None:
    option = f"trackers.plug:Denied.at={hook}"
    done = fmstune(folder, "trackers", "sync", "to deliver", "--to", "plug:Denied", "--set", option)
    assert done.returncode == 1
    assert f"PermissionError: closed/there: Permission denied. {_REMEDY}" in done.stdout + done.stderr


class Worse(PermissionError):
    """An error whose path cannot be had."""

    def __getattribute__(self, name: str) -> object:
        if name == "filename":
            raise RuntimeError("no")
        return super().__getattribute__(name)


def test_an_error_is_told_however_its_own_code_fails() -> None:
    assert cause_text(Worse(errno.EACCES, "no entry")) == "Worse: [Errno 13] no entry"
    assert cause_text(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x")) == (
        "FileNotFoundError: x: No such file or directory"
    )
