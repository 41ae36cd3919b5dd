"""Children that the training forks write to its journal without damaging it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import fmstune
from fmstune.delivery.journal.reader import JournalReader, is_being_written, last_event
from fmstune.delivery.recorder import Recorder, active
from tests.support.journals import journal_path, open_journal


def forked(work: Callable[[], None]) -> int:
    """A child that does this, and nothing else."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def names(directory: Path) -> list[str]:
    events = list(JournalReader(journal_path(directory)))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [name for event in events for name in event.values]


def test_everything_that_parent_and_children_track_at_the_same_time_arrives_once(
    recorder: Recorder, run_directory: Path
) -> None:
    def track(who: str) -> None:
        for count in range(100):
            fmstune.track(count, who, "train")

    with active(recorder):
        children = [forked(functools.partial(track, f"child-{number}")) for number in range(4)]
        track("parent")
        assert [ended(child) for child in children] == [0] * 4
        fmstune.track(1.0, "last")
    counted = Counter(names(run_directory))
    assert counted == {"parent": 100, "last": 1, **{f"child-{number}": 100 for number in range(4)}}
    assert recorder.journal.unrecorded == 0


def test_a_deleted_journal_is_written_again_in_order_with_the_events_of_children(
    recorder: Recorder, run_directory: Path
) -> None:
    """A tracker that accepts no row after later ones would refuse those of the parent."""
    with active(recorder):
        for _ in range(2):
            fmstune.track(1.0, "parent")
            assert ended(forked(lambda: fmstune.track(1.0, "child"))) == 0
        journal_path(run_directory).unlink()
        recorder.journal.tend()
    assert names(run_directory) == ["parent", "child", "parent", "child"]


def test_a_child_forked_while_another_thread_writes_does_not_wait_for_its_lock(
    recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder), recorder.journal._lock:  # as if another thread held it
        assert ended(forked(lambda: fmstune.track(1.0, "child"))) == 0
    assert names(run_directory) == ["child"]


def test_a_killed_child_does_not_stop_its_parent_and_no_number_repeats(
    recorder: Recorder, run_directory: Path
) -> None:
    def track_for_ever() -> None:
        while True:
            fmstune.track(1.0, "child")

    with active(recorder):
        for count in range(10):
            child = forked(track_for_ever)
            before = recorder.journal.last_seq
            while recorder.journal.last_seq < before + 5:
                fmstune.track(1.0, "parent")
            os.kill(child, signal.SIGKILL)
            ended(child)
            fmstune.track(float(count), "after")
    assert Counter(names(run_directory))["after"] == 10


def test_a_stopped_child_does_not_stop_the_training(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmstune.delivery.journal.family._SECONDS_TO_WAIT", 1.0)
    said: list[str] = []
    recorder.journal._on_problem = said.append

    def stop_while_writing() -> None:
        recorder.journal._family.acquire()
        os.kill(os.getpid(), signal.SIGSTOP)
        recorder.journal._family.release()

    child = forked(stop_while_writing)
    os.waitpid(child, os.WUNTRACED)
    began = time.monotonic()
    for count in range(20):
        recorder.track(float(count), "meanwhile")
    recorder.journal.tend()
    assert time.monotonic() - began < 15, "they wait once in total, not once each"
    assert recorder.journal.unrecorded == 20
    assert "a stopped process holds" in said[0]
    os.kill(child, signal.SIGCONT)
    assert ended(child) == 0
    recorder.track(2.0, "afterwards")
    assert names(run_directory) == ["meanwhile"] * 20 + ["afterwards"]
    assert recorder.journal.unrecorded == 0


def test_a_worker_of_a_pool_tracks_and_its_exit_does_not_end_the_run(
    recorder: Recorder, run_directory: Path
) -> None:
    with active(recorder), multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(fmstune.track, [(float(n), "worker") for n in range(10)], chunksize=1)
        pool.close()
        pool.join()
        fmstune.track(1.0, "parent")
    assert Counter(names(run_directory)) == {"worker": 10, "parent": 1}


def test_a_child_that_closes_everything_of_the_run_closes_nothing_of_its_parent(
    recorder: Recorder, run_directory: Path
) -> None:
    def close() -> None:
        recorder.journal.close()
        os.closerange(3, 256)

    assert ended(forked(close)) == 0
    assert is_being_written(journal_path(run_directory))
    recorder.track(1.0, "parent")
    assert names(run_directory) == ["parent"]


def test_files_closed_under_the_journal_are_reopened(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    recorder.track(1.0, "before")
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, recorder.journal._file._file)
    recorder.track(2.0, "after")
    os.close(recorder.journal._file._file)
    recorder.track(3.0, "last")
    os.close(other)
    recorder.journal.tend()
    assert names(run_directory) == ["before", "after", "last"]
    assert recorder.journal.unrecorded == recorder.journal.lost == 0


@pytest.mark.parametrize("when", ["closed", "open"])
def test_what_a_child_cannot_write_is_counted(
    when: str, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    if when == "closed":
        begin, go = os.pipe()

        def late() -> None:
            os.read(begin, 1)
            recorder.track(1.0, "late")

        child = forked(late)
        recorder.journal.close()
        os.write(go, b"x")
        ended(child)
    else:

        def without_room() -> None:
            size = journal_path(run_directory).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            recorder.track(1.0, "no room")

        ended(forked(without_room))
    assert recorder.journal.unrecorded == 1
    assert names(run_directory) == []


def test_what_children_and_threads_track_after_the_status_is_counted_and_not_written(
    recorder: Recorder, run_directory: Path
) -> None:
    began, begin = os.pipe()
    ended_run, end = os.pipe()

    def track_before_and_after() -> None:
        recorder.track(1.0, "child")
        os.write(begin, b"x")
        os.read(ended_run, 1)
        for _ in range(3):
            recorder.track(1.0, "late")

    child = forked(track_before_and_after)
    os.read(began, 1)
    recorder.close("finished")
    os.write(end, b"x")
    assert ended(child) == 0
    recorder.track(2.0, "late")
    recorder.journal.close()
    recorder.track(3.0, "late")
    *before, last = JournalReader(journal_path(run_directory))
    assert [name for event in before for name in event.values] == ["child"]
    assert (last.kind, last.status) == ("status", "finished")
    assert recorder.journal.late == recorder.journal.unrecorded == 5


def test_nothing_follows_the_status_though_children_track_all_the_time(
    recorder: Recorder, run_directory: Path
) -> None:
    def track_for_ever() -> None:
        while not recorder.journal.late:
            recorder.track(1.0, "child")

    children = [forked(track_for_ever) for _ in range(3)]
    while recorder.journal.last_seq < 50:
        time.sleep(0.001)
    recorder.close("finished")
    assert [ended(child) for child in children] == [0, 0, 0]
    last = last_event(journal_path(run_directory))
    assert last is not None
    assert last.kind == "status"


ORPHAN = """
import os, sys, time
from pathlib import Path
import fmstune
from fmstune.delivery.recorder import Recorder, active
from fmstune.secrets.redaction import Redactor
from tests.support.journals import open_journal
with active(Recorder(open_journal(Path(sys.argv[1])), Redactor({}))):
    child = os.fork()
    if child:
        print(child, flush=True)
        time.sleep(600)
    while True:
        fmstune.track(1.0, "orphan")
        time.sleep(0.001)
"""


def test_a_worker_that_outlives_a_killed_training_neither_locks_the_run_nor_writes_to_it(
    run_directory: Path,
) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(run_directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert trainer.stdout is not None
    orphan = int(trainer.stdout.readline())
    try:
        path = journal_path(run_directory)
        while path.read_bytes().count(b"\n") < 10:
            time.sleep(0.01)
        trainer.kill()
        os.waitid(os.P_PID, trainer.pid, os.WEXITED | os.WNOWAIT)
        os.kill(orphan, 0)
        assert not is_being_written(path)
        again = open_journal(run_directory)
        for _ in range(100):
            again.append("metrics", {"values": {"resumed": 1}})
            time.sleep(0.001)
        again.close()
        assert Counter(names(run_directory))["resumed"] == 100
    finally:
        os.kill(orphan, signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()


SPAWNED = """
import fmstune
fmstune.track(1.0, "spawned")
fmstune.set_params({"a": 1})
"""


def test_a_process_that_is_not_forked_is_warned_once_that_it_records_nothing(recorder: Recorder) -> None:
    with active(recorder):
        done = subprocess.run([sys.executable, "-c", SPAWNED], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert f"training (process {os.getpid()}): call fmstune.track there" in done.stderr
    done = subprocess.run([sys.executable, "-c", SPAWNED], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_children_do_not_touch_trackers_in_the_training_process(recorder: Recorder) -> None:
    class Guest:
        def give(self, *arguments: object) -> None:
            os._exit(9)

    recorder.in_process.append(Guest())  # type: ignore[arg-type]
    assert ended(forked(lambda: recorder.track(1.0, "child"))) == 0


def test_threads_and_forks_together_lose_nothing(recorder: Recorder, run_directory: Path) -> None:
    stop = threading.Event()
    written = Counter[str]()

    def track() -> None:
        while not stop.is_set():
            recorder.track(1.0, "thread")
            written["thread"] += 1

    thread = threading.Thread(target=track)
    thread.start()
    for _ in range(5):
        assert ended(forked(lambda: recorder.track(1.0, "child"))) == 0
    stop.set()
    thread.join()
    assert Counter(names(run_directory)) == {"thread": written["thread"], "child": 5}
