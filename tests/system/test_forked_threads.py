"""After a fork, a training uses one thread where several would wait forever."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.commands import fmstune

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp does not know of forks")

_SCRIPT = """
import os, sys, torch
import fmstune
from fmstune.system.forked_threads import use_one_thread_if_forked

def computed():
    return float(torch.ones(1 << 20).exp().sum())

def forked(what):
    if (child := os.fork()) == 0:
        try:
            print(what(), flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)

def trained():
    settings = {"model.path": "demo", "data.train": "demo", "data.max_rows": 8, "training.max_steps": 1,
                "training.save_strategy": "no", "training.output_dir": "out"}
    return fmstune.train(settings=settings).metrics["train/loss"]

def checked():
    return use_one_thread_if_forked(), torch.get_num_threads(), computed() > 0, use_one_thread_if_forked()

forked(checked)  # torch has not computed yet
forked(lambda: (computed() > 0, *checked()))  # and has since the fork, with threads of its own
computed()
print(use_one_thread_if_forked(), flush=True)  # this process was not forked
forked(lambda: "waits" not in str(checked()) and torch.get_num_threads())
forked(trained)
"""


def test_a_run_in_a_child_of_a_process_that_computed_ends_and_says_that_it_has_one_thread(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    done = fmstune(cwd=tmp_path, module=str(script), fresh=True, timeout=100, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    new, again, parent, child, loss = done.stdout.splitlines()
    assert new == "(None, 2, True, None)"
    assert again == "(True, None, 2, True, None)"
    assert (parent, child) == ("None", "1")
    assert 5 < float(loss) < 8
    assert "one thread instead of 2: it was forked after torch had computed" in done.stderr
    assert "method spawn or forkserver" in " ".join(done.stderr.split())
