"""Everything that the report counts as delivered can be read back through the tracker's own SDK, or is
reported.

Random runs, with odd names and values, several values at a step, resumes and kills, are journaled, delivered
by the shippers' own code to each real SDK, and compared with the journal.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import Event, JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.testing.compare import Points, as_single, comparable, is_named, params_of, points_of
from fmstune.testing.fork_server import ForkServer, Kill
from fmstune.trackers.records import MetricPoint, Table
from fmstune.trackers.values.normalise import as_text
from tests.support.journals import open_journal
from tests.support.mlflow_servers import store_in
from tests.support.nurseries import lives

TRACKERS = "fmstune.trackers"


@dataclass(frozen=True)
class Back:
    """A tracker, a reader of its storage, and its guarantees for steps that a resumed run logs again."""

    reference: str
    options: Mapping[str, Any]
    reader: str
    replaces: bool = False
    kill_repeats: bool = False
    numbered: bool = False
    flat: bool = False
    store: bool = False
    single: bool = False
    forgets: bool = False
    synced: bool = False
    """A metric without a step is put at the newest one (`step_sync` of W&B)."""


BACKS = {
    "aim": Back(
        f"{TRACKERS}.aimstack_tracker:AimStackTracker", {"repo": "."}, "from_aim", replaces=True,
        numbered=True,
    ),
    "wandb": Back(
        f"{TRACKERS}.wandb_tracker:WandbTracker", {"mode": "offline", "dir": "."}, "from_wandb",
        synced=True,
    ),
    "file": Back(f"{TRACKERS}.file_tracker:FileTracker", {"path": "stored.jsonl"}, "from_file"),
    "mlflow": Back(
        f"{TRACKERS}.mlflow_tracker:MlflowTracker", {"tracking_uri": "sqlite:///mlflow.db"}, "from_mlflow",
        flat=True, store=True,
    ),
    "tensorboard": Back(
        f"{TRACKERS}.tensorboard_tracker:TensorBoardTracker", {"dir": "tensorboard"}, "from_tensorboard",
        forgets=True, single=True,
    ),
    "trackio": Back(f"{TRACKERS}.trackio_tracker:TrackioTracker", {}, "from_trackio"),
    "dvclive": Back(f"{TRACKERS}.dvclive_tracker:DvcLiveTracker", {}, "from_dvclive", forgets=True),
    "swanlab": Back(
        f"{TRACKERS}.swanlab_tracker:SwanLabTracker", {"mode": "offline"}, "from_swanlab", forgets=True,
    ),
    "comet": Back(f"{TRACKERS}.comet_tracker:CometTracker", {"mode": "offline"}, "from_comet", flat=True),
    "clearml": Back(
        f"{TRACKERS}.clearml_tracker:ClearmlTracker", {"offline": True, "dir": "clearml"}, "from_clearml",
        replaces=True, flat=True, single=True,
    ),
    "plug-in": Back("tests.support.stored:Naive", {}, "from_naive", kill_repeats=True),
}  # fmt: skip

ODD_NAMES = ["f1(macro)", "a/b.c", "", "nul\0", "half\ud800", "é", "e\u0301", "x" * 300, "a.loss"]
OWN_NAMES = ["_step", "_timestamp", "global_step", "epoch", "status"]
NAMES = st.sampled_from(["loss", "Loss", "reward", *ODD_NAMES, *OWN_NAMES])
NAMESPACES = st.sampled_from(["data", "data.a", "status", "half\ud800"])
STAGES = st.sampled_from(["train", "eval", None, "half\udcff", "odd (stage)"])
STEPS = st.integers(0, 3)
NUMBERS = st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([2**63, -(2**63), 2**63 - 1, True])
TEXTS = st.sampled_from(["", "some text", "half\ud800", "nul\0", "x" * 5000]) | st.text(max_size=5)
SCALARS = st.sampled_from(
    [np.float32(1.5), np.uint64(2**63), np.array([2]), torch.tensor(2.5), np.bool_(True)]
)
METRICS = NUMBERS | SCALARS | TEXTS
FOREIGN = st.sampled_from(
    [
        Path("/a"),
        datetime.date(2026, 1, 2),
        b"x\xff",
        {1, 2},
        np.eye(2),
        torch.ones(3),
        Back("r", {}, "r"),
    ]
)
PARAMS = st.recursive(
    NUMBERS | TEXTS | st.none() | SCALARS | FOREIGN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXTS, "tokens": NUMBERS}), max_size=3)

Action = Callable[[Recorder], object]


def metric(values: dict[str, Any], stage: str | None, step: int | None) -> Action:
    return lambda recorder: recorder.track_point(MetricPoint(values, stage, step, 0.5, 1e9))


def plain_metric(stage: str, step: int, value: float) -> Action:
    return metric({"loss": value, "reward": -value}, stage, step)


def params(values: dict[str, Any], namespace: str) -> Action:
    return lambda recorder: recorder.set_params(values, namespace)


def table(rows: list[dict[str, Any]], name: str, step: int) -> Action:
    return lambda recorder: recorder.track_table(Table(name, tuple(rows), "eval", step))


def resume(step: int) -> Action:
    return lambda recorder: recorder.resumed(step)


ACTIONS = st.one_of(
    st.builds(plain_metric, st.sampled_from(["train", "eval"]), STEPS, st.floats(-1e6, 1e6)),
    st.builds(metric, st.dictionaries(NAMES, METRICS, max_size=3), STAGES, STEPS | st.none()),
    st.builds(params, st.dictionaries(NAMES, PARAMS, max_size=3), NAMESPACES),
    st.builds(params, st.dictionaries(st.sampled_from("abc"), PARAMS, max_size=2), st.just("data")),
    st.builds(table, ROWS, st.sampled_from(["table", "table (2)"]), STEPS),
    st.builds(resume, STEPS),
)  # fmt: skip
DELIVERY = "deliver"
# Each example takes several processes, so failures are printed as drawn, without shrinking.
PHASES = [Phase.explicit, Phase.generate]
KILLS = st.none() | st.builds(Kill, st.integers(1, 12), st.booleans())


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("aim", 5),
        ("wandb", 3),
        ("mlflow", 4),
        ("tensorboard", 8),
        ("trackio", 6),
        ("dvclive", 8),
        ("swanlab", 6),
        ("comet", 5),
        ("clearml", 4),
        ("file", 12),
        ("plug-in", 10),
    ],
)
def test_everything_counted_as_delivered_can_be_read_back_or_is_reported(name: str, examples: int) -> None:
    back = BACKS[name]

    @given(
        st.lists(ACTIONS | st.just(DELIVERY), min_size=12, max_size=40),
        st.lists(KILLS, max_size=4),
    )
    @settings(max_examples=examples, phases=PHASES, database=None, suppress_health_check=list(HealthCheck))
    def check(script: list[Action | str], kills: list[Kill | None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            read_back(back, lives(name), Path(folder) / "run", script, kills)

    check()


def read_back(
    back: Back, life: ForkServer, directory: Path, script: list[Action | str], kills: list[Kill | None]
) -> None:
    """Journal a script, deliver it with these kills, and compare the storage with the journal."""
    (directory / TRACKING_DIR).mkdir(parents=True)
    if back.store:
        store_in(directory.parent)
    recorder = Recorder(open_journal(directory), Redactor({}))
    left = list(kills)

    def deliver() -> bool:
        return life.deliver(directory, back.reference, back.options, left.pop() if left else None)

    plain_metric("train", 1, 1.0)(recorder)  # so that there is something to read back
    for action in script:
        if callable(action):
            action(recorder)
        else:
            deliver()
    recorder.close("finished")
    recorder.journal.close()
    done = [deliver() for _ in range(len(left) + 2)]  # the last one finds nothing to do
    assert done[-1]

    ledger, (line,) = load_ledger(directory, "t"), report(directory, ["t"])
    assert ledger is not None
    assert line.state == "complete", line
    events = list(JournalReader(directory / TRACKING_DIR / JOURNAL_NAME))
    if back.forgets:
        events = without_forgotten(events)
    stored = life.read(f"tests.support.stored:{back.reader}", directory.parent)
    repeats = len(kills) if back.kill_repeats else 0
    expected = points_of(events, back.replaces)
    if back.single:
        expected = {key: list(map(as_single, values)) for key, values in expected.items()}
    found = stored["points"]
    if back.synced:
        expected, found = without_steps(expected, found)
    compare_points(expected, found, ledger.changes, repeats, back.numbered)
    if back.flat:
        compare_texts(params_of(events), stored["params"]["*"], ledger.changes)
    else:
        compare_params(params_of(events), stored["params"], ledger.changes)
    compare_tables(tables_of(events, back.replaces), stored["tables"], ledger.changes)


def without_forgotten(events: list[Event]) -> list[Event]:
    """The events without those of the steps that a resumed run logs again, which are discarded."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "resume":
            last = event.step or 0
            kept = [each for each in kept if each.kind == "params" or (each.step or 0) <= last]
        kept.append(event)
    return kept


def without_steps(expected: Points, found: list[Any]) -> tuple[Points, list[Any]]:
    """Both without the steps of metrics that have some values without a step."""
    anywhere = {key for key, step in expected if step is None}
    made: Points = {}
    for (key, step), values in expected.items():
        made.setdefault((key, 0 if key in anywhere else step), []).extend(values)
    return made, [[key, 0 if key in anywhere else step, value] for key, step, value in found]


def compare_points(
    expected: Points, found: list[Any], changes: tuple[str, ...], repeats: int, numbered: bool
) -> None:
    """With `numbered`, the service numbers values without a step from 0."""
    got: dict[tuple[str, int], list[float]] = {}
    for key, step, value in found:
        got.setdefault((key, step or 0), []).append(value)
    wanted: dict[tuple[str, int], list[Any]] = {}
    for (key, step), values in expected.items():
        for number, value in enumerate(values):
            wanted.setdefault((key, number if step is None and numbered else step or 0), []).append(value)
    for (key, step), values in wanted.items():
        if is_named(key, changes):
            continue
        there = sorted(map(comparable, got.get((key, step), [])), key=repr)
        if repeats:
            assert set(map(comparable, values)) <= set(there), (key, step)
            assert len(there) <= len(values) + repeats
        else:
            assert there == sorted(map(comparable, values), key=repr), (key, step, changes)


def compare_params(expected: Mapping[str, Any], found: Mapping[str, Any], changes: tuple[str, ...]) -> None:
    for key, value in expected.items():
        if is_named(key, changes):
            continue
        assert key in found, (key, changes)
        if isinstance(value, Mapping):
            compare_params(value, found[key], changes)
        else:
            assert same(value, found[key], changes), (key, changes)


def compare_texts(
    expected: Mapping[str, Any], found: Mapping[str, str], changes: tuple[str, ...], prefix: str = ""
) -> None:
    """Compare with params of a service that stores strings under dotted names."""
    for key, value in expected.items():
        if is_named(key, changes) or is_named(f"{prefix}{key}".partition(".")[2], changes):
            continue
        if isinstance(value, Mapping) and (value or not prefix):
            compare_texts(value, found, changes, f"{prefix}{key}.")
        elif isinstance(value, list):  # names in its mappings may be reported
            assert same(value, json.loads(found[f"{prefix}{key}"]), changes), (key, changes)
        else:
            assert found.get(f"{prefix}{key}") == as_text(value), (key, changes)


def same(value: Any, found: Any, changes: tuple[str, ...]) -> bool:
    if isinstance(value, list):
        return len(value) == len(found) and all(
            same(*each, changes) for each in zip(value, found, strict=True)
        )
    if isinstance(value, Mapping):
        compare_params(value, found, changes)
        return True
    return bool(comparable(value) == comparable(found))


def tables_of(events: list[Event], replaces: bool) -> dict[tuple[str, int], list[list[str]]]:
    held: dict[tuple[str, int], list[list[str]]] = {}
    logged: dict[tuple[str, int], int] = {}
    for event in events:
        if event.kind == "resume" and replaces:
            logged = {key: n for key, n in logged.items() if key[1] <= (event.step or 0)}
        if event.kind == "table":
            key = (f"{event.stage}/{event.name}", event.step or 0)
            number = logged.get(key, 0)
            logged[key] = number + 1
            rows = ["\n".join(f"{column}: {cell}" for column, cell in row.items()) for row in event.rows]
            held.setdefault(key, [])[number : number + 1] = [rows]
    return held


def compare_tables(
    expected: Mapping[tuple[str, int], list[list[str]]], found: list[Any], changes: tuple[str, ...]
) -> None:
    tables = [in_any_order(rows) for _, _, rows in found]
    for (key, _), each in expected.items():
        for rows in each:
            if any(is_named(f"{key.partition('/')[2]}.{column}", changes) for column in ("prompt", "tokens")):
                continue
            assert in_any_order(rows) in tables, (key, rows, found, changes)


def in_any_order(rows: list[str]) -> list[list[str]]:
    """The rows with columns in one order, because W&B has one for all rows of a table."""
    return [sorted(row.split("\n")) for row in rows]
