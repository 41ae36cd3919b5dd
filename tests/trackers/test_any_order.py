"""Whatever is tracked, in any order, with kills and failures in any delivery and a resume in between: each
tracker stores it exactly once, or the report says what is missing. Read back through the SDKs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fmstune
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.testing.fork_server import Failure, Kill
from tests.support.journals import open_journal
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives

KINDS = ("text", "image", "histogram")


@dataclass(frozen=True)
class TrackerCase:
    """A tracker, the kinds that it supports, and how often delivery is attempted."""

    reference: str
    options: dict[str, Any]
    kinds: tuple[str, ...] = KINDS
    files: bool = True
    examples: int = 3


TRACKER_CASES = {
    "aim": TrackerCase("aimstack_tracker:AimStackTracker", {"repo": "."}),
    "wandb": TrackerCase(
        "wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."}, examples=2,
    ),
    "mlflow": TrackerCase(
        "mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"}, ("text", "image"),
        examples=2,
    ),
    "tensorboard": TrackerCase(
        "tensorboard_tracker:TensorBoardTracker", {"dir": "."}, files=False, examples=6,
    ),
    "file": TrackerCase("file_tracker:FileTracker", {"path": "stored.jsonl"}, examples=8),
}  # fmt: skip

EVENTS = st.lists(st.sampled_from([*KINDS, "artifact", "metric", "params", "table"]), min_size=1, max_size=8)
# Where rows must arrive in order (W&B, TensorBoard), one that fails three times is skipped and reported.
TROUBLES = st.lists(
    st.builds(Kill, st.integers(1, 6), st.booleans()) | st.builds(Failure, st.integers(1, 6)), max_size=2
)


def track(kind: str, number: int, folder: Path) -> list[Any]:
    """Track a unique value of a kind; returns how a reader finds it."""
    where = {"stage": "eval", "step": number}
    if kind == "text":
        fmstune.track(f"text {number}", "said", **where)  # type: ignore[arg-type]
        return ["text", "eval/said", number, f"text {number}"]
    if kind == "image":
        pixels = np.full((2, 2, 3), number, np.uint8)
        fmstune.track(pixels, "seen", **where)  # type: ignore[arg-type]
        return ["image", "eval/seen", number, [pixels.tolist(), ""]]
    if kind == "histogram":
        fmstune.track_histogram([0, number, number], "many", "eval", step=number, bins=2)
        return ["histogram", "eval/many", number, [[1, 2], 0.0, float(number)]]
    if kind == "artifact":
        path = folder / f"file-{number}.txt"
        path.write_text(f"content {number}")
        fmstune.track_artifact(path)
        path.unlink()
        return ["artifact", f"file-{number}.txt", f"content {number}"]
    if kind == "metric":
        fmstune.track(float(number), "loss", **where)  # type: ignore[arg-type]
    elif kind == "params":
        fmstune.set_params({f"p{number}": number}, "data")
    else:
        fmstune.track([{"row": number}], "rows", **where)  # type: ignore[arg-type]
    return []


@pytest.mark.parametrize("name", TRACKER_CASES)
def test_each_value_is_stored_once_or_reported(name: str) -> None:
    case = TRACKER_CASES[name]

    @settings(
        max_examples=case.examples, deadline=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    @given(EVENTS, EVENTS, TROUBLES, TROUBLES)
    def check(first: list[str], then: list[str], early: list[Any], late: list[Any]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            root, run = Path(scratch), Path(scratch, "run")
            (run / TRACKING_DIR).mkdir(parents=True)
            if name == "mlflow":
                store_in(root)
            where = (run, f"fmstune.trackers.{case.reference}", case.options)
            expected = []
            recorder = Recorder(open_journal(run), Redactor({}))
            with active(recorder):
                for session, kinds, troubles in ((0, first, early), (1, then, late)):
                    if session:
                        recorder.resumed(len(first))
                    begin = 1 + session * len(first)
                    expected += [track(kind, number, root) for number, kind in enumerate(kinds, begin)]
                    recorder.close("finished" if session else "interrupted")
                    for trouble in troubles:
                        lives(name).deliver(*where, trouble)
                    assert lives(name).deliver(*where)
            recorder.journal.close()
            (line,) = report(run, ["t"])
            assert (line.state, line.delivered) == ("complete", line.total), line
            found = lives(name).read(f"tests.support.media:from_{name}", root)
            found = [each for each in found if each[1] != "eval/rows"]  # Aim stores tables as text
            wanted = [each for each in expected if each and each[0] in case.kinds]
            assert sorted(map(repr, found)) == sorted(map(repr, wanted))
            files = [each for each in expected if each and each[0] == "artifact"]
            if case.files:
                held = lives(name).read(f"tests.support.media:files_from_{name}", root) if files else {}
                got = sorted(data for key, data in held.items() if "/file-" in f"/{key}")
                assert got == sorted(data for _, _, data in files)
            for kind in {each[0] for each in expected if each}:
                room = case.files if kind == "artifact" else kind in case.kinds
                named = any(f"the {kind} " in change and "journal only" in change for change in line.changes)
                assert named != room

    check()
