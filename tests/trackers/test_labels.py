"""The name, group, tags and notes of a run reach each tracker in its own fields; read back by the real
SDKs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmstune.delivery.journal.labels import Labels, labels
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.secrets.redaction import Redactor
from tests.support.journals import journal_path
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives


@dataclass(frozen=True)
class TrackerCase:
    reference: str
    options: dict[str, Any]
    own: dict[str, Any]
    """Options of the tracker itself, for `OWN`."""


TRACKER_CASES = {
    "aim": TrackerCase(
        "aimstack_tracker:AimStackTracker", {"repo": "."},
        {"run_name": "own", "experiment": "own group", "tags": ["own"]},
    ),
    "wandb": TrackerCase(
        "wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."},
        {"name": "own", "group": "own group", "tags": ["own"], "notes": "own notes"},
    ),
    "mlflow": TrackerCase(
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"},
        {"run_name": "own", "experiment": "own group", "tags": {"own": ""}},
    ),
    "trackio": TrackerCase(
        "trackio_tracker:TrackioTracker", {},
        {"name": "own", "group": "own group"},
    ),
    "swanlab": TrackerCase(
        "swanlab_tracker:SwanLabTracker", {"mode": "offline"},
        {"experiment_name": "own", "group": "own group", "tags": ["own"], "description": "own notes"},
    ),
    "comet": TrackerCase(
        "comet_tracker:CometTracker", {"mode": "offline"},
        {"experiment_name": "own", "tags": ["own"]},
    ),
    "clearml": TrackerCase(
        "clearml_tracker:ClearmlTracker", {"offline": True, "dir": "clearml"},
        {"task_name": "own", "project": "own group", "tags": ["own"]},
    ),
}  # fmt: skip
CALLED = Labels("first", "ablations", ("a", "team=nlp"), "with a\nlonger warm-up")
RUDE = Labels("half\ud800", "g" * 300 + "\0", ("x" * 100, "ü (1)!", "", "x" * 100), "nul\0")

Said = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def said(run_directory: Path) -> Said:
    """The labels that a tracker stored for a run, and what the report says about them."""

    def find(name: str, called: Labels, again: Labels | None = None, own: Any = None) -> tuple[Any, str]:
        case = TRACKER_CASES[name]
        if name == "mlflow":
            store_in(run_directory.parent)
        for number, each in enumerate((called, again)):
            if each is None:
                continue
            header = Header(
                "id-1", each.name, time.time(), ".", 0, group=each.group, tags=each.tags, notes=each.notes
            )
            recorder = Recorder(JournalWriter(journal_path(run_directory), header), Redactor({}))
            if number:
                recorder.resumed(1, each)
            recorder.track(1.0, "loss", "train", step=1 + number)
            recorder.close("finished")
            recorder.journal.close()
            where = f"fmstune.trackers.{case.reference}"
            assert lives(name).deliver(run_directory, where, case.options | (own or {}))
        ledger = load_ledger(run_directory, "t")
        assert ledger is not None
        assert ledger.state == "complete"
        found = lives(name).read(f"tests.support.labelled:from_{name}", run_directory.parent)
        return found, " · ".join([ledger.note or "", *ledger.changes])

    return find


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_each_tracker_stores_the_labels_in_its_own_fields(name: str, said: Said) -> None:
    found, _ = said(name, CALLED)
    assert found == {
        "name": "first", "group": "ablations", "tags": ["a", "team=nlp"], "notes": "with a\nlonger warm-up",
    }  # fmt: skip


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_the_options_of_a_tracker_take_precedence(name: str, said: Said) -> None:
    own = TRACKER_CASES[name].own
    found, _ = said(name, CALLED, own=own)
    assert (found["name"], found["group"]) == ("own", "own group" if name != "comet" else "ablations")
    assert found["tags"] == (["own"] if "tags" in own else ["a", "team=nlp"])
    assert found["notes"] == own.get("notes", own.get("description", "with a\nlonger warm-up"))


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_a_resumed_run_has_its_current_labels(name: str, said: Said, run_directory: Path) -> None:
    found, _ = said(name, CALLED, Labels("second", "ablations", ("a", "c"), "shorter"))
    assert (found["name"], found["notes"]) == ("second", "shorter")
    assert {"a", "c"} <= set(found["tags"])
    assert labels(journal_path(run_directory)).tags == ("a", "c")


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_labels_that_a_tracker_cannot_store_are_adapted_and_reported(name: str, said: Said) -> None:
    found, noted = said(name, RUDE)
    assert found["name"].startswith("half")
    assert len(found["tags"]) == 2
    assert (
        name in ("aim", "trackio", "swanlab", "comet", "clearml")
        or "its tags there are cut" in noted
        or "the tag ü (1)! is called ü _1__" in noted
    )


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_a_run_without_labels_has_none(name: str, said: Said) -> None:
    found, noted = said(name, Labels("plain"))
    assert (found["name"], found["tags"]) == ("plain", [])
    assert not found["notes"]
    assert found["group"] in ("", "default", "Default", None)
    assert "cut" not in noted
