"""Any tracker gives a plain callback for anybody's own `transformers.Trainer`: one run, and no harm."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from fmstune import demo, get_tracker
from fmstune.trackers.base import Tracker
from fmstune.trackers.hf_callback import OwnRunCallback, split_stages
from fmstune.trackers.records import Limits, RunStart, Status, TrackerError, TrackerRun
from tests.support.readers import read_aim, read_wandb_offline, wandb_offline_dirs

REPOSITORY = Path(__file__).parents[2]


def trainer_of_ones_own(
    callback: TrainerCallback, folder: Path, score: Callable[[EvalPrediction], dict[str, Any]] | None = None
) -> Trainer:
    ids = torch.arange(16) % 400
    rows = [{"input_ids": ids, "labels": ids} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), run_name="by-hand", max_steps=2, logging_steps=1,
        per_device_train_batch_size=2, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = demo.build_model()
    model.config.temperature = np.float32(0.5)
    return Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:2], callbacks=[callback],
        compute_metrics=score,
    )  # fmt: skip


def own_callback(tracker: Tracker, *, strict: bool = False) -> OwnRunCallback:
    callback = tracker.get_hf_callback(strict=strict)
    assert isinstance(callback, OwnRunCallback)
    return callback


@dataclass
class Seen:
    """What a service holds of a run: values of each (stage, metric) in their order."""

    name: str
    status: str | None
    values: Mapping[tuple[str | None, str], list[Any]]
    params: Mapping[str, Any]


def seen_by_aim(folder: Path) -> list[Seen]:
    return [
        Seen(
            run.name,
            run.params.get("status"),
            {(stage, name): [value for _, value in points] for (name, stage), points in run.points.items()},
            run.params,
        )
        for run in read_aim(folder)
    ]


def seen_by_wandb(folder: Path) -> list[Seen]:
    runs = []
    for path in wandb_offline_dirs(folder):
        run = read_wandb_offline(path)
        values: dict[tuple[str | None, str], list[Any]] = {}
        for row in run.history:
            for key, value in row.items():
                stage, _, name = key.partition("/")
                if name and not key.startswith("train/global_step"):
                    values.setdefault((stage, name), []).append(value)
        runs.append(Seen(run.fields["display_name"], run.summary["fmstune/status"], values, run.config))
    return runs


def seen_in_file(folder: Path) -> list[Seen]:
    runs: dict[str, Seen] = {}
    for line in (folder / "m.jsonl").read_text().splitlines():
        row = json.loads(line)
        run = runs.setdefault(row["run_id"], Seen(row["run"], None, {}, {}))
        run.name = row["run"]
        if row["kind"] == "metrics":
            for name, value in row["values"].items():
                run.values.setdefault((row["stage"], name), []).append(value)  # type: ignore[attr-defined]
        elif row["kind"] == "params":
            run.params |= {row["stage"]: row["values"]}  # type: ignore[operator]
        else:
            run.status = row["values"]["status"]
    return list(runs.values())


TRACKERS: dict[str, tuple[dict[str, Any], Callable[[Path], list[Seen]]]] = {
    "aim": ({"repo": "."}, seen_by_aim),
    "wandb": ({"mode": "offline"}, seen_by_wandb),
    "file": ({"path": "m.jsonl"}, seen_in_file),
}


@pytest.mark.parametrize("name", TRACKERS)
def test_one_callback_is_one_run_whatever_is_tracked_before_and_after_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    options, seen = TRACKERS[name]
    tracker = get_tracker(name, **options)
    tracker.track(0.25, "before", "mine", step=0)
    callback = own_callback(tracker, strict=True)
    score = {"verdict": "good", "score": np.float64(0.5), "array": np.array([1.0, 2.0])}
    trainer = trainer_of_ones_own(callback, tmp_path, lambda _: dict(score))
    evaluated = [trainer.evaluate()["eval_loss"]]
    trainer.train()
    evaluated.append(trainer.evaluate()["eval_loss"])
    trainer.log({"text": "hello", "numpy": np.float32(1.5)})
    if name == "aim":
        assert [run.status for run in seen(tmp_path)] == ["finished"]  # while the process lives
    callback.close()
    wandb.teardown()

    (run,) = seen(tmp_path)
    assert (run.name, run.status) == ("by-hand", "finished")
    logged = trainer.state.log_history
    assert run.values["mine", "before"] == [0.25]
    assert run.values["train", "loss"] == [entry["loss"] for entry in logged if "loss" in entry]
    assert run.values["eval", "loss"] == evaluated
    assert run.values["eval", "score"] == [0.5, 0.5]
    assert run.values["train", "numpy"] == [1.5]
    assert run.params["training"]["max_steps"] == 2
    assert run.params["model"]["temperature"] == 0.5
    if get_tracker(name).limits.text_metrics:
        assert run.values["eval", "verdict"] == ["good", "good"]
        assert not [record for record in caplog.records if record.name == "fmstune"]
    else:
        told = [
            f"{name}: metric {each} is not a number and is left out" for each in ("verdict", "array", "text")
        ]
        assert [text for logger, _, text in caplog.record_tuples if logger == "fmstune"] == told


_SCRIPT = """
import sys
from fmstune import get_tracker
from fmstune.trackers.alone import note_training
name, options, how = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
tracker = get_tracker(name, **options)
tracker.track(0.25, "before", "mine", step=0)
if how == "in a training":
    note_training(tracker, going=True)
if how == "closed":
    tracker.close("finished")
if how == "raises":
    raise ValueError("no")
if how == "handled":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    tracker.close("finished")
    tracker.track(0.25, "before", "mine", step=0)
if how == "forks":
    import multiprocessing, signal, time
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    assert child.exitcode == -signal.SIGTERM
if how == "hangs":
    tracker.close = lambda *_: sys.stdin.read()
    from fmstune.trackers import terminated
    terminated._SECONDS_TO_CLOSE = 0.1
if how not in ("ends", "closed", "raises", "in a training", "forks"):
    print("waiting", flush=True)
    while True:
        input()
"""


SIGNALS = {
    "waits": signal.SIGINT, "terminated": signal.SIGTERM, "hung up": signal.SIGHUP, "handled": signal.SIGTERM,
    "hangs": signal.SIGTERM, "killed": signal.SIGKILL,
}  # fmt: skip


def run_script(folder: Path, name: str, how: str) -> int:
    command = [sys.executable, "-c", _SCRIPT, name, repr(TRACKERS[name][0]), how]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:  # type: ignore[call-overload]
        if how in SIGNALS:
            process.stdout.readline()
            process.send_signal(SIGNALS[how])
        return int(process.wait())


@pytest.mark.parametrize(
    ("name", "how", "status"),
    [
        ("aim", "raises", "failed"),
        ("wandb", "raises", "failed"),
        ("file", "raises", "failed"),
        ("file", "ends", "finished"),
        ("file", "closed", "finished"),
        ("file", "in a training", "failed"),
        ("file", "waits", "interrupted"),
        ("aim", "terminated", "interrupted"),
        ("wandb", "terminated", "interrupted"),
        ("file", "hung up", "interrupted"),
        ("file", "forks", "finished"),
    ],
)
def test_the_end_of_the_process_closes_the_run_with_its_status(
    name: str, how: str, status: str, tmp_path: Path
) -> None:
    code = run_script(tmp_path, name, how)
    (run,) = TRACKERS[name][1](tmp_path)
    assert run.status == status
    assert run.values["mine", "before"] == [0.25]
    assert (code == 0) == (how in ("ends", "closed", "in a training", "forks"))
    if how in ("terminated", "hung up"):
        assert code == -SIGNALS[how]


def test_a_handler_of_ones_own_stays(tmp_path: Path) -> None:
    assert run_script(tmp_path, "file", "handled") == 9
    assert [run.status for run in seen_in_file(tmp_path)] == ["finished", "finished"]


def test_a_tracker_that_hangs_does_not_keep_a_terminated_process(tmp_path: Path) -> None:
    assert run_script(tmp_path, "file", "hangs") == -signal.SIGTERM


def test_a_run_of_aim_is_listed_with_its_values_even_if_the_process_is_killed(tmp_path: Path) -> None:
    script = """
import os
from types import SimpleNamespace
from fmstune import get_tracker
callback = get_tracker("aim", repo=".").get_hf_callback()
args = SimpleNamespace(run_name="by-hand", output_dir="out", to_sanitized_dict=dict)
state = SimpleNamespace(is_world_process_zero=True, global_step=0, epoch=0.5, log_history=[])
callback.on_train_begin(args, state, None)
for step in (1, 2, 3):
    state.global_step = step
    callback.on_log(args, state, None, {"loss": step / 2})
callback.on_log(args, state, None, {"eval_loss": 0.25})
callback.on_log(args, state, None, {"loss": 2.0, "eval_loss": 0.5})
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    (run,) = seen_by_aim(tmp_path)
    assert (run.name, run.status) == ("by-hand", None)
    assert sorted(run.values["train", "loss"]) == [0.5, 1.0, 1.5, 2.0]
    assert sorted(run.values["eval", "loss"]) == [0.25, 0.5]


class Rude(Tracker):
    """Raises at one of its hooks, or for one metric."""

    registered_name = "rude"
    limits = Limits(text_metrics=True)

    def __init__(self, at: str, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error
        self.opened = 0
        self.got: list[str] = []

    def fail(self, hook: str) -> None:
        if self.at in (hook, "everything"):
            raise self.error

    def open(self, start: RunStart) -> TrackerRun:
        self.opened += 1
        self.fail("open")
        return TrackerRun()

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        self.fail("track")
        self.fail(name)
        self.got.append(name)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self.fail("set_params")

    def train_ended(self, status: Status) -> None:
        self.fail("train_ended")

    def close(self, status: Status, error: str | None = None) -> None:
        self.fail("close")


@pytest.mark.parametrize("error", [RuntimeError("on fire"), SystemExit(3)], ids=["raises", "exits"])
@pytest.mark.parametrize(
    "at", ["open", "track", "set_params", "train_ended", "close", "everything", "grad_norm"]
)
def test_no_error_of_a_tracker_reaches_the_training_and_one_is_told(
    at: str, error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Rude(at, error)
    callback = own_callback(tracker)
    trainer = trainer_of_ones_own(callback, tmp_path)
    trainer.train()
    callback.close()
    assert trainer.state.global_step == 2
    assert tracker.opened == 1
    assert caplog.record_tuples[0][:2] == ("fmstune", logging.WARNING)
    assert type(error).__name__ in caplog.messages[0]
    assert len(caplog.messages) <= 3  # the others: that it is given up, and how much did not reach it
    if at in ("track", "set_params", "grad_norm"):
        assert "did not reach it" in caplog.messages[-1]
    if at == "grad_norm":  # one that is refused takes none of the others with it
        assert tracker.got.count("loss") == 2
        assert tracker.got.count("learning_rate") == 2


def test_strict_raises_what_the_tracker_raises(tmp_path: Path) -> None:
    trainer = trainer_of_ones_own(own_callback(Rude("track", RuntimeError("on fire")), strict=True), tmp_path)
    with pytest.raises(RuntimeError, match="on fire"):
        trainer.train()


class Hostile:
    """A value of a library that does as it likes."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fails(self, *_: Any) -> Any:
        raise self.error

    __str__ = __repr__ = __float__ = __iter__ = __bool__ = __len__ = item = tolist = to_dict = fails

    def __getattr__(self, name: str) -> Any:
        raise self.error


ERRORS = st.sampled_from(
    [RuntimeError("no"), SystemExit(3), GeneratorExit(), RecursionError(), OSError(28, "full")]
)
HOSTILE = st.builds(Hostile, ERRORS)
VALUES = st.one_of(
    HOSTILE, st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(HOSTILE),
    st.just(torch.zeros(2, device="meta")), st.just(np.float16(1.5)),
)  # fmt: skip
LOGS = st.dictionaries(
    st.one_of(st.text(), st.integers(), st.none(), st.just("loss"), st.just("num_tokens")), VALUES
)
EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=6),
    logs=st.one_of(LOGS, HOSTILE),
    args=st.one_of(HOSTILE, st.builds(SimpleNamespace, run_name=VALUES, output_dir=VALUES)),
    state=st.one_of(
        HOSTILE,
        st.builds(
            SimpleNamespace, is_world_process_zero=st.just(True), global_step=VALUES, epoch=VALUES,
            log_history=st.just([]),
        ),
    ),
    config=VALUES,
    at=st.sampled_from(["nothing", "open", "track", "set_params", "train_ended", "close", "everything"]),
    error=ERRORS,
)  # fmt: skip
@settings(max_examples=80)
def test_no_event_raises_whatever_it_is_given_and_whatever_the_tracker_does(
    events: list[str], logs: Any, args: Any, state: Any, config: Any, at: str, error: BaseException
) -> None:
    callback = own_callback(Rude(at, error))
    for event in ["on_train_begin", *events, "on_log"]:
        given = {"logs": logs} if event == "on_log" else {"metrics": logs} if event == "on_predict" else {}
        getattr(callback, event)(args, state, None, model=SimpleNamespace(config=config), **given)
    callback.close("failed", "no")


def test_what_raises_takes_no_other_value_with_it() -> None:
    tracker = Rude("nothing", RuntimeError())
    log(own_callback(tracker), {"bad": Hostile(SystemExit(3)), 0: 1.0, "x": 2.0})
    assert tracker.got == ["bad", "0", "x"]


def test_strict_raises_what_is_not_the_trackers_too() -> None:
    logs: Any = Hostile(SystemExit(3))
    with pytest.raises(SystemExit):
        log(own_callback(Rude("nothing", RuntimeError()), strict=True), logs)


def test_what_a_person_or_a_signal_handler_raises_is_not_held_up() -> None:
    def stop(*_: Any) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        for call, kind in (
            (lambda: os.kill(os.getpid(), signal.SIGUSR1), SystemExit),
            (stop_by_hand, KeyboardInterrupt),
        ):
            tracker = Rude("nothing", RuntimeError())
            tracker.track = lambda *_, call=call, **__: call()  # type: ignore[method-assign]
            with pytest.raises(kind):
                log(own_callback(tracker), {"x": 1.0})
    finally:
        signal.signal(signal.SIGUSR1, before)


def stop_by_hand() -> None:
    raise KeyboardInterrupt


def log(callback: OwnRunCallback, logs: dict[Any, Any], step: int = 1, name: str = "by-hand") -> None:
    args: Any = SimpleNamespace(run_name=name, output_dir="out")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=step, epoch=0.5, log_history=[])
    callback.on_log(args, state, None, logs)


KNOWN, FORM, NAMED = "supersecretvalue123", "hf_" + "aBcDeF1234" * 4, "qqqqqqqq"


def test_no_secret_reaches_the_tracker_or_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", KNOWN)
    secrets = f"401 for https://bob:hunter2secret@h/x?token={NAMED} {FORM} {KNOWN}"
    path = tmp_path / "m.jsonl"
    callback = own_callback(get_tracker("file", path=path))
    trainer = trainer_of_ones_own(callback, tmp_path)
    trainer.args.run_name = f"run {FORM}"
    trainer.model.config.note, trainer.model.config.api_key = KNOWN, NAMED
    trainer.train()
    trainer.log({"said": secrets, KNOWN: 1.0, "api_key": NAMED, "x": 2.0})
    callback.close("failed", secrets)
    failing = own_callback(Rude("track", RuntimeError(secrets)))
    log(failing, {"x": 1.0})
    written = path.read_text() + caplog.text
    assert [each for each in (KNOWN, FORM, NAMED, "hunter2secret") if each in written] == []
    (run,) = seen_in_file(tmp_path)
    assert run.values["train", "x"] == [2.0]
    assert run.name == "run [redacted]"
    assert "401 for https://" in caplog.text


@pytest.mark.parametrize("name", TRACKERS)
def test_a_callback_that_is_asked_for_twice_is_one_and_a_closed_one_takes_nothing_more(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = get_tracker(name, **TRACKERS[name][0])
    first = own_callback(tracker)
    log(first, {"loss": 1.0})
    assert own_callback(tracker) is first
    assert "gave its one callback again" in caplog.text
    with pytest.raises(TrackerError, match="strict=False"):
        own_callback(tracker, strict=True)
    first.close()
    caplog.clear()
    log(first, {"loss": 2.0, "late": 3.0})
    log(first, {"loss": 4.0})
    first.close()
    assert [message for message in caplog.messages if "not tracked" in message] == caplog.messages[:1]
    assert first._guard.lost == 3
    second = own_callback(tracker)
    log(second, {"loss": 5.0}, name="another")
    second.close()
    wandb.teardown()
    found = {run.name: (run.status, run.values["train", "loss"]) for run in TRACKERS[name][1](tmp_path)}
    assert found == {"by-hand": ("finished", [1.0]), "another": ("finished", [5.0])}


def test_a_trainer_that_has_the_callback_twice_tracks_once() -> None:
    tracker = Rude("nothing", RuntimeError())
    callback = own_callback(tracker)
    logs, args = {"x": 1.0}, SimpleNamespace(run_name="by-hand", output_dir="out")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=1, epoch=0.5, log_history=[logs])
    for _ in range(2):
        callback.on_log(args, state, None, logs)
    state.log_history.append(logs)
    callback.on_log(args, state, None, logs)
    assert tracker.got == ["x", "x"]


def test_two_trackers_of_fmstune_are_no_double_for_transformers() -> None:
    one, two = (get_tracker(name).get_hf_callback() for name in ("none", "none"))
    assert type(one) is not type(two)


def test_every_tracker_of_fmstune_gives_a_callback() -> None:
    for name in ("none", "aim", "wandb", "mlflow", "file"):
        assert isinstance(get_tracker(name).get_hf_callback(), TrainerCallback)


def test_what_the_trainer_logs_is_sorted_by_stage_under_the_names_of_the_trade() -> None:
    logs = {
        "loss": 1.0, "eval_loss": 2.0, "test_loss": 3.0, "train_runtime": 4.0, "epoch": 0.5,
        "eval_exact_match": 5.0,
        "evaluations": 6, "eval_": 7, "step": 3,
    }  # fmt: skip
    assert split_stages(logs) == {
        "train": {"loss": 1.0, "train_runtime": 4.0, "evaluations": 6, "eval_": 7},
        "eval": {"loss": 2.0, "exact_match": 5.0},
        "test": {"loss": 3.0},
    }
