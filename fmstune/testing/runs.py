"""The runs for examining trackers: small journals, written by the recorder of real runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.artifacts import record
from fmstune.delivery.journal.files import store_file
from fmstune.delivery.journal.reader import Event, Header, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.recorder import Recorder
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MediaKind, MetricPoint, Table
from fmstune.trackers.values.media import encoded_image

FILES: Mapping[str, bytes] = {"weights.bin": bytes(range(256)) * 40, "nested/ü (1).txt": b"a\nb"}
"""The files of the artifact of `whole`."""

Script = Callable[[Recorder], object]

HUGE = 2**70
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
"""A red pixel."""


@dataclass(frozen=True, slots=True)
class EdgeCase:
    """A value that some services cannot store: its description, the call that tracks it, and the declaration
    of `Limits` that makes fmstune adapt it."""

    what: str
    call: Script
    declare: str

    @property
    def remedy(self) -> str:
        """The remedy, as a sentence."""
        return f"Declare limits = Limits({self.declare})."


def write(directory: Path, script: Script) -> None:
    """Append what a script tracks to the journal of a run's directory."""
    (directory / TRACKING_DIR).mkdir(parents=True, exist_ok=True)
    path = directory / TRACKING_DIR / JOURNAL_NAME
    header = Header(f"conformance-{directory.parent.name}", "run", time.time(), str(directory.parent))
    journal = JournalWriter(path, header)
    try:
        script(Recorder(journal, Redactor({})))
    finally:
        journal.close()


def events_of(directory: Path) -> list[Event]:
    """The events in the journal of a run's directory."""
    return list(JournalReader(directory / TRACKING_DIR / JOURNAL_NAME))


def whole(recorder: Recorder) -> None:
    """A run with data of each kind."""
    recorder.set_params({"team": "nlp", "data": {"rows": 400, "files": ["a", "b"]}}, "params")
    for step in range(1, 6):
        point = {"loss": 2.0 / step, "learning_rate": 1e-4 * step}
        recorder.track_point(MetricPoint(point, "train", step, step / 5))
        recorder.track(step / 10, "score", "eval", step=step)
    recorder.track(7, "answer")
    recorder.set_params({"data": {"seed": 1}}, "params")
    recorder.track_table(Table("samples", ({"prompt": "Hi", "tokens": 3}, {"prompt": "Ho"}), "eval", 5))
    _track_files(recorder)
    for value in (0.25, 0.5, 0.25):  # several values at a step: all are kept, or reported
        recorder.track(value, "again", "eval", step=5)
    recorder.close("finished")


def _track_files(recorder: Recorder) -> None:
    folder = recorder.journal.path.parents[1] / "files"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    record(recorder, {name: folder / name for name in FILES}, "model", "model", link=False)


def steps(recorder: Recorder, first: int, last: int, shift: float = 0.0) -> None:
    """Track a loss at each of these steps."""
    for step in range(first, last + 1):
        recorder.track_point(MetricPoint({"loss": 1 / step + shift}, "train", step, step / 10))


def first_part(recorder: Recorder) -> None:
    """A run that is interrupted after step 4."""
    recorder.set_params({"team": "nlp"}, "params")
    steps(recorder, 1, 4)
    recorder.close("interrupted")


def second_part(recorder: Recorder) -> None:
    """The run of `first_part`, resumed from step 2."""
    recorder.resumed(2)
    recorder.set_params({"host": "b"}, "params")
    steps(recorder, 3, 6, shift=0.5)
    recorder.close("finished")


def plain(recorder: Recorder) -> None:
    """A run in which each event is one call of a tracker."""
    recorder.set_params({"team": "nlp"}, "params")
    steps(recorder, 1, 8)
    recorder.set_params({"seed": 1}, "data")
    recorder.close("finished")


def many(recorder: Recorder, count: int) -> None:
    """A run of `count` steps."""
    steps(recorder, 1, count)
    recorder.close("finished")


def _metric(value: Any, name: str = "loss", stage: str | None = "train") -> Script:
    return lambda recorder: recorder.track(value, name, stage, step=1)


def _params(values: Mapping[str, Any], name: str = "params") -> Script:
    return lambda recorder: recorder.set_params(values, name)


def _item(kind: MediaKind, item: Mapping[str, Any]) -> Script:
    return lambda recorder: recorder.record_item(kind, f"a {kind}/ü", "eval", 1, item)


def _image(recorder: Recorder) -> None:
    data, suffix, _ = encoded_image(_PNG)
    _item("image", store_file(recorder.journal.path, data, suffix) | {"caption": "ü"})(recorder)


EDGE_CASES = (
    EdgeCase("a metric that is NaN", _metric(math.nan, "nan"), "nan=False"),
    EdgeCase("a metric that is infinite", _metric(math.inf, "infinite"), "infinite=False"),
    EdgeCase("a metric of 71 bits", _metric(HUGE, "huge"), "integer_bits=64"),
    EdgeCase("a metric that is a string", _metric("good", "text"), "text_metrics=False"),
    EdgeCase("a metric without a stage", _metric(1.5, "alone", None), "joins=True"),
    EdgeCase("a metric's name with odd characters", _metric(1.5, "f1 (macro): ü/%"), "name_chars=r'\\w/'"),
    EdgeCase("a metric's name of 300 characters", _metric(1.5, "x" * 300), "max_name=250"),
    EdgeCase("an empty name of a metric", _metric(1.5, ""), "name_chars=r'\\w/'"),
    EdgeCase("a metric's name with the character NUL", _metric(1.5, "nul\0"), "nul=False"),
    EdgeCase("a metric's name in lower case", _metric(1.5, "recall"), "ignores_case=True"),
    EdgeCase("the same name in upper case", _metric(2.5, "RECALL"), "ignores_case=True"),
    EdgeCase("nested params", _params({"a": {"b": {"c": 1}, "d": {}}}), "nested=False"),
    EdgeCase(
        "params of each type", _params({"t": "x", "b": True, "n": None, "l": [1, "a"]}), "text_params=True"
    ),
    EdgeCase("a param's name with odd characters", _params({"a.b (c): ü/%": 1}), "name_chars=r'\\w/'"),
    EdgeCase("a param of 20,000 characters", _params({"long": "y" * 20_000}), "max_value=5000"),
    EdgeCase("a param with the character NUL", _params({"nul": "a\0b"}), "nul=False"),
    EdgeCase("a param of 71 bits", _params({"bits": HUGE}), "integer_bits=64"),
    EdgeCase("params of the namespace `status`", _params({"a": 1}, "status"), "reserved_params={'status'}"),
    EdgeCase("a param", _params({"changed": 1}), "params_change=False"),
    EdgeCase("another value of the same param", _params({"changed": 2}), "params_change=False"),
    EdgeCase(
        "a table's name with odd characters",
        lambda recorder: recorder.track_table(Table("a/b: ü", ({"x": "1", "y": None},), "eval", 1)),
        "table_chars=r'\\w'",
    ),
    EdgeCase("a text", _item("text", {"text": "<b>ü</b>\0\n" * 9}), ""),
    EdgeCase(
        "a histogram",
        _item("histogram", {"counts": [1, 0, 2], "low": -1e30, "high": 1e30}),
        "",
    ),
    EdgeCase("an image", _image, ""),
    EdgeCase(
        "a table without rows",
        lambda recorder: recorder.track_table(Table("empty", (), "eval", 1)),
        "",
    ),
)


def edge_cases(recorder: Recorder) -> None:
    """A run of edge-case values, one per event: event number n is `EDGE_CASES[n - 1]`."""
    for each in EDGE_CASES:
        each.call(recorder)
    recorder.close("failed", "RuntimeError: it had to be")
