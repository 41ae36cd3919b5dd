"""`fmstune runs import` of TensorBoard's event files: those of fmstune's own tracker, and of torch's
`SummaryWriter`; from damaged ones everything readable is imported, and the rest is reported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fmstune
from fmstune.delivery.recorder import Recorder, active
from fmstune.report.importing import Imported, import_run, runs_at
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.tensorboard_tracker import TensorBoardTracker
from tests.support.journals import events, journal_path
from tests.support.shipping import delivered_by


def imported(source: Path, into: Path) -> list[Imported]:
    return [import_run(past, into) for past in runs_at(str(source))]


def points(directory: Path) -> list[tuple[str, int | None, Any]]:
    return [
        (f"{event.stage}/{name}" if event.stage else name, event.step, value)
        for event in events(directory)
        if event.kind == "metrics"
        for name, value in event.values.items()
    ]


def params(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for event in events(directory):
        if event.kind == "params" and event.name != "imported":
            found[str(event.name)] = {**found.get(str(event.name), {}), **event.values}
    return found


def writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def test_what_the_tracker_wrote_is_imported(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    recorder.set_params({"team": "nlp", "a": {"b": 1e-4}}, "params")
    recorder.set_params({"torch": "2.13"}, "packages")
    recorder.track_point(MetricPoint({"loss": 2.0, "lr": 0.5}, "train", 1))
    with active(recorder):
        fmstune.track_text("Hello <b>\n```", "answer", "eval", step=1)
        fmstune.track_image([[0, 255]], "picture", step=1)
    recorder.track_point(MetricPoint({"loss": 1.0}, None, 2))
    recorder.close("failed", "ValueError: no")
    folder = tmp_path / "tb"
    delivered_by(TensorBoardTracker("tensorboard", {"dir": str(folder)}), run_directory)

    (made,) = imported(folder, tmp_path / "here")
    assert points(made.directory) == [("train/loss", 1, 2.0), ("train/lr", 1, 0.5), ("loss", 2, 1.0)]
    assert params(made.directory) == {
        "params": {"team": "nlp", "a": {"b": 1e-4}}, "packages": {"torch": "2.13"},
    }  # fmt: skip
    (text,) = [event for event in events(made.directory) if event.kind == "text"]
    assert (text.stage, text.name, text.step, text.item["text"]) == ("eval", "answer", 1, "Hello <b>\n```")
    final = events(made.directory)[-1]
    assert (final.status, final.error) == ("failed", "ValueError: no")
    assert made.past.lost == ("1 image not kept, the first of them picture",)
    assert made.past.name == "run"
    before = journal_path(made.directory).read_bytes()
    (again,) = imported(folder, tmp_path / "here")
    assert again.before
    assert journal_path(made.directory).read_bytes() == before
    # Round trip: the same tags, steps and values.
    delivered_by(TensorBoardTracker("back", {"dir": str(tmp_path / "back")}), made.directory)
    (back,) = imported(tmp_path / "back", tmp_path / "there")
    assert points(back.directory) == points(made.directory)


def test_runs_of_other_writers_are_imported_from_all_subfolders_also_linked_ones(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "deep").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    for name in ("a", "deep/b"):
        for start in (0, 2):  # like a resumed training
            with writer(tmp_path / name) as file:
                for step in (start, start + 1):
                    file.add_scalar("train/loss", 1 / (step + 1), step)
                    file.add_scalar("plain", step, step)
                file.add_text("args", '{"learning_rate": 0.1, "model": {"type": "x"}}')
                file.add_text("note", "Hello", 3)
                file.add_hparams({"lr": 0.1, "name": "x"}, {"hparam/loss": 1.0})
    found = {made.past.name: made for made in imported(tmp_path, tmp_path / "here")}
    assert set(found) == {"a", "deep/b"}
    for made in found.values():
        wanted = [
            (("train/loss", "plain")[n], step, (1 / (step + 1), step)[n]) for step in range(4) for n in (0, 1)
        ]
        got = [point for point in points(made.directory) if not point[0].startswith("hparam/")]
        assert [(key, step) for key, step, _ in got] == [(key, step) for key, step, _ in wanted]
        assert [value for *_, value in got] == pytest.approx([value for *_, value in wanted])
        assert params(made.directory) == {
            "args": {"learning_rate": 0.1, "model": {"type": "x"}}, "params": {"lr": 0.1, "name": "x"},
        }  # fmt: skip
        texts = [event for event in events(made.directory) if event.kind == "text"]
        assert [(each.name, each.step, each.item["text"]) for each in texts] == [("note", 3, "Hello")] * 2
        assert (
            made.past.lost
            == (
                "2 sessions of the same hyperparameters are taken for those of this run, which was resumed",
                "TensorBoard does not record how it ended: it is assumed finished",
            )[: len(made.past.lost)]
        )


def read_by_tensorboard(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The scalars of each run, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(root)).Reload()
    return {
        str(run): {
            tag: [(each.step, each.value) for each in found.Scalars(run, tag)] for tag in tags["scalars"]
        }
        for run, tags in found.Runs().items()
    }


def as_imported(root: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    runs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for past in runs_at(str(root)):
        scalars = runs.setdefault("." if past.name == root.name else past.name, {})
        for point in past.points:
            for name, value in point.values.items():
                tag = f"{point.stage}/{name}" if point.stage else name
                scalars.setdefault(tag, []).append((point.step or 0, value))
    return runs


def test_each_session_of_a_sweep_is_a_run_with_its_params(tmp_path: Path) -> None:
    with writer(tmp_path / "sweep") as file:  # as in the documentation of `add_hparams`
        for n in range(5):
            file.add_hparams(
                {"lr": 0.1 * n, "bsize": n}, {"hparam/accuracy": 10.0 * n, "hparam/loss": 10.0 * n}
            )
    found = list(runs_at(str(tmp_path / "sweep")))
    assert sorted(past.params["params"]["bsize"] for past in found) == [0, 1, 2, 3, 4]
    assert all(past.params["params"]["lr"] == 0.1 * past.params["params"]["bsize"] for past in found)
    wanted = {run: held for run, held in read_by_tensorboard(tmp_path / "sweep").items() if held}
    assert as_imported(tmp_path / "sweep") == wanted


@pytest.mark.parametrize("with_hparams", [True, False])
def test_a_run_in_a_folder_named_after_a_time_is_a_run(with_hparams: bool, tmp_path: Path) -> None:
    root = tmp_path / "ts"
    for n, folder in enumerate((root, root / "1700000000", root / "1700000001.5")):
        with writer(folder) as file:
            for step in range(3):
                file.add_scalar("train/loss", float(n), step)
            if with_hparams and folder != root:
                file.add_hparams({"lr": n}, {}, run_name=".")
    assert as_imported(root) == read_by_tensorboard(root)
    found = {past.name: past.params for past in runs_at(str(root))}
    assert found["1700000000"] == ({"params": {"lr": 1.0}} if with_hparams else {})


def test_sessions_with_other_params_are_not_part_of_the_enclosing_run(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as file:
        file.add_scalar("loss", 1.0, 1)
        for lr in (0.1, 0.2):
            file.add_hparams({"lr": lr}, {"score": 1.0})
        for lr in (0.3, 0.4):
            file.add_hparams({"lr": lr}, {}, run_name="same")
    found = {past.name: past for past in runs_at(str(tmp_path / "run"))}
    assert len(found) == 4
    assert [past.params for past in found.values() if past.name == "run"] == [{}]
    assert "the hyperparameter lr was written again: 0.4 is not kept" in found["same"].lost


def test_only_clearly_recognised_params_become_params(tmp_path: Path) -> None:
    said = [("answer", '{"a": 1}'), ("answer", '{"a": 2}'), ("args", '["x"]'), ("args", "plain")]
    with writer(tmp_path / "run") as file:
        for tag, text in said:
            file.add_text(tag, text, 0)
        file.add_text("args", '{"lr": 0.1, "seed": 1}')
        file.add_text("args", '{"lr": 0.2}')
        file.add_text("model_config", '{"layers": 2}')
    (past,) = runs_at(str(tmp_path / "run"))
    assert [(text.name, text.text) for text in past.texts] == said
    assert past.params == {"args": {"lr": 0.2, "seed": 1}, "model_config": {"layers": 2}}
    assert "args was written again with other values: the last of each is kept" in past.lost


def test_tracked_text_that_is_json_is_imported_as_text(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    recorder.set_params({"a": 1, "b": 1}, "data")
    recorder.set_params({"b": 2}, "data")
    with active(recorder):
        for text in ('{"a": 1}', '{"a": 2}'):
            fmstune.track_text(text, "answer", step=0)
    recorder.close("finished")
    delivered_by(TensorBoardTracker("tensorboard", {"dir": str(tmp_path / "tb")}), run_directory)
    (past,) = runs_at(str(tmp_path / "tb"))
    assert [text.text for text in past.texts] == ['{"a": 1}', '{"a": 2}']
    assert past.params == {"data": {"a": 1, "b": 2}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("tb")
    with writer(folder) as file:
        for step in range(20):
            file.add_scalar("train/loss", float(step), step)
    (path,) = folder.iterdir()
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_of_a_damaged_file_everything_readable_is_imported_and_the_rest_reported(
    whole: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(whole) - 1))
    how = data.draw(st.sampled_from(["cut off", "changed", "zeros behind"]))
    damaged = {
        "cut off": whole[:at],
        "changed": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "zeros behind": whole[:at] + bytes(len(whole) - at),
    }[how]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.out.tfevents.1.x")
        path.write_bytes(damaged)
        (past,) = runs_at(folder)
    assert "TensorBoard does not record how it ended: it is assumed finished" in past.lost
    got = [(point.step, point.values["loss"]) for point in past.points]
    assert set(got) <= {(step, float(step)) for step in range(20)}, "nothing is made up"
    assert got == sorted(got)
    if len(got) < 20 and not (how == "cut off" and at in _ends(whole)):
        assert any(path.name in each for each in past.lost)


def _ends(data: bytes) -> set[int]:
    at, found = 0, {0}
    while at < len(data):
        at += 16 + int.from_bytes(data[at : at + 8], "little")
        found.add(at)
    return found
