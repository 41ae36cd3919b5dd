"""The tracker `file`: every event exactly once, where the user says, readable with only `json` and `csv`."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.trackers.file.formats import CSV_COLUMNS
from fmstune.trackers.file_tracker import FileTracker
from fmstune.trackers.records import MetricPoint, TrackerError
from tests.support import commands
from tests.support.tracked_files import ID, OTHER, deliver, opened, read_csv, read_json


def test_json_lines_hold_every_event(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.jsonl"
    tracker = opened(path)
    tracker.seq = 1
    tracker.track_point(MetricPoint({"loss": 1.0, "lr": 0.1}, "train", 1, 0.5, 1.5, 1))
    tracker.seq = 2
    tracker.set_params({"a": {"b": 1}}, "params")
    tracker.seq = 3
    tracker.close("failed", "ValueError: x")
    lines = read_json(path)
    assert [line["kind"] for line in lines] == ["metrics", "params", "status"]
    assert lines[0] == {
        "run": "run-1", "run_id": ID, "seq": 1, "time": 1.5, "kind": "metrics", "stage": "train", "step": 1,
        "epoch": 0.5, "values": {"loss": 1.0, "lr": 0.1},
    }  # fmt: skip
    assert lines[1]["values"] == {"a": {"b": 1}}
    assert lines[2]["values"] == {"status": "failed", "error": "ValueError: x"}


def test_csv_has_one_value_per_row_so_that_new_metrics_need_no_new_column(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    tracker = opened(path)
    tracker.track_point(MetricPoint({"loss": 0.5, "lr": 0.1}, "train", 1))
    tracker.track(0.5, "late, with a comma", "eval", step=9)
    tracker.set_params(
        {"team": "nlp", "r": 8, "version": "12", "tags": ["a"], "none": None, "yes": True}, "p"
    )
    tracker.close("finished")
    rows = read_csv(path)
    assert [(row["name"], row["value"]) for row in rows] == [
        ("loss", 0.5), ("lr", 0.1), ("late, with a comma", 0.5), ("team", "nlp"), ("r", 8), ("version", "12"),
        ("tags", ["a"]), ("none", None), ("yes", True), ("status", "finished"),
    ]  # fmt: skip
    assert "nlp," in path.read_text()  # a string that is not JSON is stored unchanged


# -- existing content --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_a_kill_at_any_byte_and_a_full_redelivery_leave_each_event_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    deliver(path)
    whole = path.read_bytes()
    stamp = path.stat().st_size - len(whole.rsplit(b"\n", 2)[1])  # the status line has its own time
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        deliver(path)
        assert path.read_bytes()[: stamp - 1] == whole[: stamp - 1], size
        assert path.read_bytes().count(b"\n") == whole.count(b"\n"), size


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_the_next_run_of_the_same_name_is_another_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    deliver(path, upto=9, run_id=OTHER)
    tracker = opened(path)
    for seq in (1, 2):
        tracker.seq = seq
        tracker.track_point(MetricPoint({"loss": seq}, "train", seq))
        tracker.flush()
    deliver(path, upto=3)  # resumed
    read = read_json if name.endswith("jsonl") else read_csv
    steps = [row["seq"] for row in read(path) if row["run_id"] == ID and row["kind"] == "metrics"]
    assert sorted(set(map(int, steps))) == [1, 2, 3]


def test_a_delivery_recognizes_its_events_by_run_id_though_another_run_had_its_name(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.jsonl"
    before = opened(path, OTHER, run_directory.name)
    for seq in range(1, 9):
        before.seq = seq
        before.track(0.0, "loss", step=seq)
        before.flush()
    for step in (1, 2, 3):
        recorder.track(1.0, "loss", step=step)
    recorder.close("finished")
    for _ in range(2):  # the second one has no record of the first
        tracker = FileTracker(tracker_config={"path": str(path)})
        ledger = Ledger("file", run_id=str(path))
        Delivery(run_directory, tracker, ledger).run(lambda: True)
    rows = [row for row in read_json(path) if row["run_id"] != OTHER]
    assert [(row["run_id"], row["seq"]) for row in rows] == [("id-1", seq) for seq in (1, 2, 3, 4)]


def test_a_run_is_closed_with_its_status_though_the_journal_has_later_events(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.jsonl"
    recorder.track(1.0, "loss", step=1)
    recorder.close("finished")
    recorder.journal.close()
    with recorder.journal.path.open("ab") as file:  # as a thread that outlived its run did
        file.write(b'{"seq":3,"time":1.0,"kind":"metrics","values":{"late":1.0}}\n')
    Delivery(run_directory, FileTracker(tracker_config={"path": str(path)}), Ledger("file")).run(lambda: True)
    assert [row["kind"] for row in read_json(path)] == ["metrics", "metrics", "status"]
    assert read_json(path)[-1]["values"]["status"] == "finished"


def test_an_event_refused_at_first_is_written_after_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for seq in (1, 3, 2, 2):
        tracker = opened(path)
        tracker.seq, tracker.event_time = seq, 1e9 + seq
        tracker.track(seq, "loss")
        tracker.flush()
    assert [row["seq"] for row in read_json(path)] == [1, 3, 2]


def test_closing_again_adds_no_second_status(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    deliver(path)
    opened(path).close("finished")
    tracker = opened(path)
    tracker.seq = 9
    tracker.track(1.0, "late")
    tracker.close("finished")  # under the number of an event other than the status
    rows = read_json(path)
    assert [row["kind"] for row in rows] == ["metrics"] * 3 + ["status", "metrics", "status"]
    assert [row.get("seq") for row in rows] == [1, 2, 3, 4, 9, None]


def test_several_runs_share_a_file_and_each_recognizes_its_own_events(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    one, two = opened(path, ID, "one"), opened(path, OTHER, "two")
    for seq in (1, 2):
        for tracker in (one, two):
            tracker.seq, tracker.event_time = seq, 1e9 + seq
            tracker.track(math.pi, "loss")
            tracker.flush()
    with path.open("a") as file:
        file.write('{"run": "one", "run_id": "')  # a third run was killed here
    for run_id, name in ((ID, "one"), (OTHER, "two")):
        again = opened(path, run_id, name)
        again.seq, again.event_time = 2, 1e9 + 2
        again.track(math.pi, "loss")
        again.flush()
    assert [(row["run"], row["seq"]) for row in read_json(path)] == [
        ("one", 1), ("two", 1), ("one", 2), ("two", 2),
    ]  # fmt: skip


# -- existing files -------------------------------------------------------------------------------

OLD = "run,seq,time,kind,stage,step,epoch,name,value\r\n"


def test_a_csv_of_an_earlier_version_keeps_its_rows_and_gets_the_new_column(tmp_path: Path) -> None:
    path, link = tmp_path / "m.csv", tmp_path / "link.csv"
    old = 'run-1,1,1.5,metrics,train,1,0.5,loss,0.5\r\n"a, b",2,1.5,params,p,,,text,"two\nlines"\r\n'
    path.write_text(OLD + old, newline="")
    path.chmod(0o640)
    link.symlink_to(path)
    deliver(link, upto=1)
    rows = read_csv(path)
    assert path.read_bytes().splitlines()[0] == ",".join(CSV_COLUMNS).encode()
    assert [row["value"] for row in rows] == [0.5, "two\nlines", 1.0, 0.1, "finished"]
    assert [row["run_id"] for row in rows] == [None, None, ID, ID, ID]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.csv", "m.csv"]


def test_a_truncated_cell_of_an_earlier_version_swallows_no_later_row(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(OLD + 'run-1,2,1.5,params,p,,,text,"two\nli', newline="")
    deliver(path, upto=1)
    assert [row["name"] for row in read_csv(path)] == ["text", "loss", "lr", "status"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "step,loss\n1,0.5\n"),
        ("m.csv", "step,loss"),
        ("m.jsonl", "# Notes\n"),
        ("m.jsonl", "notes"),
        ("m.jsonl", '[\n{"a": 1}\n]'),
        ("m.jsonl", '{\n"a": 1\n}'),
        ("m.jsonl", "step,loss\n1,0.5\n"),
    ],
)
def test_nothing_is_appended_to_a_file_of_another_kind(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    found = FileTracker(tracker_config={"path": str(path)}).check(1)
    assert found.state == "bad_option"
    assert "choose another file" in found.remedy
    with pytest.raises(TrackerError, match="choose another path"):
        opened(path)
    assert path.read_text() == content


def test_a_last_line_whose_newline_an_editor_removed_is_kept(tmp_path: Path) -> None:
    for name in ("m.jsonl", "m.csv"):
        path = tmp_path / name
        deliver(path, upto=1, run_id=OTHER)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        opened(path)
        assert path.read_bytes() == whole


def test_an_unwritable_path_is_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    found = FileTracker(tracker_config={"path": str(tmp_path / "file" / "m.jsonl")}).check(1)
    assert found.state == "bad_option"
    assert "trackers.file.path" in found.remedy
    assert FileTracker(tracker_config={"path": str(tmp_path / "folder")}).check(1).state == "bad_option"
    assert FileTracker(tracker_config={"path": str(tmp_path / "new" / "m.jsonl")}).check(1).ok
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    deliver(path, upto=1)
    whole = path.read_bytes()
    pid = os.fork()
    if pid == 0:  # a limit on this process would persist
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, len(whole) + 20))
        tracker = opened(path)
        tracker.seq = 7
        try:
            tracker.track_point(MetricPoint({"loss": 1.0, "lr": 2.0}, "train", 1))
            tracker.flush()
        except OSError:
            os._exit(42)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert path.read_bytes() == whole


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/proc/x/y", "/proc/self/m.jsonl", "/sys/m.jsonl"])
def test_the_check_detects_where_no_file_can_be_created(path: str) -> None:
    found = FileTracker(tracker_config={"path": path}).check(1)
    assert found.state == "no_permission"
    assert "cannot be written to" in found.detail


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    assert FileTracker(tracker_config={"path": str(tmp_path / "new" / "m.jsonl")}).check(1).ok
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_params_and_statuses_of_a_diverging_resume_are_written_though_the_clock_was_set_back(
    tmp_path: Path, name: str
) -> None:
    def session(who: str, moment: float, status: str) -> None:
        tracker = opened(tmp_path / name)
        tracker.seq, tracker.event_time = 5, moment
        tracker.set_params({"kept": 1, "who": who}, "params")
        tracker.flush()
        tracker.seq, tracker.event_time = 6, moment + 1
        tracker.close(status)  # type: ignore[arg-type]

    # The folder was restored from a backup: the diverging resume reuses the numbers of the first one.
    session("future 1", 1000.0, "finished")
    session("future 2", 900.0, "interrupted")
    text = (tmp_path / name).read_text()
    assert [text.count(said) for said in ("future 1", "future 2", "finished", "interrupted")] == [1] * 4
    session("future 2", 900.0, "interrupted")
    assert (tmp_path / name).read_text() == text
    # Earlier versions wrote the time of delivery, which is later than that of the event.
    session("future 1", 990.0, "finished")
    assert (tmp_path / name).read_text() == text


def test_a_closed_file_that_lacks_a_line_is_detected_though_its_size_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for other, whole in ((b"0.25", True), (b"0.7e", False)):
        tracker = opened(path)
        tracker.track_points(iter([MetricPoint({"x": 0.25}, "train", n, n / 2, 1.5, n) for n in (1, 2)]))
        tracker.seq = 3
        tracker.close("finished")
        assert tracker.holds(2)
        path.write_bytes(path.read_bytes().replace(b"0.25", other, 1))
        assert tracker.holds(2) == whole
        path.unlink()


def test_a_path_that_no_file_can_have_fails_the_check(tmp_path: Path) -> None:
    option = f"trackers.file.path={'a' * 300}"
    done = commands.fmstune("trackers", "check", "file", "--set", option, cwd=tmp_path, life="")
    assert done.returncode == 3
    assert "bad option: its check failed: aaa" in done.stdout
    assert "…" in done.stdout
    assert ": File name too long" in done.stdout
    assert "use another path" in done.stdout
