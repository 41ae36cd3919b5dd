"""Tables, such as samples of generated text, reach every tracker in the form that it supports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fmstune
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.sync import sync
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.registry import reference
from tests.sample_trackers import collected
from tests.support.readers import read_wandb_offline, wandb_offline_dirs

ROWS = [{"prompt": "hi", "answer": "hello", "tokens": 2}, {"prompt": "who?", "answer": None}]
COLLECTOR = "tests.sample_trackers:Collector"


@pytest.fixture
def run(run_directory: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with one table of the eval at step 4."""
    monkeypatch.chdir(run_directory.parent)
    with active(recorder):
        fmstune.track_table(ROWS, "samples", "eval", step=4)
    recorder.close("finished")
    recorder.journal.close()
    return run_directory


def deliver(run: Path, tracker: str, **options: str) -> None:
    (line,) = sync(run, tracker, {tracker: options}, reference, check_within=30)
    assert line.state == "complete", line


def test_the_journal_holds_the_rows_unchanged(run: Path) -> None:
    (table, _) = JournalReader(run / TRACKING_DIR / JOURNAL_NAME)
    assert (table.kind, table.name, table.stage, table.step) == ("table", "samples", "eval", 4)
    assert [dict(row) for row in table.rows] == ROWS


def test_in_wandb_it_is_a_table_next_to_the_metrics(run: Path) -> None:
    deliver(run, "wandb", mode="offline")
    (folder,) = wandb_offline_dirs(run.parent)
    (row,) = read_wandb_offline(folder).history
    assert row["train/global_step"] == 4
    (file,) = folder.glob("files/media/table/eval/*.table.json")
    saved = json.loads(file.read_text())
    assert saved["columns"] == ["prompt", "answer", "tokens"]
    assert saved["data"] == [["hi", "hello", 2], ["who?", None, None]]


def test_in_aim_it_is_a_sequence_of_texts(run: Path) -> None:
    import subprocess
    import sys

    deliver(run, "aim")
    read = (
        "import aim, json\n"
        "from aim.storage.context import Context\n"
        "(run,) = aim.Repo.from_path('.').iter_runs()\n"
        "found = run.get_text_sequence('samples', Context({'subset': 'eval'}))\n"
        "print(json.dumps([[step, [t.data for t in texts]] for step, (texts, _, _) in found.data.items()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    ((step, texts),) = json.loads(done.stdout.splitlines()[-1])
    assert step == 4
    assert texts == ["prompt: hi\nanswer: hello\ntokens: 2", "prompt: who?\nanswer: None"]


def test_in_a_file_it_is_a_line(run: Path) -> None:
    deliver(run, "file", path="m.jsonl")
    line = json.loads((run.parent / "m.jsonl").read_text().splitlines()[0])
    assert (line["kind"], line["stage"], line["step"], line["values"]) == (
        "table",
        "eval",
        4,
        {"samples": ROWS},
    )


def test_a_tracker_without_tables_gets_it_as_params(run: Path) -> None:
    deliver(run, COLLECTOR, path="calls")
    (call,) = [each for each in collected(run.parent / "calls") if each["call"] == "set_params"]
    assert (call["name"], call["values"]) == ("eval/samples/step 4", {"1": ROWS[0], "2": ROWS[1]})


def test_secrets_in_cells_are_redacted_before_the_journal(recorder: Recorder) -> None:
    with active(recorder):
        fmstune.track_table([{"api_key": "abc", "answer": "https://me:pw@host/x"}], "samples")
    text = recorder.journal.path.read_text()
    assert "abc" not in text.splitlines()[1]
    assert "pw@" not in text


def test_what_is_no_table_is_refused(recorder: Recorder) -> None:
    with active(recorder), pytest.raises(ValueError, match="rows that map columns"):
        fmstune.track_table(["a row"], "samples")  # type: ignore[list-item]
