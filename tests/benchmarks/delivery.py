"""Delivering a run to each tracker, against a bare loop on its SDK.

`python -m tests.benchmarks.delivery [N] [TRACKER]…`: N events of four metrics (default 10,000) are delivered
from a journal as a shipper does it, and logged by a loop with the SDK's fastest call for them, in separate
processes, interleaved. Printed are the median CPU seconds, without the import of the SDK, and the peak memory
of a process. `reader` only reads the journal.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fmstune.delivery.journal.reader import Header, JournalReader
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.ledger import Ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.registry import get_tracker
from tests.benchmarks.results import multiple, record

EVENTS, TURNS = 10_000, 3
LONG = 100_000
"""With this many events or more, one turn is enough."""
OPTIONS = {
    "aim": {"repo": "aim"},
    "mlflow": {"tracking_uri": "sqlite:///mlflow.db"},
    "tensorboard": {"dir": "tensorboard"},
    "trackio": {"project": "benchmark"},
    "file": {"path": "events.jsonl"},
}
_BATCH, _ROWS = 1000, 5000
"""Metrics per batch, which is MLflow's maximum, and rows."""


def logged(events: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The steps and metrics of a training."""
    for step in range(1, events + 1):
        loss = 2 + 1 / step
        yield step, {"loss": loss, "learning_rate": 1e-4 / step, "grad_norm": loss / 3, "accuracy": 0.5}


def bare_aim(events: int) -> None:
    """Aim's `track`, which accepts a mapping of metrics."""
    from aim import Run

    run = Run(repo="aim", system_tracking_interval=None, log_system_params=False)
    for step, values in logged(events):
        run.track(values, step=step, epoch=step / 100, context={"subset": "train"})
    run.close()


def bare_mlflow(events: int) -> None:
    """MLflow's `log_batch`."""
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    run_id, waiting, moment = client.create_run("0").info.run_id, list[Metric](), int(1000 * time.time())
    for step, values in logged(events):
        waiting += [Metric(name, value, moment, step) for name, value in values.items()]
        if len(waiting) >= _BATCH:
            client.log_batch(run_id, waiting)
            waiting = []
    client.log_batch(run_id, waiting)
    client.set_terminated(run_id)


def bare_tensorboard(events: int) -> None:
    """TensorBoard's record writer, with one event per step; torch's `add_scalars` creates one per metric."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    Path("tensorboard").mkdir()
    with Path("tensorboard/events.out.tfevents.1").open("wb") as file:
        writer = RecordWriter(file)
        for step, values in logged(events):
            found = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in values.items()]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=found))
            writer.write(event.SerializeToString())


def bare_trackio(events: int) -> None:
    """trackio's `bulk_log`, with rows as in transformers' integration; its `log` queues them first."""
    from trackio.sqlite_storage import SQLiteStorage

    rows, steps = list[dict[str, float]](), list[int]()
    for step, values in logged(events):
        row = {f"train/{name}": value for name, value in values.items()}
        rows.append(row | {"train/global_step": step, "train/epoch": step / 100})
        steps.append(step)
        if len(rows) >= _ROWS or step == events:
            SQLiteStorage.bulk_log("benchmark", "bare", rows, steps, run_id="bare")
            rows, steps = [], []


def bare_file(events: int) -> None:
    """One JSON line per step."""
    with Path("events.jsonl").open("w", encoding="utf-8") as file:
        for step, values in logged(events):
            line = {
                "time": time.time(),
                "stage": "train",
                "step": step,
                "epoch": step / 100,
                "values": values,
            }
            file.write(json.dumps(line) + "\n")


BARE: dict[str, Callable[[int], None]] = {
    "aim": bare_aim,
    "mlflow": bare_mlflow,
    "tensorboard": bare_tensorboard,
    "trackio": bare_trackio,
    "file": bare_file,
}


def write_journal(directory: Path, events: int) -> Path:
    """The journal of a run that logged so many events."""
    path = directory / TRACKING_DIR / JOURNAL_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    journal = JournalWriter(path, Header("benchmark", "benchmark", time.time(), str(directory)))
    recorder = Recorder(journal)
    for step, values in logged(events):
        recorder.track_point(MetricPoint(values, "train", step, step / 100))
    recorder.close("finished")
    journal.close()
    return path


def ours(name: str, directory: Path) -> None:
    """What a shipper does, without its supervisor."""
    tracker = get_tracker(name, **OPTIONS[name])
    delivery = Delivery(directory, tracker, Ledger(name))
    assert delivery.run(lambda: True).state == "complete"


def turn(who: str, name: str, run: Path) -> None:
    """One delivery, or loop, in this process; its wall-clock seconds, CPU seconds and memory."""
    events = (
        sum(1 for _ in JournalReader(run / TRACKING_DIR / JOURNAL_NAME)) - 1 if who == "ours" else int(who)
    )
    __import__(name) if name != "file" else None
    if name == "aim":
        __import__("aim.sdk.run")
    if name == "trackio":
        __import__("trackio.sqlite_storage")
    wall, cpu = time.perf_counter(), time.process_time()
    if who == "ours":
        ours(name, run)
    else:
        BARE[name](events)
    spent = [time.process_time() - cpu, time.perf_counter() - wall]
    print(json.dumps([*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measured(who: str, name: str, run: Path) -> list[float]:
    """`turn` in a process and a folder of its own, which contains the journal."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run" / TRACKING_DIR
        copy.mkdir(parents=True)
        (copy / JOURNAL_NAME).hardlink_to(run / TRACKING_DIR / JOURNAL_NAME)
        environment = os.environ | {
            "TRACKIO_DIR": f"{folder}/trackio",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.delivery", "turn", who, name, str(copy.parent)],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    if sys.argv[1:2] == ["turn"]:
        turn(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return
    events = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder).resolve()
        path = write_journal(run, events)
        began = time.process_time()
        read = sum(1 for _ in JournalReader(path))
        print(f"reader       {read / (time.process_time() - began):,.0f} events a second")
        ratios = {}
        for name in sys.argv[2:] or OPTIONS:
            rounds = range(TURNS if events < LONG else 1)
            turns = [(measured("ours", name, run), measured(str(events), name, run)) for _ in rounds]
            mine, bare = ([statistics.median(column) for column in zip(*side, strict=True)]
                          for side in zip(*turns, strict=True))  # fmt: skip
            ratio = ratios[name] = statistics.median(one[0] / other[0] for one, other in turns)
            print(
                f"{name:<12} {mine[0] / events * 1e6:6.1f} us an event, bare {bare[0] / events * 1e6:6.1f}   "
                f"{ratio:5.2f} x   wall {mine[1] / bare[1]:5.2f} x   "
                f"{mine[2]:4.0f} MB, bare {bare[2]:4.0f} MB",
                flush=True,
            )
        record(
            f"delivering {events:,} events of four metrics",
            "a loop on the SDK's fastest call, or bare JSON lines for `file`",
            ", ".join(f"{name} {multiple(ratio)}" for name, ratio in ratios.items()) + " its CPU time",
        )


if __name__ == "__main__":
    main()
