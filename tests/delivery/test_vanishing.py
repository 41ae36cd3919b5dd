"""A tracker's storage is removed mid-run, replaced, or restored from an older copy: everything that the
report counts as delivered can still be read back through the tracker's own SDK."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.file_tracker import FileTracker
from tests.support.journals import open_journal
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives
from tests.support.vanishing import options

SCENARIOS = [
    ("File", "removed"), ("File", "older"), ("File", "overwritten"), ("Aim", "removed"), ("Aim", "older"),
    ("Wandb", "removed"), ("Wandb", "older"), ("Mlflow", "removed"), ("Mlflow", "older"),
    ("Mlflow", "overwritten"), ("Tensorboard", "removed"), ("Tensorboard", "older"),
    ("Trackio", "removed"), ("Trackio", "older"),
    ("DvcLive", "removed"), ("DvcLive", "older"), ("SwanLab", "removed"), ("SwanLab", "older"),
    ("Comet", "removed"), ("Comet", "older"),
    ("Clearml", "removed"), ("Clearml", "older"),
]  # fmt: skip
STEPS = range(1, 13)


@pytest.mark.parametrize(("kind", "how"), SCENARIOS)
def test_a_storage_lost_mid_run_has_everything_in_the_end(kind: str, how: str, run_directory: Path) -> None:
    journal = open_journal(run_directory)
    for step in STEPS:
        journal.append("metrics", {"stage": "train", "step": step, "values": {"loss": step / 8}})
    journal.append("status", {"status": "finished"})
    journal.close()
    (run_directory.parent / "how").write_text(how)
    if kind == "Mlflow":
        store_in(run_directory.parent)
    reference = f"tests.support.vanishing:Vanishing{kind}"
    life = lives(kind.lower())
    deliver = functools.partial(life.deliver, run_directory, reference, options(kind))
    # MLflow's SQLite raises before the loss is detected, which takes one more process.
    assert [deliver() for _ in range(3 if kind == "Mlflow" else 2)][-1]

    stored = life.read(f"tests.support.stored:from_{kind.lower()}", run_directory.parent)
    points = sorted(point for point in stored["points"] if point[0] == "train/loss")
    assert points == [["train/loss", step, step / 8] for step in STEPS]
    (line,) = report(run_directory, ["t"])
    assert (line.delivered, line.total, line.state) == (13, 13, "complete")


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("damage", [remove, cut, replace])
def test_a_file_damaged_between_run_and_resume_has_everything_in_the_end(
    damage: Callable[[Path], None], run_directory: Path
) -> None:
    path = run_directory.parent / "m.jsonl"

    def deliver() -> None:
        tracker = FileTracker("file", {"path": str(path)})
        ledger = load_ledger(run_directory, "file") or Ledger("file")
        Delivery(run_directory, tracker, ledger).run(lambda: True)

    journal = open_journal(run_directory)
    for step in range(1, 6):
        journal.append("metrics", {"step": step, "values": {"loss": 1.0}})
    deliver()
    damage(path)
    journal.append("resume", {"step": 5})
    journal.append("metrics", {"step": 6, "values": {"loss": 1.0}})
    journal.append("status", {"status": "finished"})
    with pytest.raises(DeliveryFailed, match="its storage was removed") as failed:
        deliver()
    assert failed.value.again
    (line,) = report(run_directory, ["file"])
    assert "its storage was removed" in line.line()
    assert "delivered again" not in line.line()
    deliver()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "metrics"] == [1, 2, 3, 4, 5, 6]
    (line,) = report(run_directory, ["file"])
    assert (line.delivered, line.total, line.state) == (8, 8, "complete")
    assert "all of it was delivered again" in str(line.note)
