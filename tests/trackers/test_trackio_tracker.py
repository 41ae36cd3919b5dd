"""trackio's tracker, locally and against a real server, read back through trackio's own storage."""

from __future__ import annotations

import dataclasses
import http.server
import io
import itertools
import pathlib
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fmstune
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.sync import sync
from fmstune.testing.runs import events_of
from fmstune.trackers.records import MetricPoint, RunStart, Table, TrackerOptionError
from fmstune.trackers.registry import get_tracker, reference
from fmstune.trackers.trackio import stores
from fmstune.trackers.trackio_tracker import TrackioTracker, _stamp
from tests.support.aim_servers import free_port
from tests.support.moments import acting
from tests.support.nurseries import lives
from tests.support.shipping import delivered_by
from tests.support.trackio_servers import TOKEN, trackio_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder that contains its folder `trackio`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    with trackio_server(folder / "trackio", port):
        yield f"http://127.0.0.1:{port}", folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(TrackioTracker("trackio", options), directory)


def rows(project: str = "fmstune") -> list[dict[str, Any]]:
    """The rows of the only run of a local project, without those that only carry its config."""
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(project)
    found = SQLiteStorage.get_logs(project, run_id=run["id"])
    return [row for row in found if row.keys() - {"step", "timestamp"}]


def config(project: str = "fmstune") -> dict[str, Any]:
    """The config of the only run of a local project."""
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(project)
    return SQLiteStorage.get_run_config(project, run_id=run["id"]) or {}


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_run_is_stored_in_the_form_that_trackio_users_expect(
    status: Any, recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked who the user is")

    monkeypatch.setattr(huggingface_hub, "whoami", asked)
    recorder.set_params({"team": "nlp", "a": {"b": 1e-4}}, "params")
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 7, 0.5, 1_790_000_000.25))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 7))
    recorder.close(status, "ValueError: no" if status == "failed" else None)
    ledger = delivered(run_directory, project="p")
    assert ledger.note == "`trackio show --project p` shows it"
    first, second = rows("p")
    moments = [event.time for event in events_of(run_directory) if event.kind == "metrics"]
    assert datetime.fromisoformat(first.pop("timestamp")).timestamp() == pytest.approx(
        moments[0], abs=1e-5, rel=0
    )
    assert first == {"step": 7, "train/loss": 2.0, "train/global_step": 7, "train/epoch": 0.5}
    assert (second["eval/loss"], second["step"]) == (3.0, 7)
    held = config("p")
    assert held["params"] == {"team": "nlp", "a": {"b": 1e-4}}
    assert (held["status"], held.get("error")) == (status, "ValueError: no" if status == "failed" else None)
    assert capfd.readouterr() == ("", "")


def test_a_run_with_only_params_is_stored(recorder: Recorder, run_directory: Path) -> None:
    recorder.set_params({"team": "nlp"}, "params")
    recorder.close("finished")
    delivered(run_directory)
    assert config()["params"] == {"team": "nlp"}


def test_a_resumed_run_continues_and_keeps_its_params(recorder: Recorder, run_directory: Path) -> None:
    recorder.set_params({"a": {"x": 1}}, "params")
    recorder.set_params({"rows": 4}, "data")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)
    recorder.resumed(1)
    recorder.set_params({"a": {"y": 2}}, "params")
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    assert [row["train/loss"] for row in rows()] == [1.0, 0.5]
    held = config()
    assert (held["params"], held["data"]) == ({"a": {"x": 1, "y": 2}}, {"rows": 4})
    assert held["status"] == "finished"


def test_two_diverging_resumes_of_a_run_are_two_runs(recorder: Recorder, run_directory: Path) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)

    def resume(run_id: str) -> tuple[str | None, str | None]:
        tracker = get_tracker("trackio")
        found = tracker.open(RunStart("run", ".", first.run_id, run_id=run_id, after=first.delivered))
        tracker.seq = first.delivered + 1
        tracker.track(0.5, "loss", "train", step=2)
        tracker.close("finished")
        return found.id, found.note

    assert resume("id-2")[0] == first.run_id
    other, noted = resume("id-3")
    assert other != first.run_id
    assert noted is not None
    assert noted.startswith("a run of its own there")


def test_a_deleted_run_is_delivered_again(recorder: Recorder, run_directory: Path) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("finished")
    recorder.journal.close()
    (first,) = sync(run_directory, "trackio", {}, reference, check_within=300)
    SQLiteStorage.delete_run("fmstune", "run", run_id=first.run_id)
    (again,) = sync(run_directory, None, {}, reference, check_within=300)
    assert again.state == "complete"
    assert [row["train/loss"] for row in rows()] == [1.0]
    assert config()["status"] == "finished"


def test_a_name_stays_below_trackios_folder(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "png")
    with active(recorder):
        fmstune.track_image(data.getvalue(), "i", "eval", step=1)
    recorder.close("finished")
    ledger = delivered(run_directory, name="../../../x")
    assert "the run is called _.._.._x, as its name is a part of paths there" in ledger.changes
    pictures = {path.parent for path in tmp_path.rglob("*.png")}
    assert tmp_path / "trackio" / "media" / "fmstune" / "_.._.._x" / "1" in pictures
    assert len(pictures) == 2  # with the one next to the journal


def test_on_a_network_file_system_trackios_inbox_is_used(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trackio.fragments import import_inbox_dir

    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    recorder.set_params({"a": 1}, "params")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)
    recorder.resumed(1)
    recorder.set_params({"b": 2}, "data")
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    assert not list(Path("trackio").glob("*.db"))
    import_inbox_dir()
    assert [row["train/loss"] for row in rows() if "train/loss" in row] == [1.0, 0.5]
    held = config()
    assert (held["params"], held["data"], held["status"]) == ({"a": 1}, {"b": 2}, "finished")


def test_a_run_is_held_while_the_dashboard_loads_its_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    from trackio.fragments import import_inbox_dir

    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    for moment in itertools.count(1, 4):  # as pathlib has many
        run, store = f"run{moment}", stores.LocalStore("p")
        store.write(run, "named", [stores.Row({"loss": 1.0}, 1, _stamp(1.0), f"{moment}")], {"a": 1})
        with acting(moment, import_inbox_dir, stores, pathlib) as loaded:
            assert store.held(run) == stores.Held("named", {"a": 1}), loaded
        if not loaded:
            break


def test_standalone_it_needs_no_journal() -> None:
    tracker = get_tracker("trackio", project="alone")
    tracker.track(0.5, "f1(macro)", "eval", step=1)
    tracker.set_params({"a": {"b": None}})
    tracker.set_params({"c": 1})
    tracker.open(RunStart("named", "."))
    tracker.track(0.25, "f1(macro)", "eval", step=2)
    tracker.close("finished")
    assert [(row["train/global_step"], row["eval/f1(macro)"]) for row in rows("alone")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert config("alone")["params"] == {"a": {"b": None}, "c": 1}


# -- a server ---------------------------------------------------------------------------------


def test_a_server_stores_everything_once_even_when_redelivered(
    server: tuple[str, Path], recorder: Recorder, run_directory: Path,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    address, folder = server
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{address}/?write_token={TOKEN}")
    given = tmp_path / "given"
    given.mkdir()
    (given / "ü.bin").write_bytes(bytes(range(256)))
    picture = io.BytesIO()
    Image.new("RGB", (2, 1), (255, 0, 0)).save(picture, "png")
    with active(recorder):
        fmstune.set_params({"a": {"b": [1, float("nan")]}})
        fmstune.track(1.0, "loss", "train", step=1)
        fmstune.track(float("inf"), "loss", "train", step=2)
        fmstune.track_table([{"prompt": "hi", "n": 1}], "samples", stage="eval")
        fmstune.track_text("text", "answer", "eval", step=1)
        fmstune.track_image(picture.getvalue(), "sample", "eval", step=1, caption="red")
        fmstune.track_histogram([0.0, 1.0, 1.0], "weights", "train", step=1, bins=2)
        fmstune.track_artifact(given, "things", type="dataset")
    recorder.close("failed", "RuntimeError: it had to be")
    ledger = delivered(run_directory)
    assert ledger.url == f"{address}/?project=fmstune"
    assert TOKEN not in (run_directory / "tracking" / "trackio.json").read_text()
    Ledger("trackio", run_id=ledger.run_id).save(run_directory)  # like one that was restored from a backup
    delivered(run_directory)

    stored = lives("trackio").read("tests.support.stored:from_trackio", folder)
    assert sorted(map(repr, stored["points"])) == ["['train/loss', 1, 1.0]", "['train/loss', 2, inf]"]
    assert stored["params"]["params"] == {"a": {"b": [1, "NaN"]}}
    assert (stored["tables"], stored["status"]) == ([["eval/samples", 0, ["prompt: hi\nn: 1"]]], "failed")
    assert lives("trackio").read("tests.support.media:from_trackio", folder) == [
        ["text", "eval/answer", 1, "text"],
        ["image", "eval/sample", 1, [[[[255, 0, 0], [255, 0, 0]]], "red"]],
        ["histogram", "train/weights", 1, [[1, 2], 0.0, 1.0]],
    ]
    files = lives("trackio").read("tests.support.media:files_from_trackio", folder)
    assert files == {f"things-{ledger.run_id}/ü.bin": bytes(range(256)).decode("latin-1")}


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server that is not trackio's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        do_POST = do_GET

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


GOOD, BAD = {"TRACKIO_WRITE_TOKEN": TOKEN}, {"TRACKIO_WRITE_TOKEN": "no"}


@pytest.mark.parametrize(
    ("where", "options", "variables", "state", "said"),
    [
        ("server", {}, GOOD, "ok", "a trackio server"),
        ("server", {}, {}, "no_credentials", "wants a token"),
        ("server", {}, BAD, "rejected_credentials", "rejects the token"),
        ("refused", {}, GOOD, "unreachable", "connection refused"),
        ("silent", {}, GOOD, "unreachable", "timed out"),
        ("web", {}, GOOD, "bad_option", "not as a trackio server"),
        ("http://h/?write_token=x", {}, {}, "bad_option", "server_url must not contain a token"),
        ("ftp://h", {}, {}, "bad_option", "is not an address"),
        ("", {}, {}, "ok", "a database on this machine, will be created"),
        ("", {"project": "registry-x"}, {}, "bad_option", "registry-"),
        ("", {"space_id": "x"}, {}, "bad_option", "has no owner"),
        ("", {"space_id": "o/x"}, {}, "no_credentials", "no hub token"),
        ("", {"space_id": "o/x"}, {"HF_TOKEN": "hf_x"}, "unreachable", ""),
    ],
)
def test_the_check_distinguishes_causes_and_creates_nothing(
    where: str, options: Mapping[str, str], variables: Mapping[str, str], state: str, said: str,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    address = where
    if where == "server":
        address = request.getfixturevalue(where)[0]
    elif where == "refused":
        address = f"http://127.0.0.1:{free_port()}"
    elif where in ("silent", "web"):
        address = request.getfixturevalue(where)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracker = get_tracker("trackio", **options, **({"server_url": address} if address else {}))
    found = tracker.check(3.0)
    assert (found.state, said in found.detail) == (state, True), found
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio.sqlite_storage

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", Path("/proc/x"))
    found = get_tracker("trackio").check(3.0)
    assert found.state == "no_permission", found


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TrackerOptionError, match="has no option 'api_key'"):
        get_tracker("trackio", api_key="x")


def test_a_delivery_that_a_server_refused_arrives_when_the_server_recovers(
    recorder: Recorder, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", TOKEN)
    options = {"trackio": {"server_url": f"http://127.0.0.1:{port}"}}
    for step in (1, 2, 3):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step))
    recorder.close("finished")
    recorder.journal.close()
    (line,) = sync(run_directory, "trackio", options, reference, check_within=300)
    assert (line.state, line.delivered) == ("behind", 0)
    with trackio_server(tmp_path / "s" / "trackio", port):
        (line,) = sync(run_directory, "trackio", options, reference, check_within=300)
    assert line.state == "complete", line
    stored = lives("trackio").read("tests.support.stored:from_trackio", tmp_path / "s")
    assert stored["points"] == [["train/loss", step, 1 / step] for step in (1, 2, 3)]
    assert TOKEN not in (run_directory / "tracking" / "trackio.json").read_text()


def test_numbers_are_stored_as_trackio_itself_stores_them(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    for step in range(1, 30):
        values = {"loss": 1 / step, "count": step, "worst": float("inf") if step == 7 else 1.5}
        recorder.track_point(MetricPoint(values, "train" if step % 3 else None, step, step / 7))
    recorder.track_table(Table("samples", ({"a": 1},), "eval", 5))
    recorder.close("finished")
    numbers, contents, bulk_log = list[int](), list[list[Any]](), SQLiteStorage.bulk_log

    def noting(project: str, run: str, metrics: list[Any], *others: Any, **more: Any) -> None:
        numbers.append(len(metrics))
        bulk_log(project, run, metrics, *others, **more)

    monkeypatch.setattr(SQLiteStorage, "bulk_log", noting)
    for project, columns in (("one", stores._COLUMNS), ("other", {"of another version"})):
        monkeypatch.setattr(stores, "_COLUMNS", columns)
        first = delivered(run_directory, project=project)
        again = dataclasses.replace(first, delivered=0, safe_delivered=0, offset=0, safe_offset=0)
        dataclasses.replace(again, closed=False).save(run_directory)
        assert delivered(run_directory, project=project).run_id == first.run_id
        (run_directory / "tracking/trackio.json").unlink()
        with sqlite3.connect(SQLiteStorage.get_project_db_path(project)) as connection:
            query = "SELECT timestamp, step, metrics, space_id, log_id FROM metrics ORDER BY step, log_id"
            contents.append([(*row[:4], row[4].split("-")[-1]) for row in connection.execute(query)])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 30
    assert numbers[0] == 2  # the row that is not finite, and the table


@given(st.floats(0, 4e9) | st.integers(1, 4 * 10**9).map(float))
def test_a_time_is_written_as_trackio_writes_it(moment: float) -> None:
    assert _stamp(moment) == datetime.fromtimestamp(moment, UTC).isoformat()
