"""`runs show` lists the text, images, histograms and artifacts of a run, and the paths of their files."""

from __future__ import annotations

import json
from pathlib import Path

import fmstune
from fmstune.delivery.recorder import active
from tests.support.commands import fmstune as command
from tests.support.made_runs import end_run, start_run


def test_tracked_media_are_listed_with_their_files(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "a"
    recorder = start_run(directory)
    (tmp_path / "notes.md").write_text("notes")
    with active(recorder):
        for step, text in ((1, "first"), (2, "x" * 5000), (2, "y" * 5000)):
            fmstune.track_text(text, "answer", "eval", step=step)
        fmstune.track_histogram([1, 2], "weights", step=1, bins=2)
        fmstune.track_artifact(tmp_path / "notes.md")
    end_run(recorder)

    shown = command("runs", "show", "runs/a", cwd=tmp_path, light=True)
    assert "media     text eval/answer (2), histogram weights, artifact notes.md\n" in shown.stdout
    found = json.loads(command("runs", "show", "runs/a", "--json", cwd=tmp_path, light=True).stdout)["media"]
    first, second, histogram, artifact = found
    assert (first["step"], first["text"]) == (1, "first")
    assert (tmp_path / second["path"]).read_text() == "y" * 5000  # the newest of the step
    assert (histogram["counts"], histogram["low"], histogram["high"]) == ([1, 1], 1.0, 2.0)
    assert (tmp_path / artifact["path"] / "notes.md").read_text() == "notes"
