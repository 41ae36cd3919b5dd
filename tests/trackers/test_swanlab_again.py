"""SwanLab's cloud after kills, outages and restarts of a run, and with two runs of one id."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fmstune
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.swanlab_tracker import SwanLabTracker
from tests.support.journals import close_journals, journal_path, open_journal
from tests.support.shipping import delivered_by
from tests.support.swanlab_cloud import SwanLabCloud


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SwanLabCloud]:
    monkeypatch.chdir(tmp_path)
    with SwanLabCloud() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a complete delivery in this process."""
    return delivered_by(SwanLabTracker("swanlab", options), directory)


class _Killed(BaseException):
    """The end of a process, without any report."""


def killed(directory: Path) -> None:
    """Deliver what there is, and die instead of waiting for more; or the delivery has already failed."""

    def die(seconds: float) -> None:
        raise _Killed

    ledger = load_ledger(directory, "swanlab") or Ledger("swanlab")
    with pytest.raises((_Killed, DeliveryFailed)):
        Delivery(directory, SwanLabTracker("swanlab"), ledger).run(lambda: False, die)


def test_steps_lower_than_those_of_an_earlier_process_arrive(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    recorder.track(10.0, "x", "eval", step=10)
    killed(run_directory)
    for step in (5, 11):
        recorder.track(step, "x", "eval", step=step)
    recorder.close("finished")
    assert delivered(run_directory).changes == ()
    (run,) = cloud.runs.values()
    assert run.scalars == [("eval/x", 10, 10.0), ("eval/x", 5, 5.0), ("eval/x", 11, 11.0)]


def test_media_whose_upload_was_refused_are_sent_again(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    with active(recorder):
        for step in (1, 2, 3):
            fmstune.track_text(f"answer {step}", "answer", stage="eval", step=step)
    recorder.close("finished")
    cloud.refuses["/text/002-"] = 503
    with pytest.raises(DeliveryFailed):
        delivered(run_directory)
    cloud.refuses.clear()
    delivered(run_directory)
    (run,) = cloud.runs.values()
    assert [each["index"] for each in run.media] == [1, 2, 3]


def test_values_that_may_have_arrived_but_cannot_be_checked_are_reported(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    recorder.track(10.0, "x", "eval", step=10)
    killed(run_directory)
    recorder.track(5.0, "x", "eval", step=5)
    recorder.close("finished")
    cloud.fault = (7, "unanswered")
    with pytest.raises(DeliveryFailed):
        delivered(run_directory)
    assert cloud.requests[-1] == "POST /api/house/metrics"
    (change,) = delivered(run_directory).changes
    assert change.startswith("eval/x may lack values that came after later steps")
    (run,) = cloud.runs.values()
    assert run.scalars == [("eval/x", 10, 10.0), ("eval/x", 5, 5.0)]


def test_steps_that_are_logged_again_are_reported_in_a_later_process_too(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    for step in (1, 2, 3):
        recorder.track(step / 8, "loss", "train", step=step)
    recorder.close("interrupted")
    delivered(run_directory)
    recorder.resumed(1)
    recorder.track(0.5, "other", "train", step=1)
    killed(run_directory)
    recorder.track(0.75, "loss", "train", step=2)
    recorder.close("finished")
    said = "of steps that were logged again, SwanLab keeps the first values: of train/loss"
    assert said in delivered(run_directory).changes
    (run,) = cloud.runs.values()
    assert [each for each in run.scalars if each[0] == "train/loss"] == [
        ("train/loss", step, step / 8) for step in (1, 2, 3)
    ]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["acc_", "acc.", "text"]), st.integers(0, 3)),
        st.just(("kill", 0)),
        st.tuples(st.sampled_from(["refused", "unanswered"]), st.integers(0, 12)),
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=12, deadline=None)
@given(ACTIONS)
def test_whatever_fails_each_value_is_stored_once_under_its_name_or_reported(actions: list[Any]) -> None:
    directory = Path(tempfile.mkdtemp()) / "run"
    (directory / "tracking").mkdir(parents=True)
    try:
        with SwanLabCloud() as cloud, pytest.MonkeyPatch.context() as patch:
            for name, value in cloud.environment.items():
                patch.setenv(name, value)
            _play(cloud, directory, actions)
    finally:
        close_journals()
        shutil.rmtree(directory.parent)


def _play(cloud: SwanLabCloud, directory: Path, actions: list[Any]) -> None:
    recorder = Recorder(open_journal(directory), Redactor({}))
    tracked: list[tuple[str, int]] = []
    with active(recorder):
        for name, step in actions:
            if name in ("refused", "unanswered"):
                cloud.fault = (step, name)
                continue
            if name == "kill":
                if journal_path(directory).stat().st_size:
                    killed(directory)
                continue
            tracked.append((name, step))
            if name == "text":
                fmstune.track_text(f"{len(tracked)}", "text", "eval", step=step)
            else:
                recorder.track(float(len(tracked)), name, "eval", step=step)
        recorder.close("finished")
    with contextlib.suppress(DeliveryFailed):
        delivered(directory)
    cloud.fault = None
    changes = delivered(directory).changes
    (run,) = cloud.runs.values()
    there: dict[tuple[str, int], list[str]] = defaultdict(list)
    for key, step, value in run.scalars:
        there[tracked[int(value) - 1]].append(key)
        assert tracked[int(value) - 1][1] == step
    for each in run.media:
        there["text", each["index"]].append(each["key"])
    names = {name: {re.sub(r" \(\d+\)$", "", key) for key in keys} for (name, _), keys in there.items()}
    assert all(len(each) == 1 for each in names.values())
    assert len({key for each in names.values() for key in each}) == len(names)
    for place in set(tracked):
        keys = there[place]
        assert len(set(keys)) == len(keys) <= tracked.count(place)
        if len(keys) < tracked.count(place):
            assert any("may lack values" in each for each in changes), (place, keys, changes)


def of_run(directory: Path, name: str, value: float) -> Path:
    """The folder of a finished run with one value at each of three steps."""
    folder = directory / name
    (folder / "tracking").mkdir(parents=True)
    journal = JournalWriter(journal_path(folder), Header(f"id-{name}", name, time.time(), "."))
    for step in (1, 2, 3):
        journal.append("metrics", {"stage": "eval", "step": step, "values": {"x": value}})
    journal.append("status", {"status": "finished"})
    journal.close()
    return folder


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("resume", ["", "allow"])
def test_a_second_run_with_the_same_id_is_a_separate_run(
    mode: str, resume: str, cloud: SwanLabCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_RUN_ID", "mine")
    monkeypatch.setenv("SWANLAB_RESUME", resume)
    first, second = (
        delivered(of_run(tmp_path, name, value), mode=mode) for name, value in (("a", 1.0), ("b", 2.0))
    )
    assert (first.run_id, second.run_id == "mine") == ("mine", False)
    assert (second.note or "").startswith("a run of its own there, as another run continues mine")
    if mode == "online":
        assert [{value for *_, value in run.scalars} for run in cloud.runs.values()] == [{1.0}, {2.0}]
    else:
        assert len(list(Path("swanlog").glob("run-*"))) == 2


@pytest.mark.parametrize(
    ("resume", "words"),
    [("never", "SWANLAB_RESUME does not allow"), ("allow", None), ("must", None)],
)
def test_a_users_run_is_continued_as_swanlab_resume_says(
    resume: str, words: str | None, cloud: SwanLabCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_RUN_ID", "theirs")
    monkeypatch.setenv("SWANLAB_RESUME", resume)
    if resume == "must":
        with pytest.raises(DeliveryFailed, match="there is no run theirs"):
            delivered(of_run(tmp_path, "early", 0.5))
    cloud.reply("POST", ["projects", "ada"], {"name": "fmstune"})
    made = {"cuid": "theirs", "name": "theirs"}
    cloud.reply("POST", ["project", "ada", "fmstune", "experiment"], made)
    cloud.runs["theirs"].scalars.append(("eval/x", 2, 9.0))
    ledger = delivered(of_run(tmp_path, "a", 1.0))
    assert (ledger.run_id == "theirs") == (words is None)
    assert words is None or words in (ledger.note or "")
    theirs = [("eval/x", 2, 9.0)] + ([] if words else [("eval/x", 3, 1.0)])
    assert cloud.runs["theirs"].scalars == theirs
    if words is None:
        said = "of steps that were logged again, SwanLab keeps the first values: of eval/x"
        assert said in ledger.changes


def test_swanlab_resume_without_an_id_is_refused(
    cloud: SwanLabCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_RESUME", "must")
    with pytest.raises(DeliveryFailed, match="there is no SWANLAB_RUN_ID"):
        delivered(of_run(tmp_path, "a", 1.0))


def test_two_runs_of_a_process_do_not_share_points(
    cloud: SwanLabCloud, run_directory: Path, recorder: Recorder
) -> None:
    """Points of one step from two processes are joined by one `train/global_step`."""
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 3))
    killed(run_directory)
    recorder.track_point(MetricPoint({"reward": 1.0}, "train", 3))
    recorder.close("finished")
    delivered(run_directory)
    (run,) = cloud.runs.values()
    assert run.scalars == [
        ("train/loss", 3, 1.0), ("train/global_step", 3, 3.0), ("train/reward", 3, 1.0),
    ]  # fmt: skip
