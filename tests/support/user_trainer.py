"""A user's own Trainer with a tracker's callback, and what the services store of it."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from fmstune import demo
from fmstune.trackers.base import Tracker
from fmstune.trackers.hf.callback import OwnRunCallback
from fmstune.trackers.records import Limits, RunStart, Status, TrackerRun
from tests.support.mlflow_servers import store_in
from tests.support.readers import event_accumulator, read_aim, read_wandb_offline, wandb_offline_dirs


def user_trainer(
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
    """A service's copy of a run: the values of each (stage, metric), in order."""

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


def seen_by_mlflow(folder: Path) -> list[Seen]:
    from mlflow.tracking import MlflowClient

    client, runs = MlflowClient(f"sqlite:///{folder}/mlflow.db"), []
    for run in client.search_runs(["0"]):
        values: dict[tuple[str | None, str], list[Any]] = {}
        for key in run.data.metrics:
            stage, name = ("eval", key[5:]) if key.startswith("eval_") else ("train", key)
            stage, name = tuple(key.split("/", 1)) if "/" in key else (stage, name)
            found = sorted(client.get_metric_history(run.info.run_id, key), key=lambda each: each.timestamp)
            values[stage, name] = [each.value for each in found]
        params: dict[str, Any] = {}
        for key, text in run.data.params.items():
            namespace, _, name = key.partition(".")
            with contextlib.suppress(ValueError, SyntaxError):
                text = ast.literal_eval(text)
            params.setdefault(namespace, {})[name] = text
        words = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
        runs.append(Seen(run.info.run_name, words.get(run.info.status), values, params))
    return runs


def seen_by_tensorboard(folder: Path) -> list[Seen]:
    runs = []
    for path in (folder / "tensorboard").iterdir():
        found = event_accumulator(path)
        values: dict[tuple[str | None, str], list[Any]] = {}
        for tag in found.Tags()["scalars"]:
            stage, _, name = tag.partition("/")
            values[stage, name] = [each.value for each in found.Scalars(tag)]
        texts = {
            tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for tag in found.Tags()["tensors"]
            if found.summary_metadata[tag].plugin_data.plugin_name == "text"
        }
        status = texts.pop("status", "").partition(":")[0] or None
        params = {tag: json.loads(text.strip("`json\n")) for tag, text in texts.items()}
        runs.append(Seen(path.name, status, values, params))
    return runs


class TrackerCase(NamedTuple):
    """A tracker's options, a reader of what its service stores in a folder, and how to prepare that
    folder."""

    given: dict[str, str]
    seen: Callable[[Path], list[Seen]]
    prepare: Callable[[Path], object] = lambda _: None

    def options(self, folder: Path) -> dict[str, str]:
        """The options for this folder: MLflow keeps a store open by its address, which has to be absolute."""
        self.prepare(folder)
        return {key: value.format(folder=folder) for key, value in self.given.items()}


TRACKERS = {
    "aim": TrackerCase({"repo": "."}, seen_by_aim),
    "wandb": TrackerCase({"mode": "offline"}, seen_by_wandb),
    "mlflow": TrackerCase({"tracking_uri": "sqlite:///{folder}/mlflow.db"}, seen_by_mlflow, store_in),
    "tensorboard": TrackerCase({"dir": "tensorboard"}, seen_by_tensorboard),
    "file": TrackerCase({"path": "m.jsonl"}, seen_in_file),
}


def log(callback: OwnRunCallback, logs: dict[Any, Any], step: int = 1, name: str = "by-hand") -> None:
    args: Any = SimpleNamespace(run_name=name, output_dir="out")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=step, epoch=0.5, log_history=[])
    callback.on_log(args, state, None, logs)


class RaisingTracker(Tracker):
    """Raises in one of its hooks, or for one metric."""

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
