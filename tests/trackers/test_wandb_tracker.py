"""W&B's tracker offline, with the real SDK: its files are read back."""

from __future__ import annotations

import dataclasses
import math
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import wandb

from fmstune import get_tracker
from fmstune.delivery.recorder import Recorder
from fmstune.trackers import wandb_tracker
from fmstune.trackers.records import MetricPoint, RunStart, TrackerError
from fmstune.trackers.wandb.log_file import is_complete
from fmstune.trackers.wandb_tracker import WandbTracker
from tests.support.nurseries import run_code
from tests.support.readers import WandbRun, read_wandb_offline, wandb_offline_dirs
from tests.support.shipping import delivered_by
from tests.support.wandb_isolation import FAKE_KEY, SECRET, children, isolate_wandb, point, start

pytestmark = pytest.mark.usefixtures("isolated_wandb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one complete offline run, as the tests below expect it; created once."""
    world = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate_wandb(world, monkeypatch)
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        monkeypatch.setenv("WANDB_NOTES", "from the environment")
        monkeypatch.setattr(sys, "argv", ["fmstune", "train", "--hub-token", SECRET])
        options = {"mode": "offline", "project": "demo", "group": "g1", "tags": ("a", "b")}
        tracker = WandbTracker(tracker_config=options)
        opened = tracker.open(start())
        assert opened.id is not None
        assert opened.url is None
        tracker.set_params({"lora": {"r": 8, "targets": ["q", "v"]}}, "params")
        tracker.set_params({"team": "nlp"}, "params")
        tracker.track_point(MetricPoint({"loss": 2.5, "lr": 1e-4}, "train", 10, 0.5, 1.7e9, 5))
        tracker.track_point(MetricPoint({"loss": 2.25}, "eval", 10, seq=6))
        tracker.seq = 9
        tracker.track(0.75, "custom")
        tracker.track_point(MetricPoint({"loss": math.nan}, "train", 20, 1.0, seq=11))
        tracker.close("failed", "CUDA out of memory")
        wandb.teardown()
    return world / "here"


@pytest.fixture(scope="module")
def offline_dir(folder: Path) -> Path:
    (run,) = wandb_offline_dirs(folder)
    return run


@pytest.fixture(scope="module")
def offline(offline_dir: Path) -> WandbRun:
    return read_wandb_offline(offline_dir)


def test_a_metric_is_named_by_its_stage_and_a_metric_without_stage_keeps_its_name(
    offline: WandbRun,
) -> None:
    assert offline.history[0]["train/loss"] == 2.5
    assert offline.history[0]["train/lr"] == 1e-4
    assert offline.history[1]["eval/loss"] == 2.25
    assert offline.history[2]["custom"] == 0.75


def test_rows_have_the_numbers_of_the_journal(offline: WandbRun) -> None:
    assert [row["_step"] for row in offline.history] == [5, 6, 9, 11]


def test_rows_carry_step_epoch_and_the_time_of_the_point(offline: WandbRun) -> None:
    first = offline.history[0]
    assert (first["train/global_step"], first["train/epoch"], first["_timestamp"]) == (
        10,
        0.5,
        1.7e9,
    )


def test_nan_is_kept(offline: WandbRun) -> None:
    assert math.isnan(float(offline.history[3]["train/loss"]))


def test_params_are_nested_under_their_name_and_merged(offline: WandbRun) -> None:
    assert offline.config == {
        "params": {"lora": {"r": 8, "targets": ["q", "v"]}, "team": "nlp"},
    }


def test_options_are_used_and_unset_ones_are_left_to_the_environment(
    offline: WandbRun,
) -> None:
    assert offline.fields["project"] == "demo"
    assert offline.fields["run_group"] == "g1"
    assert offline.fields["tags"] == ("a", "b")
    assert offline.fields["notes"] == "from the environment"
    assert offline.fields["display_name"] == "tune-7"


def test_the_status_and_the_error_are_in_the_summary(offline: WandbRun) -> None:
    assert offline.exit_code == 1
    assert offline.summary["fmstune/status"] == "failed"
    assert offline.summary["fmstune/error"] == "CUDA out of memory"


def test_neither_environment_nor_command_line_nor_packages_are_in_the_run(
    folder: Path, offline: WandbRun
) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        for planted in (SECRET, FAKE_KEY, "--hub-token", "DATABASE_URL"):
            assert planted.encode() not in content, path
    assert not offline.kinds & {"environment", "files"}


_CUT_OFF = """
import os, signal, sys
from fmstune.trackers.base import MetricPoint, RunStart
from fmstune.trackers.wandb.log_file import is_complete
from fmstune.trackers.wandb_tracker import WandbTracker

tracker = WandbTracker(tracker_config={"mode": "offline"})
tracker.open(RunStart("tune-7", ".", "abc123"))
for seq in range(1, 401):
    tracker.track_point(MetricPoint({"loss": 1.0}, "train", seq, seq=seq))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_and_repeated_delivery_leaves_one_folder_with_each_point_once() -> None:
    assert run_code(_CUT_OFF, tracker="wandb").returncode == -9
    (cut_off,) = wandb_offline_dirs(Path())
    assert read_wandb_offline(cut_off).exit_code is None
    foreign = cut_off.with_name("offline-run-20260101_000000-abc123")  # not opened by fmstune
    shutil.copytree(cut_off, foreign)
    (foreign / "fmstune-open").unlink()

    tracker = WandbTracker(tracker_config={"mode": "offline"})
    tracker.open(start("abc123", redelivery=True))
    for seq in range(1, 401):
        tracker.track_point(point(seq))
    tracker.close("finished")

    kept, whole = wandb_offline_dirs(Path())
    assert kept == foreign
    assert [row["_step"] for row in read_wandb_offline(whole).history] == list(range(1, 401))
    assert read_wandb_offline(whole).exit_code == 0


_KILLED_AFTER_ITS_END = """
import os, sys
from pathlib import Path
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.trackers.wandb.log_file import is_complete
from fmstune.trackers.wandb_tracker import WandbTracker

directory = Path(sys.argv[1])
tracker = WandbTracker("wandb", {"mode": "offline"})
close = tracker.close

def close_and_die(*how):
    close(*how)
    os._exit(9)

tracker.close = close_and_die
Delivery(directory, tracker, load_ledger(directory, "wandb") or Ledger("wandb")).run(lambda: True)
"""


def test_a_kill_between_the_end_of_a_run_and_its_record_leaves_one_folder(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"a": 1}, "params")
    recorder.track(1.0, "loss", "train", step=1)
    recorder.close("interrupted")
    assert run_code(_KILLED_AFTER_ITS_END, str(run_directory), tracker="wandb").returncode == 9
    assert len(wandb_offline_dirs(Path())) == 1
    delivered_by(WandbTracker("wandb", {"mode": "offline"}), run_directory)
    (first,) = wandb_offline_dirs(Path())
    recorder.resumed(1)  # this is a second folder, and the only one redelivered
    recorder.track(0.5, "loss", "train", step=2)
    recorder.close("finished")
    assert run_code(_KILLED_AFTER_ITS_END, str(run_directory), tracker="wandb").returncode == 9
    delivered_by(WandbTracker("wandb", {"mode": "offline"}), run_directory)
    folders = wandb_offline_dirs(Path())
    assert folders[0] == first
    losses = [[row["train/loss"] for row in read_wandb_offline(each).history] for each in folders]
    assert losses == [[1.0], [0.5]]


def test_a_resumed_offline_run_continues_in_a_second_folder_of_the_same_id() -> None:
    run_id = None
    for seqs in ((1, 2), (3, 4)):
        tracker = WandbTracker(tracker_config={"mode": "offline"})
        run_id = tracker.open(start(run_id, redelivery=run_id is not None)).id
        for seq in seqs:
            tracker.track_point(point(seq))
        tracker.close("finished")
    first, second = map(read_wandb_offline, wandb_offline_dirs(Path()))
    assert first.id == second.id == run_id
    assert [row["_step"] for row in first.history + second.history] == [1, 2, 3, 4]


def test_a_resumed_run_whose_earlier_folder_was_sent_and_removed_says_that_the_new_one_is_without_it(
    recorder: Recorder, run_directory: Path
) -> None:
    for step in (1, 2):
        recorder.track(1 / step, "loss", "train", step=step)
        recorder.close("finished")
        changes = delivered_by(WandbTracker("wandb", {"mode": "offline"}), run_directory).changes
        if step == 1:
            assert changes == ()
            shutil.rmtree(wandb_offline_dirs(Path())[0])
            recorder.resumed(1)
    where = Path("wandb").absolute()
    assert changes == (
        f"{where} no longer has the folders with its earlier events; the new one is without them",
    )


def test_the_system_metrics_are_those_of_the_training_process() -> None:
    tracker = WandbTracker(tracker_config={"mode": "offline"})
    tracker.open(RunStart("tune-7", ".", trainer_pid=1))
    assert tracker._run is not None
    assert tracker._run.settings.x_stats_pid == 1
    assert not tracker._run.settings.x_disable_stats
    tracker.close("finished")


def test_the_note_of_an_offline_run_sends_its_folders_in_the_order_of_their_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id, now = None, time.time()
    for seqs, clock in (((1, 2), now + 86_400), ((3, 4), now), ((5, 6), now + 60)):  # it is set back
        with monkeypatch.context() as during:
            during.setattr(time, "time", lambda clock=clock: clock)
            tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "my runs"})
            opened = tracker.open(start(run_id))
            run_id = opened.id
        for seq in seqs:
            tracker.seq = seq
            tracker.track_point(point(seq))
        tracker.close("finished")
        said = (opened.note or "").partition("`")[2].rstrip("`").split(" && ")
        folders = [Path(shlex.split(each.removeprefix("wandb sync "))[0]) for each in said]
        rows = [row["_step"] for each in folders for row in read_wandb_offline(each).history]
        assert rows == list(range(1, seqs[-1] + 1))


def test_a_folder_that_was_not_begun_completely_is_removed_or_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    tracker = WandbTracker(tracker_config={"mode": "offline"})
    with monkeypatch.context() as during:
        during.setattr("fmstune.trackers.wandb.files.mark", full)
        with pytest.raises(OSError, match="No space left"):
            tracker.open(start("own"))
    assert not wandb_offline_dirs(Path())
    (left := Path("wandb/offline-run-20260101_000000-own")).mkdir()
    (left / "run-own.wandb").touch()  # by a killed process
    begun = dataclasses.replace(start(), new_run_id="own")
    cut_off = WandbTracker(tracker_config={"mode": "offline"})
    cut_off.open(begun)  # and by one that was killed before the ledger knew its run
    shutil.copytree(cut_off._run.dir + "/..", "left")  # type: ignore[union-attr]
    cut_off.close("finished")
    shutil.rmtree(wandb_offline_dirs(Path())[1])
    Path("left").rename("wandb/offline-run-20260101_000001-own")
    shutil.copytree("wandb/offline-run-20260101_000001-own", "wandb/offline-run-20260101_000002-own")
    Path("wandb/offline-run-20260101_000002-own/fmstune-open").write_text("")  # the disk was full
    tracker = WandbTracker(tracker_config={"mode": "offline"})
    note = tracker.open(begun).note or ""
    tracker.seq = 1
    tracker.track_point(point(1))
    tracker.close("finished")
    assert (note.count("wandb sync"), "20260101" in note) == (1, False)
    assert wandb_offline_dirs(Path())[0] == left
    assert len(wandb_offline_dirs(Path())) == 2
    assert tracker.is_stored(dataclasses.replace(begun, tracker_run_id="own"), 1)


def test_a_file_that_w_and_b_could_not_write_completely_is_not_counted_as_delivered() -> None:
    tracker = WandbTracker(tracker_config={"mode": "offline"})
    before = children()
    tracker.open(start())
    for pid in map(int, children() - before):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # as if its disk were full
    for seq in range(1, 2000):
        tracker.seq = seq
        tracker.track_point(point(seq))
    with pytest.raises(OSError, match="did not write all of"):
        tracker.close("finished")


def test_a_file_is_complete_only_with_all_of_its_records(offline_dir: Path, tmp_path: Path) -> None:
    (file,) = offline_dir.glob("*.wandb")
    assert is_complete(file)
    whole, changed = file.read_bytes(), tmp_path / "changed.wandb"
    for at in (0, 3, 7, 100, len(whole) - 1):
        changed.write_bytes(whole[:at])
        assert not is_complete(changed)
        changed.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
        assert not is_complete(changed)


def test_a_run_that_the_sdk_stores_elsewhere_is_not_counted_as_delivered(
    monkeypatch: pytest.MonkeyPatch, isolated_wandb: Path
) -> None:
    (isolated_wandb / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(isolated_wandb / "tmp"))
    monkeypatch.setattr(
        wandb_tracker, "require_writable", lambda *_: None
    )  # as if the disk failed afterwards
    Path("file").touch()
    tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "file/below"})
    with pytest.raises(OSError, match=r"could not write to .*file/below/wandb and went to .*/tmp/wandb/"):
        tracker.open(start())


def test_offline_in_an_unwritable_folder_is_an_error() -> None:
    Path("file").touch()
    tracker = WandbTracker(tracker_config={"mode": "offline", "dir": "file/below"})
    with pytest.raises(TrackerError, match="is not a folder"):
        tracker.open(start())


@pytest.mark.parametrize("variable", ["WANDB_MODE=disabled", "WANDB_DISABLED=true", "WANDB_DISABLED=1"])
def test_disabled_mode_accepts_everything_stores_nothing_and_says_so(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("=", 1))
    tracker = WandbTracker()
    found, opened = tracker.check(1), tracker.open(start())
    assert found.ok
    assert found.detail == opened.note
    assert "nothing is sent to W&B" in found.detail
    assert ("WANDB_DISABLED" in found.detail) == ("WANDB_DISABLED" in variable)
    assert opened.url is None
    tracker.set_params({"a": 1}, "params")
    tracker.track_point(point(1))
    tracker.close("finished")
    assert not list(Path().iterdir())


def test_a_run_of_the_scripts_own_is_another_one_whichever_is_open() -> None:
    def own_run() -> wandb.Run:
        run = wandb.init(mode="offline", project="mine")
        run.log({"mine": 1})
        return run

    with own_run():
        tracker = get_tracker("wandb", mode="offline", name="ours")
        tracker.track(0.5, "loss", "train", step=1)
    with own_run():
        tracker.track(0.25, "loss", "train", step=2)
    tracker.close("finished")
    runs = [read_wandb_offline(path) for path in wandb_offline_dirs(Path())]
    (ours,) = (run for run in runs if run.fields["display_name"] == "ours")
    assert [row.get("train/loss") for row in ours.history] == [0.5, 0.25]
    assert [[row.get("mine") for row in run.history] for run in runs if run is not ours] == [[1], [1]]


def test_importing_the_tracker_does_not_import_wandb() -> None:
    code = "import sys, fmstune.trackers.wandb_tracker; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
