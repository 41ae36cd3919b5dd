"""TensorBoard's tracker, read back through TensorBoard's own `EventAccumulator`."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.summary.writer.record_writer import RecordWriter

import fmstune
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint, RunStart, Status, Table
from fmstune.trackers.registry import get_tracker
from fmstune.trackers.tensorboard.media import unfenced
from fmstune.trackers.tensorboard.records import framed
from fmstune.trackers.tensorboard_tracker import TensorBoardTracker
from tests.support.journals import open_journal
from tests.support.readers import event_accumulator
from tests.support.shipping import delivered_by

SESSION = "_hparams_/session_start_info"
SUCCESS, FAILURE = 1, 2


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(TensorBoardTracker("tensorboard", options), directory)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = event_accumulator(folder)
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def texts(folder: Path, tag: str) -> list[list[str]]:
    return [
        [text.decode() for text in each.tensor_proto.string_val]
        for each in event_accumulator(folder).Tensors(tag)
    ]


def hparams(folder: Path) -> dict[str, Any]:
    from tensorboard.plugins.hparams import metadata

    about = event_accumulator(folder).summary_metadata[SESSION]
    start = metadata.parse_session_start_info_plugin_data(about.plugin_data.content)
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def ended(folder: Path) -> int:
    from tensorboard.plugins.hparams import metadata

    about = event_accumulator(folder).summary_metadata[metadata.SESSION_END_INFO_TAG]
    return int(metadata.parse_session_end_info_plugin_data(about.plugin_data.content).status)


@pytest.mark.parametrize(
    ("status", "there"),
    [("finished", SUCCESS), ("failed", FAILURE), ("interrupted", FAILURE)],
)
def test_a_run_is_stored_in_the_form_that_tensorboard_users_expect(
    status: Status, there: int, recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"team": "nlp", "a": {"b": 1e-4, "c": [1, "x"], "on": True}}, "params")
    recorder.set_params({"torch": "2.13"}, "packages")
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 2))
    recorder.track(0.5, "f1(macro)", "mine", step=2)
    recorder.track_table(Table("samples", ({"prompt": "hi", "answer": "a|*b*"}, {"prompt": "x"}), "eval", 2))
    recorder.close(status, "ValueError: no" if status == "failed" else None)
    ledger = delivered(run_directory)

    folder = Path("tensorboard/run").resolve()
    assert ledger.run_id == str(folder)
    assert ledger.note == "`tensorboard --logdir tensorboard` shows it"
    assert scalars(folder) == {
        "train/loss": [(1, 1.0), (2, 0.5)], "eval/loss": [(2, 3.0)], "mine/f1(macro)": [(2, 0.5)],
    }  # fmt: skip
    journal = JournalReader(run_directory / TRACKING_DIR / JOURNAL_NAME)
    times = [event.time for event in journal if event.stage == "train"]
    assert [each.wall_time for each in event_accumulator(folder).Scalars("train/loss")] == times
    ((text,),) = texts(folder, "params")
    assert json.loads(text.strip("`json\n")) == {
        "team": "nlp", "a": {"b": 1e-4, "c": [1, "x"], "on": True},
    }  # fmt: skip
    assert hparams(folder) == {
        "params.team": "nlp", "params.a.b": 1e-4, "params.a.c": '[1, "x"]', "params.a.on": True,
    }  # fmt: skip
    (table,) = event_accumulator(folder).Tensors("eval/samples")
    assert [dim.size for dim in table.tensor_proto.tensor_shape.dim] == [3, 2]
    assert texts(folder, "eval/samples") == [["prompt", "answer", "hi", "a|*b*", "x", ""]]
    assert ended(folder) == there
    assert texts(folder, "status") == [["failed: ValueError: no" if status == "failed" else status]]


def test_a_resumed_run_continues_and_repeated_steps_are_stored_once(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"lr": 1}, "params")
    for step in (1, 2, 3):
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
    recorder.close("interrupted")
    first = delivered(run_directory)
    assert ended(Path("tensorboard/run")) == FAILURE
    recorder.resumed(1)
    recorder.set_params({"new": 3}, "params")
    for step in (2, 3):
        recorder.track_point(MetricPoint({"loss": 0.5}, "train", step))
    recorder.close("finished")
    second = delivered(run_directory)
    assert (second.run_id, second.changes) == (first.run_id, ())
    assert [path.name for path in Path("tensorboard").iterdir()] == ["run"]
    folder = Path("tensorboard/run")
    assert scalars(folder) == {"train/loss": [(1, 1.0), (2, 0.5), (3, 0.5)]}
    assert hparams(folder) == {"params.lr": 1.0, "params.new": 3.0}
    assert ended(folder) == SUCCESS


def test_points_delivered_twice_are_stored_once_even_after_a_kill_within_a_record(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"lr": 1}, "params")
    for step in range(1, 6):
        recorder.track_point(MetricPoint({"loss": 1.0}, "train", step))
    recorder.close("finished")
    ledger = delivered(run_directory)
    (file,) = Path("tensorboard/run").glob("*tfevents.1[0-9]*")
    for cut in (0, 40, 100):  # into the status, and into the last point before it
        file.write_bytes(file.read_bytes()[: file.stat().st_size - cut])
        Ledger("tensorboard", run_id=ledger.run_id).save(run_directory)
        delivered(run_directory)
        assert scalars(Path("tensorboard/run")) == {"train/loss": [(step, 1.0) for step in range(1, 6)]}
        assert len(texts(Path("tensorboard/run"), "params")) == 1


def test_run_labels_are_hyperparameters() -> None:
    labels: dict[str, Any] = {"group": "sweep", "tags": ("a", "b\ud800"), "notes": "first try"}
    TensorBoardTracker().open(RunStart("run", ".", run_id="id-1", **labels))
    found = {"run.group": "sweep", "run.tags": "a, b\\ud800", "run.notes": "first try"}
    assert hparams(Path("tensorboard/run")) == found


def start(
    name: str = "run", run_id: str = "id-1", tracker_run: str | None = None, after: int = 0
) -> RunStart:
    return RunStart(name, ".", tracker_run, run_id=run_id, after=after)


def test_a_process_killed_after_opening_the_run_leaves_no_second_one() -> None:
    first = TensorBoardTracker().open(start())
    assert TensorBoardTracker().open(start()).id == first.id
    assert TensorBoardTracker().open(start(run_id="id-2")).id == f"{first.id}-2"  # a new run of that name


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 300, "half\ud800", "nul\0"])
def test_any_run_name_becomes_a_folder_within_the_folder_of_runs(name: str) -> None:
    found = Path(str(TensorBoardTracker().open(start(name)).id))
    assert found.parent == Path("tensorboard").resolve()


def test_the_second_run_resumed_from_a_checkpoint_gets_its_own_folder() -> None:
    def resumed(run_id: str) -> TensorBoardTracker:
        tracker = TensorBoardTracker()
        opened = tracker.open(start("run", run_id, first, 5))
        tracker.seq = 6
        tracker.track_point(MetricPoint({"loss": 2.0}, "train", 6))
        tracker.flush()
        notes.append(str(opened.note))
        return tracker

    notes: list[str] = []
    first = TensorBoardTracker().open(start()).id
    for run_id in ("id-2", "id-3"):
        resumed(run_id)
    assert "another run continues" in notes[1]
    assert "another run continues" not in notes[0]
    assert (
        scalars(Path("tensorboard/run")) == scalars(Path("tensorboard/run-2")) == {"train/loss": [(6, 2.0)]}
    )


def test_values_that_single_precision_cannot_represent_are_reported(
    recorder: Recorder, run_directory: Path
) -> None:
    values = {
        "big": 1e300,
        "huge": 10**400,
        "count": 2**24 + 1,
        "float": 16777217.0,
        "fine": 2**24,
        "inf": float("inf"),
    }
    recorder.track_point(MetricPoint(values, "train", 1))
    recorder.close("finished")
    ledger = delivered(run_directory)
    assert ledger.changes == (
        "metric big was beyond 3.4e38 at times; those points are in the journal only",
        "metric huge was beyond 3.4e38 at times; those points are in the journal only",
        "metric count has integers beyond 24 bits, which are rounded",
        "metric float has integers beyond 24 bits, which are rounded",
    )
    assert scalars(Path("tensorboard/run")) == {
        "train/count": [(1, 2.0**24)], "train/float": [(1, 2.0**24)], "train/fine": [(1, 2.0**24)],
        "train/inf": [(1, float("inf"))],
    }  # fmt: skip


def test_a_metric_a_table_and_params_of_one_name_are_three_tags_and_reported(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"a": 1}, "data")
    recorder.track(1.0, "data", step=1)
    recorder.track_table(Table("data", ({"x": 1},), None, 1))
    recorder.track(1.0, SESSION, step=1)
    recorder.close("finished")
    ledger = delivered(run_directory)
    folder = Path("tensorboard/run")
    assert set(scalars(folder)) == {"data_", f"{SESSION}_"}
    assert texts(folder, "data__") == [["x", "1"]]
    assert ledger.changes == (
        "data is called data_, as there is a text of that name",
        "data is called data__, as there is a text of that name",
        f"{SESSION} is called {SESSION}_, as there is the session of that name",
    )


def test_several_values_of_a_step_are_kept_and_what_is_plotted_is_reported(
    recorder: Recorder, run_directory: Path
) -> None:
    for step in (2, 2, 1):
        recorder.track(float(step), "reward", "train", step=step)
    recorder.close("finished")
    said = "of several values of train/reward at one step, or at an earlier one, TensorBoard draws the last"
    assert delivered(run_directory).changes == (f"{said}; --load_fast=false draws all",)
    assert scalars(Path("tensorboard/run")) == {"train/reward": [(2, 2.0), (2, 2.0), (1, 1.0)]}


def test_standalone_it_needs_no_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    tracker = get_tracker("tensorboard", run_name="mine")
    tracker.track(0.5, "f1", "eval", step=1)
    tracker.set_params({"a": {"b": None}})
    tracker.close("finished")
    assert scalars(tmp_path / "logs" / "mine") == {"eval/f1": [(1, 0.5)]}
    assert hparams(tmp_path / "logs" / "mine") == {"params.a.b": "None"}


def test_it_needs_neither_torch_nor_tensorflow() -> None:
    code = """
import sys
from fmstune.trackers.registry import get_tracker
tracker = get_tracker("tensorboard")
tracker.track(1.0, "loss", "train", step=1)
tracker.set_params({"a": 1})
tracker.close("finished")
print([name for name in ("torch", "tensorflow", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("where", "state", "said"),
    [
        ("new/folder", "ok", "writes event files, will be created"),
        (".", "ok", "writes event files"),
        ("a-file/logs", "bad_option", "is not a folder"),
        ("/proc/x", "no_permission", "cannot be written to"),
        ("gs://bucket/logs", "bad_option", "is not a folder of this machine"),
    ],
)
def test_the_check_distinguishes_causes_and_creates_nothing(
    where: str, state: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "a-file").touch()
    found = get_tracker("tensorboard", dir=where).check(4)
    assert (found.state, said in found.detail) == (state, True), found
    assert bool(found.remedy) == (state != "ok")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize("text", ["plain", "```python\nx\n```", "a <b>tag</b>\n\n* item", "````", ""])
def test_text_is_displayed_unchanged(text: str, recorder: Recorder, run_directory: Path) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    with active(recorder):
        fmstune.track_text(text, "answer", "eval", step=1)
    recorder.close("finished")
    delivered(run_directory)
    ((shown,),) = texts(Path("tensorboard/run"), "eval/answer")
    assert unfenced(shown) == text
    page = markdown_to_safe_html(shown)
    code = re.fullmatch(r"<pre><code>(.*)</code></pre>\s*", page, re.S)
    assert code is not None, page
    assert html.unescape(code[1]).rstrip("\n") == text


def test_a_webp_becomes_a_png_and_dropped_files_are_reported(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.webp", lossless=True)
    with active(recorder):
        fmstune.track_image(tmp_path / "a.webp", "a", step=1)
        fmstune.track_artifact(tmp_path / "a.webp")
    recorder.close("finished")
    ledger = delivered(run_directory)
    (image,) = event_accumulator(Path("tensorboard/run")).Images("a")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (3, 2)
    assert ledger.changes == ("the artifact a.webp stays in the journal only: this tracker stores no files",)


@given(st.lists(st.binary(max_size=60) | st.binary(min_size=1000, max_size=1100), max_size=40))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_have_the_checksums_that_tensorboard_computes(records: list[bytes]) -> None:
    written = io.BytesIO()
    writer = RecordWriter(written)
    for data in records:
        writer.write(data)
    assert framed(records) == written.getvalue()


# The third failure of the same event would set it aside.
@given(
    failures=st.lists(
        st.tuples(st.sampled_from(["point", "flush"]), st.integers(1, 30)), max_size=4, unique=True
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_temporary_failure_anywhere_delays_events_but_loses_none(
    failures: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / TRACKING_DIR).mkdir()
    recorder = Recorder(open_journal(run), Redactor({}))
    for step in range(1, 31):
        recorder.track_point(MetricPoint({"loss": float(step)}, "train", step))
    recorder.close("finished")
    for fails, at in [*failures, ("never", 0), ("never", 0)]:  # one process each, one after another
        tracker = TensorBoardTracker("tensorboard", {"dir": str(run / "tb")})
        point, flush = tracker.track_point, tracker.flush

        def track_point(given: MetricPoint, of: str = fails, seq: int = at, to: Any = point) -> None:
            if of == "point" and given.seq == seq:
                raise MemoryError("once")
            to(given)

        def flushed(of: str = fails, to: Any = flush) -> None:
            if of == "flush":
                raise OSError("No space left on device")
            to()

        tracker.track_point, tracker.flush = track_point, flushed  # type: ignore[method-assign]
        ledger = load_ledger(run, "tensorboard") or Ledger("tensorboard")
        with contextlib.suppress(DeliveryFailed):
            Delivery(run, tracker, ledger).run(lambda: True)
    recorder.journal.close()
    ledger = load_ledger(run, "tensorboard")
    assert ledger is not None
    assert ledger.state == "complete", ledger.error
    (folder,) = (run / "tb").iterdir()
    assert sorted(scalars(folder)["train/loss"]) == [(step, float(step)) for step in range(1, 31)]
