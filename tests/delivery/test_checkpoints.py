"""The models of checkpoints reach the trackers as they were saved, whatever happens to the checkpoints, to
hard links and to the process that hands them over; and their disk space is freed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.delivery.checkpoints import CheckpointDelivery
from fmstune.delivery.delivered_files import release_links
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Artifact
from tests.support.journals import events, open_journal
from tests.support.shipping import delivered_by


class Copying(Tracker):
    """Copies the files, as a service does."""

    takes_artifacts = True

    def __init__(self, name: str = "copying") -> None:
        super().__init__(name)
        self.got: list[tuple[str, dict[str, bytes]]] = []
        self.refuses = False

    def track_artifact(self, artifact: Artifact) -> None:
        if self.refuses:
            raise RuntimeError("not now")
        self.got.append(
            (artifact.name, {name: (artifact.folder / name).read_bytes() for name in artifact.files})
        )


def save(directory: Path, step: int, content: bytes) -> dict[str, Path]:
    folder = directory / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "optimizer.pt").write_bytes(b"o")
    return {"model.safetensors": folder / "model.safetensors"}


def handed(directory: Path, recorder: Recorder, said: list[str] | None = None) -> CheckpointDelivery:
    tell = [] if said is None else said
    return CheckpointDelivery(
        directory, ["copying"], recorder, lambda label, text: tell.append(text), tell.append
    )


def store(directory: Path) -> list[str]:
    folder = directory / TRACKING_DIR / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def no_links() -> Iterator[None]:
    with mock.patch("os.link", side_effect=OSError(errno.EXDEV, "cross-device")):
        yield


def test_a_rotated_checkpoint_arrives_and_its_disk_space_is_freed(
    run_directory: Path, recorder: Recorder
) -> None:
    made, said = [], list[str]()
    at_work = handed(run_directory, recorder, said)
    for step in (1, 2):
        saved = save(run_directory, step, content := bytes([step]) * 1000)
        at_work.add(run_directory / f"checkpoint-{step}", saved, step, "model")
        shutil.rmtree(run_directory / f"checkpoint-{step}")
        made.append((f"checkpoint-{step}", {"model.safetensors": content}))
    at_work.end(None)
    recorder.close("finished")
    assert len(store(run_directory)) == 2
    tracker = Copying()
    delivered_by(tracker, run_directory)
    assert tracker.got == made
    release_links(run_directory)
    assert store(run_directory) == []
    assert said == [f"checkpoint-{step}: 1 file, 0.0 MB" for step in (1, 2)]
    (line,) = report(run_directory, ["copying"])
    assert line.artifacts == "2 artifacts, 0.0 MB"


def test_without_hard_links_files_are_copied_and_arrive_though_the_checkpoint_is_deleted(
    run_directory: Path, recorder: Recorder, no_links: None
) -> None:
    said: list[str] = []
    at_work = handed(run_directory, recorder, said)
    release = threading.Event()
    work = at_work._work

    def later() -> None:
        release.wait()
        work()

    with mock.patch.object(at_work, "_work", later):
        for step in (1, 2):
            at_work.add(
                run_directory / f"checkpoint-{step}", save(run_directory, step, b"w%d" % step), step, "model"
            )
            shutil.rmtree(run_directory / f"checkpoint-{step}")
        release.set()
        at_work.end(None)
    recorder.close("finished")
    tracker = Copying()
    delivered_by(tracker, run_directory)
    assert [name for name, _ in tracker.got] == ["checkpoint-1", "checkpoint-2"]
    assert [got["model.safetensors"] for _, got in tracker.got] == [b"w1", b"w2"]
    (warning,) = [each for each in said if "hard link" in each]
    assert "take their size twice until they are delivered" in warning


def test_checkpoints_that_the_deadline_cuts_off_are_handed_over_by_the_resumed_run(
    run_directory: Path, recorder: Recorder
) -> None:
    said: list[str] = []
    at_work = handed(run_directory, recorder, said)
    at_work._stopped = True  # as if the deadline had passed
    at_work.add(run_directory / "checkpoint-1", save(run_directory, 1, b"w1"), 1, "model")
    at_work.end(0)
    assert said == ["checkpoint-1 is passed to the trackers when the run is resumed"]
    assert store(run_directory) == [".checkpoint-1.pending"]
    shutil.rmtree(run_directory / "checkpoint-1")
    again = handed(run_directory, recorder)
    assert again.resume_pending("model") == {"checkpoint-1"}
    again.end(None)
    (event,) = events(run_directory)
    assert (event.name, event.step, event.item["from"]) == ("checkpoint-1", 1, "checkpoint-1")


def test_a_full_disk_skips_only_the_hand_over_and_is_reported(
    run_directory: Path, recorder: Recorder
) -> None:
    said: list[str] = []
    at_work = handed(run_directory, recorder, said)
    saved = save(run_directory, 1, b"w1")
    with mock.patch.object(Path, "mkdir", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        at_work.add(run_directory / "checkpoint-1", saved, 1, "model")
    at_work.end(None)
    assert said == ["the model of checkpoint-1 is not passed to trackers: No space left on device"]
    (event,) = events(run_directory)
    assert event.item == {"type": "model", "lost": "No space left on device"}


def test_another_tracker_gets_the_freed_model_from_its_checkpoint_if_that_still_exists(
    run_directory: Path, recorder: Recorder
) -> None:
    at_work = handed(run_directory, recorder)
    for step in (1, 2):
        at_work.add(
            run_directory / f"checkpoint-{step}", save(run_directory, step, b"w%d" % step), step, "model"
        )
    at_work.end(None)
    recorder.close("finished")
    delivered_by(Copying(), run_directory)
    release_links(run_directory)
    shutil.rmtree(run_directory / "checkpoint-1")
    other = Copying("other")
    for _ in range(4):
        with contextlib.suppress(DeliveryFailed):
            Delivery(run_directory, other, load_ledger(run_directory, "other") or Ledger("other")).run(
                lambda: True
            )
    assert [(name, list(got)) for name, got in other.got] == [("checkpoint-2", ["model.safetensors"])]
    (line,) = report(run_directory, ["other"])
    assert "its links were removed after delivery" in str(line.error)
    assert line.artifacts == "1 of 2 artifacts, 0.0 of 0.0 MB"


def test_files_that_a_tracker_only_refers_to_stay_in_place(run_directory: Path, recorder: Recorder) -> None:
    at_work = handed(run_directory, recorder)
    at_work.add(run_directory / "checkpoint-1", save(run_directory, 1, b"w1"), 1, "model")
    at_work.end(None)
    recorder.close("finished")
    tracker = Copying()
    tracker.refers_to_files = True
    delivered_by(tracker, run_directory)
    release_links(run_directory)
    assert len(store(run_directory)) == 1


def test_the_time_limit_of_an_upload_grows_with_the_file_size(
    run_directory: Path, recorder: Recorder
) -> None:
    """A shipper is ended when a call does not return, and an upload takes minutes."""
    at_work = handed(run_directory, recorder)
    at_work.add(run_directory / "checkpoint-1", save(run_directory, 1, b"w" * 5_000_000), 1, "model")
    at_work.end(None)
    recorder.close("finished")
    patience = []

    class Slow(Copying):
        def track_artifact(self, artifact: Artifact) -> None:
            during = load_ledger(run_directory, "copying")
            assert during is not None
            patience.append(during.patience)
            (line,) = report(run_directory, ["copying"])
            assert line.artifacts == "0 of 1 artifact, 0.0 of 5.0 MB, 5.0 MB on their way"

    assert delivered_by(Slow(), run_directory).patience == 0
    assert patience == [10.0]


STEPS = st.lists(
    st.sampled_from(["save", "same step again", "rotate", "killed", "deliver", "refuse"]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(STEPS, st.booleans())
def test_every_checkpoint_arrives_once_as_it_was_saved(steps: list[str], links: bool) -> None:
    """In any order of saving, rotation, kills before anything was read, resumes and deliveries."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(
            os, "link", os.link if links else mock.Mock(side_effect=OSError(errno.EPERM, "no"))
        ),
    ):
        directory = Path(scratch, "run")
        (directory / TRACKING_DIR).mkdir(parents=True)
        recorder = Recorder(open_journal(directory), Redactor({}))
        Ledger("copying").save(directory)
        tracker, wanted, step = Copying(), list[tuple[str, bytes]](), 0
        at_work = handed(directory, recorder)

        def deliver() -> None:
            for _ in range(20):
                ledger = load_ledger(directory, "copying")
                assert ledger is not None
                try:
                    Delivery(directory, tracker, ledger, forgive=True).run(lambda: True)
                except DeliveryFailed:
                    continue
                break
            release_links(directory)

        def add(folder: Path) -> None:
            files = {"model.safetensors": folder / "model.safetensors"}
            at_work.add(folder, files, int(folder.name[11:]), "model")

        for do in steps:
            tracker.refuses = do == "refuse"
            if do in ("save", "same step again", "killed"):
                step += do != "same step again" or not step
                folder, content = directory / f"checkpoint-{step}", os.urandom(8)
                if do == "same step again":
                    at_work.end(None)
                shutil.rmtree(folder, ignore_errors=True)
                save(directory, step, content)
                at_work._stopped = do == "killed"
                add(folder)
                wanted.append((folder.name, content))
                if do == "killed":
                    at_work.end(0)
                    at_work = handed(directory, recorder)
                    done = at_work.resume_pending("model")
                    for name, content in dict(wanted).items():
                        if name in done:
                            continue
                        assert not links  # a copy that was not made
                        if (directory / name).exists():
                            add(directory / name)
                        else:
                            wanted.remove((name, content))
            elif do == "rotate":
                shutil.rmtree(directory / f"checkpoint-{step}", ignore_errors=True)
            else:
                at_work.end(None)
                deliver()
        at_work.end(None)
        recorder.close("finished")
        tracker.refuses = False
        deliver()
        got = [(name, files["model.safetensors"]) for name, files in tracker.got]
        assert sorted(got) == sorted(wanted)
        assert store(directory) == []
        recorder.journal.close()
