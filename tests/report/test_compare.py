"""`fmstune runs compare` shows in what runs differ."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from fmstune.cli.app import app
from tests.support.made_runs import end_run, make_run, start_run
from tests.support.reports import run_json


def test_a_comparison_shows_differing_settings_then_metrics_then_resources(tmp_path: Path) -> None:
    directories = [
        make_run(tmp_path / name, {1: loss}, params={"team": name}, settings={"training.learning_rate": rate})
        for name, loss, rate in (("a", 1.0, 1e-4), ("b", 2.0, 2e-4), ("c", 3.0, 1e-4))
    ]
    again = start_run(directories[1])
    again.track(50.0, "cpu", "system", step=1)
    again.track(0.5, "loss", "eval", step=1)
    end_run(again)
    found = run_json("compare", *map(str, directories), "--json")
    assert found["settings"]["training.learning_rate"] == [1e-4, 2e-4, 1e-4]
    assert found["settings"]["params.team"] == ["a", "b", "c"]
    assert "model.path" not in found["settings"]
    assert [each["last"] for each in found["metrics"]["train/loss"]] == [1.0, 2.0, 3.0]
    assert [each and each["last"] for each in found["metrics"]["eval/loss"]] == [None, 0.5, None]
    assert list(found["resources"]) == ["system/cpu"]
    text = CliRunner().invoke(app, ["runs", "compare", *map(str, directories)]).stdout
    order = [text.index(key) for key in ("training.learning_rate", "status", "train/loss", "system/cpu")]
    assert order == sorted(order)
