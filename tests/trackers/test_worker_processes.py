"""A tracker in a process of `multiprocessing`, in a script of the user's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys
import fmstune

def work(how):
    tracker = fmstune.get_tracker("file", path=f"{how}.jsonl")
    tracker.track(0.5, "loss", "train", step=1)
    if how == "failed":
        raise RuntimeError("a worker fails")
    if how == "finished":
        sys.exit(0)
    tracker.close("interrupted")  # earlier than its process ends

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work, args=(how,)) for how in ("finished", "failed", "interrupted")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_run_of_a_worker_is_closed_with_its_status_when_the_worker_ends(
    method: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "script.py", method], cwd=tmp_path, check=True, capture_output=True)
    for status in ("finished", "failed", "interrupted"):
        *_, point, last = map(json.loads, (tmp_path / f"{status}.jsonl").read_text().splitlines())
        assert point["values"] == {"loss": 0.5}
        assert last["values"]["status"] == status
