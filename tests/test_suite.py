"""The rules of the suite itself: which files import which, and that user settings do not affect it."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, fmstune, start
from tests.support.durations import RANKS
from tests.support.isolation import ENVIRONMENT, restore
from tests.support.nurseries import run_code
from tests.support.waiting import wait_for

TESTS = Path(__file__).parent
HOSTILE = {
    "NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "20", "LC_ALL": "C", "LANG": "de_DE",
    "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9",
    "PYTHONWARNINGS": "error::UserWarning", "PYTHONUNBUFFERED": "1", "CI": "true", "WANDB_MODE": "disabled",
    "WANDB_API_KEY": "0" * 40, "AIM_REPO": "/nowhere", "HF_HOME": "/nowhere", "HF_ENDPOINT": "http://127.0.0.1:9",
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "x", "FMSTUNE_RUN": "x", "TRANSFORMERS_VERBOSITY": "debug",
    "HOME": "/nowhere", "XDG_CONFIG_HOME": "/nowhere",
}  # fmt: skip
"""What a user, a job, a container or a launcher may have set."""
SAMPLE = (
    "tests/cli/test_config.py", "tests/launch/test_environment.py",
    "tests/trackers/test_registry.py::test_an_installed_package_adds_a_tracker_by_its_entry_point",
    "tests/test_suite.py::test_a_forked_command_has_the_state_of_a_started_one",
)  # fmt: skip
"""Tests that print, read the environment, and start processes, without torch, whose import is the slowest."""
FACTS = "tests.support.facts"
OF_TESTS = re.compile(r"^\s*(from|import)\s+tests\b[^(\n]*(\([^)]*)?\b(test_|conftest)", re.M)
"""The import of a test, or text that looks like one."""


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, at module level and in functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_no_test_imports_another_test() -> None:
    found = {
        f"{path.relative_to(TESTS)}: {module}"
        for path in TESTS.rglob("*.py")
        if OF_TESTS.search(path.read_text("utf-8"))  # parsing all files takes a second
        for module in imported(path)
        if module.startswith("tests.") and module.rpartition(".")[2].startswith(("test_", "conftest"))
    }
    assert not found, "code that two tests need belongs in tests/support"


def test_the_files_that_run_first_exist() -> None:
    assert [name for name in RANKS if not (ROOT / name).exists()] == []


def test_user_settings_do_not_affect_the_tests() -> None:
    """Run a sample of the suite as a user whose shell, terminal and umask differ from ours."""

    def hostile() -> None:
        os.umask(0o077)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SAMPLE],
        cwd=ROOT,
        env={**os.environ, **HOSTILE},
        preexec_fn=hostile,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


HANGS = """
import os, signal, threading

def test_stops(): os.kill(os.getpid(), signal.SIGSTOP)

def test_waits():
    signal.setitimer(signal.ITIMER_REAL, 0)
    threading.Event().wait()

def test_passes(): pass
"""
WATCHES = """
from pathlib import Path
from tests.support.hung import Hung, can_be_ended

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        can_be_ended(Path.cwd(), config.workerinput["workerid"])
    else:
        config.pluginmanager.register(Hung(Path.cwd(), 1))
"""


def test_a_session_in_which_tests_hang_ends_and_names_them(tmp_path: Path) -> None:
    (tmp_path / "test_hangs.py").write_text(HANGS)
    (tmp_path / "conftest.py").write_text(WATCHES)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    for name in ("stops", "waits"):
        assert f"crashed while running 'test_hangs.py::test_{name}'" in done.stdout
    assert "2 failed, 1 passed" in done.stdout
    assert "in test_waits" in done.stderr  # where it hung


def facts(*, fresh: bool, closed: bool, cwd: Path) -> dict[str, Any]:
    limits = {resource.RLIMIT_NOFILE: 500}
    done = fmstune(
        "-x", "--y=1", cwd=cwd, module=FACTS, limits=limits, fresh=fresh, closed=closed, light=True, MORE="1"
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((cwd / "facts.json").read_text())
    return found


@pytest.mark.parametrize("closed", [False, True])
def test_a_forked_command_has_the_state_of_a_started_one(closed: bool, tmp_path: Path) -> None:
    forked, started = (facts(fresh=fresh, closed=closed, cwd=tmp_path) for fresh in (False, True))
    assert forked == started
    assert forked["environment"]["MORE"] == "1"
    assert forked["descriptors"] == ([0] if closed else [0, 1, 2])  # 0: the folder that is being listed
    assert forked["streams"].count(None) == (3 if closed else 0)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("how", "code", "said"), [("7", 7, ""), ("said", 1, "said\n"), ("raise", 1, "ValueError: raised\n")]
)
def test_a_command_exits_like_an_interpreter(
    how: str, code: int, said: str, fresh: bool, tmp_path: Path
) -> None:
    done = fmstune(how, cwd=tmp_path, module=FACTS, fresh=fresh, light=True)
    assert done.returncode == code
    assert done.stderr.endswith(said)
    assert done.stdout == "at exit\n"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_signal_ends_a_command(fresh: bool, tmp_path: Path) -> None:
    process = start("wait", cwd=tmp_path, module=FACTS, fresh=fresh, light=True)
    wait_for((tmp_path / "waits").exists)
    assert process.poll() is None
    process.terminate()
    assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGTERM
    process.kill()  # no effect on a process that has ended


def test_a_command_is_forked_even_if_imported_libraries_set_variables(tmp_path: Path) -> None:
    import torch._inductor.runtime.cache_dir_utils as sets_a_variable

    sets_a_variable.cache_dir()
    assert "TORCHINDUCTOR_CACHE_DIR" in os.environ
    restore(ENVIRONMENT)
    assert not isinstance(start("0", cwd=tmp_path, module=FACTS, light=True), subprocess.Popen)


def test_a_command_with_other_modules_or_settings_is_started(tmp_path: Path) -> None:
    (tmp_path / "shadows.py").write_text("")
    for more in ({"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, {"PYTHONWARNINGS": "error"}):
        assert isinstance(start("0", cwd=tmp_path, module=FACTS, light=True, **more), subprocess.Popen)
    assert not isinstance(start("0", cwd=tmp_path, module=FACTS, light=True), subprocess.Popen)


def test_a_process_forked_from_a_warm_interpreter_leaves_the_folders_that_all_share() -> None:
    code = "import os, wandb.sdk.data_types._private as p\nprint(os.path.isdir(p.MEDIA_TMP.name))"
    for _ in range(2):
        assert run_code(code, tracker="wandb").stdout == "True\n"
