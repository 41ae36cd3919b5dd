"""A rank exits without the interpreter's teardown, after everything that has to run before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ABORTS_AT_TEARDOWN = """\
import atexit, os, sys, threading, time
from fmstune.cli import main as command

class Held:
    def __del__(self):
        os.abort()

def work(arguments):
    atexit.register(lambda: print("registered"))
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    sys.exit({code})

held = Held()
command._main = work
command.main()
"""


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("7", 7), ("None", 0), ("'cause'", 1)])
def test_a_rank_ends_with_its_own_exit_code(code: str, expected: int, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(ABORTS_AT_TEARDOWN.format(code=code))
    done = subprocess.run(
        [sys.executable, str(script)], env={"TORCHELASTIC_RUN_ID": "x"}, capture_output=True, text=True
    )
    assert done.returncode == expected
    assert done.stdout.split() == ["thread", "registered"]
    assert "Aborted" not in done.stderr
