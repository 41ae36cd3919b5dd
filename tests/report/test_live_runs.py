"""A run goes on while others look at it: whatever it does between two lines of theirs, they report what was
true at some moment."""

from __future__ import annotations

import itertools
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fmstune.delivery import ledger as ledgers
from fmstune.delivery import report as reports
from fmstune.delivery.ledger import Ledger, highest_known
from fmstune.delivery.report import report
from fmstune.models import checkpoints
from fmstune.models.checkpoints import newest_checkpoint, newest_weights
from fmstune.models.locate import Place, locate, use
from fmstune.report import listing, replay, show, summary
from fmstune.report.listing import list_runs
from fmstune.report.show import view
from fmstune.trackers.records import MetricPoint
from tests.support.checkpoints import write_checkpoint
from tests.support.made_runs import end_run, start_run
from tests.support.moments import acting


@pytest.mark.parametrize(
    "status",
    [lambda run: list_runs([run])[0][0].status, lambda run: view(run).status],
    ids=["list", "show"],
)
def test_a_run_that_ends_while_it_is_looked_at_was_not_killed(
    status: Callable[[Path], str], tmp_path: Path
) -> None:
    seen = set()
    for moment in itertools.count(1):
        recorder = start_run(tmp_path / f"{moment}")
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
        with acting(moment, lambda: end_run(recorder), listing, replay, show, summary) as acted:  # noqa: B023
            seen.add(status(tmp_path / f"{moment}"))
        if not acted:
            end_run(recorder)
            break
    assert seen == {"running", "finished"}


def test_a_report_of_a_run_that_goes_on_misses_no_events_of_its_journal(tmp_path: Path) -> None:
    recorder = start_run(tmp_path)
    Ledger("slow").save(tmp_path)

    def go_on() -> None:
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
        last = recorder.journal.last_seq
        Ledger("fast", delivered=last, safe_delivered=last, total=last).save(tmp_path)

    go_on()
    for moment in itertools.count(1):
        with acting(moment, go_on, reports, ledgers) as acted:
            fast, slow = report(tmp_path, ["fast", "slow"])
        assert (fast.delivered <= fast.total, slow.delivered, slow.error) == (True, 0, "never reached"), acted
        if not acted:
            break
    end_run(recorder)


@dataclass
class Saving:
    """A run that keeps one checkpoint."""

    run: Path
    step: int = 0

    def __post_init__(self) -> None:
        Ledger("file").save(write_checkpoint(self.run / "first"))
        self.save()

    def save(self) -> None:
        """Place the next checkpoint, and remove the one before."""
        self.step += 1
        shutil.copytree(self.run / "first", self.run / "next")
        (self.run / "next").rename(self.newest)
        shutil.rmtree(self.run / f"checkpoint-{self.step - 1}", ignore_errors=True)

    @property
    def newest(self) -> Path:
        return self.run / f"checkpoint-{self.step}"


@pytest.mark.parametrize("newest", [newest_checkpoint, newest_weights])
def test_a_run_that_replaces_its_checkpoint_always_has_one(
    newest: Callable[[Path], Path | None], tmp_path: Path
) -> None:
    saving = Saving(tmp_path)
    for moment in itertools.count(1, 5):  # as pathlib has hundreds
        before = saving.newest
        with acting(moment, saving.save, checkpoints, pathlib) as acted:
            found = newest(tmp_path)
        assert found in (before, saving.newest), acted
        if not acted:
            break


def test_a_model_that_a_run_replaces_while_it_is_loaded_is_loaded_from_the_newer_checkpoint(
    tmp_path: Path,
) -> None:
    saving, loaded_from = Saving(tmp_path), list[str]()

    def load(place: Place) -> str:
        loaded_from.append(place.path)
        if len(loaded_from) < 3:
            saving.save()
        return load_file(f"{place.path}/model.safetensors")["weight"].dtype.__str__()

    assert use(str(tmp_path), locate(str(tmp_path)), load) == "torch.float32"
    assert loaded_from == [str(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3)]
    with pytest.raises(OSError, match="no-such-file"):
        use(str(tmp_path), locate(str(tmp_path)), lambda place: Path(place.path, "no-such-file").read_text())


def test_what_is_known_of_a_run_is_known_while_it_replaces_its_checkpoint(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    Ledger("fast", total=7).save(tmp_path)
    for moment in itertools.count(1, 5):  # as pathlib has hundreds
        with acting(moment, saving.save, ledgers, pathlib) as acted:
            assert highest_known(tmp_path) == 7
        if not acted:
            break
