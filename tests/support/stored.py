"""The content of each tracker's storage for a run, read through its own SDK, in one common shape.

    {"points": [[key, step, value], …], "params": {namespace: …}, "tables": [[key, step, [row, …]], …],
     "status": …}

A key is `stage/name`, or the name if there is no stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import merged

Stored = dict[str, Any]


def from_aim(folder: Path) -> Stored:
    """The only run of the Aim repository in `folder`."""
    import aim
    from aim.sdk.sequences.text_sequence import Texts

    (run,) = aim.Repo.from_path(str(folder)).iter_runs()
    points = []
    for metric in run.metrics():
        frame = metric.dataframe()
        key = _key(metric.context.to_dict().get("subset"), metric.name)
        points += [[key, *each] for each in zip(frame["step"].tolist(), frame["value"].tolist(), strict=True)]
    tables = []
    for name, context, _ in run.iter_sequence_info_by_type(Texts.allowed_dtypes()):
        sequence = run.get_text_sequence(name, context)
        key = _key(context.to_dict().get("subset"), name)
        for step, (texts, *_) in sequence.data.items():
            lines = texts if isinstance(texts, (list, tuple)) else [texts]
            tables.append([key, step, [text.data for text in lines if text.data != "(no rows)"]])
    params = {name: value for name, value in run[...].items() if name not in ("status", "error")}
    return {"points": points, "params": params, "tables": tables, "status": run.get("status")}


def from_wandb(folder: Path) -> Stored:
    """The only run in W&B's offline files under `folder`; a resumed run has several files."""
    from tests.support.readers import read_wandb_offline, wandb_offline_dirs

    points, tables, ids, status = [], [], set(), None
    params: dict[str, Any] = {}
    for path in wandb_offline_dirs(folder):
        run = read_wandb_offline(path)
        ids.add(run.id)
        params |= run.config
        status = run.summary.get("fmstune/status", status)
        for row in run.history:
            step = row.pop("train/global_step", None)
            files = [key.removesuffix("._type") for key, value in row.items() if value == "table-file"]
            for key in files:
                saved = json.loads((path / "files" / row[f"{key}.path"]).read_text())
                tables.append([key, step, [_row(saved["columns"], cells) for cells in saved["data"]]])
            for key, value in row.items():
                own = key in ("train/epoch", "_step", "_timestamp", "_runtime")
                if not own and key.rpartition(".")[0] not in files:
                    points.append([key, step, value])
    assert len(ids) == 1
    return {"points": points, "params": params, "tables": tables, "status": status}


def from_swanlab(folder: Path) -> Stored:
    """The only run in the folder `swanlog`, read as `swanlab sync` reads it. It keeps the first value of each
    step."""
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (run,) = (folder / "swanlog").glob("run-*")
    (file,) = run.glob("run-*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    first, *records = [Record.FromString(data) for data in reader]
    assert first.HasField("start")
    assert len({record.num for record in records}) == len(records), "`swanlab sync` sends one of these"
    points, tables, seen, status = [], [], set(), None
    kinds: dict[str, int] = {}
    for record in records:
        if record.HasField("column"):
            kinds[record.column.column_key] = record.column.column_type
        elif record.HasField("finish"):
            status = {1: "finished", 2: "failed", 3: "interrupted"}[record.finish.state]
        elif record.HasField("scalar") or record.HasField("media"):
            each = record.scalar if record.HasField("scalar") else record.media
            assert kinds[each.key] == each.type, "`swanlab sync` leaves it out"
            assert (each.key, each.step) not in seen, "`swanlab sync` leaves it out"
            seen.add((each.key, each.step))
            if each.key in ("train/global_step", "train/epoch"):
                continue
            if record.HasField("scalar"):
                points.append([each.key, each.step, each.value.number])
                continue
            (item,) = each.value.items
            place = run / "media" / "echarts" / item.filename
            saved = json.loads(place.read_text()) if place.exists() else {}
            if "_swanLab" not in saved:  # text, an image or a histogram
                continue
            columns = [column["field"] for column in saved["colDefs"]]
            rows = [_row(columns, [row[column] for column in columns]) for row in saved["rowData"]]
            tables.append([each.key, each.step, rows])
    config = run / "files" / "config.yaml"
    params = yaml.safe_load(config.read_text()) if config.exists() else {}
    params = {name: each["value"] for name, each in params.items()}
    return {"points": points, "params": params, "tables": tables, "status": status}


def from_file(folder: Path) -> Stored:
    """The only run in the file `stored.jsonl` of the tracker `file`."""
    points, tables, status = [], [], None
    params: dict[str, Any] = {}
    for line in (folder / "stored.jsonl").read_text().splitlines():
        row = json.loads(line)
        stage, step, values = row.get("stage"), row.get("step"), row["values"]
        if row["kind"] == "metrics":
            points += [[_key(stage, name), step, value] for name, value in values.items()]
        elif row["kind"] == "params":
            params[stage] = merged(params.get(stage, {}), values)
        elif row["kind"] == "table":
            for name, rows in values.items():
                tables.append(
                    [_key(stage, name), step, [_row(list(each), list(each.values())) for each in rows]]
                )
        elif row["kind"] == "status":
            status = values["status"]
    return {"points": points, "params": params, "tables": tables, "status": status}


def from_mlflow(folder: Path) -> Stored:
    """The only run in the store `mlflow.db`. Params are strings under dotted names, all of them in `*`. The
    key of a metric is the one of each stage and name that MLflow would give this name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"])
    points = []
    for name in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, name):
            points += [[key, each.step, each.value] for key in _mlflow_keys(name)]
    tables = []
    for place in json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]")):
        text = Path(client.download_artifacts(run.info.run_id, place["path"])).read_text()
        saved, (_, *stage, name) = json.loads(text), place["path"].split("/")
        stem, _, step = name.removesuffix(".json").rpartition(".")[0].rpartition(".step")
        rows = [_row(saved["columns"], cells) for cells in saved["data"]]
        tables.append([_key("/".join(stage), stem), int(step), rows])
    status = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}.get(run.info.status)
    return {"points": points, "params": {"*": dict(run.data.params)}, "tables": tables, "status": status}


def _mlflow_keys(name: str) -> list[str]:
    keys = [name, f"train/{name}"]
    for stage in ("eval", "test"):
        keys += [f"{stage}/{name.removeprefix(f'{stage}_')}"] if name.startswith(f"{stage}_") else []
    return keys


def from_tensorboard(folder: Path) -> Stored:
    """The only run below the folder `tensorboard`. A tag is that of a metric, a table or a namespace."""
    from tests.support.readers import event_accumulator

    (run,) = (folder / "tensorboard").iterdir()
    found = event_accumulator(run)
    status = None
    points = [[tag, each.step, each.value] for tag in found.Tags()["scalars"] for each in found.Scalars(tag)]
    tables: list[Any] = []
    params: dict[str, Any] = {}
    for tag in found.Tags()["tensors"]:
        if found.summary_metadata[tag].plugin_data.plugin_name != "text":
            continue
        for each in found.Tensors(tag):
            texts = [text.decode() for text in each.tensor_proto.string_val]
            sizes = [dim.size for dim in each.tensor_proto.tensor_shape.dim]
            if sizes:
                rows = [texts[at : at + sizes[1]] for at in range(0, len(texts), sizes[1])]
                tables.append([tag, each.step, [_row(rows[0], cells) for cells in rows[1:]]])
            elif tag == "status":
                status = texts[0].partition(":")[0]
            elif texts[0].startswith("```json\n"):  # otherwise tracked text
                params[tag] = json.loads(texts[0].removeprefix("```json\n").removesuffix("\n```"))
    return {"points": points, "params": params, "tables": tables, "status": status}


def from_trackio(folder: Path) -> Stored:
    """The only run of the project `fmstune` in the folder `trackio`."""
    from trackio.sqlite_storage import SQLiteStorage

    from fmstune.trackers.continued import MARK

    os.chdir(folder)  # the SDK opens its folder by a relative path
    project = "fmstune"
    (record,) = SQLiteStorage.get_run_records(project)
    config = SQLiteStorage.get_run_config(project, run_id=record["id"]) or {}
    points, tables = [], []
    for row in SQLiteStorage.get_logs(project, run_id=record["id"]):
        step = row.pop("step")
        for own in ("timestamp", "train/global_step", "train/epoch"):
            row.pop(own, None)
        for key, value in row.items():
            if not isinstance(value, dict):
                points.append([key, step, value])
            elif value["_type"] == "trackio.table":
                rows = [_row(list(each), list(each.values())) for each in value["_value"]]
                tables.append([key, step, rows])
    own_keys = {"_Username", "_Created", "_Group", "status", "error", "tags", "notes", MARK}
    params = {name: value for name, value in config.items() if name not in own_keys}
    return {"points": points, "params": params, "tables": tables, "status": config.get("status")}


def from_dvclive(folder: Path) -> Stored:
    """The only run below the folder `dvclive`, read as DVC reads such a folder: `dvc.yaml` names its
    files."""
    from dvclive.serialize import load_yaml
    from dvclive.utils import parse_tsv

    (run,) = (folder / "dvclive").iterdir()
    about = load_yaml(run / "dvc.yaml")
    points = []
    for plots in [next(iter(each)) for each in about.get("plots", []) if isinstance(each, dict)]:
        for path in (run / plots).rglob("*.tsv"):
            key = str(path.relative_to(run / plots)).removesuffix(".tsv")
            for row in parse_tsv(path) if key != "epoch" else ():
                value = float(row[path.name.removesuffix(".tsv")])
                points += [[each, int(row["step"]), value] for each in (key, f"train/{key}")]
    tables = []
    for path in (run / "tables").rglob("*.json"):
        key, rows = str(path.parent.relative_to(run / "tables")), json.loads(path.read_text())
        step = int(path.stem.partition("-")[0])
        tables.append([key, step, [_row(list(each), list(each.values())) for each in rows]])
    params = load_yaml(run / about["params"][0]) if "params" in about else {}
    (metrics,) = about["metrics"]
    status = json.loads((run / metrics).read_text()).get("status")
    return {"points": points, "params": params, "tables": tables, "status": status}


def from_comet(folder: Path) -> Stored:
    """The only experiment in the folder of archives, read from the files that `comet upload` reads. Params
    are strings; the `|` in their names is replaced by a dot."""
    from tests.support.comet_archives import archives, csv_rows

    points, tables, status = [], [], None
    params: dict[str, str] = {}
    for archive in archives(folder):
        for name, step, value in archive.points():
            if name != "train/epoch":
                points.append([name, step, float(value) if isinstance(value, str) else value])
        for asset in archive.assets("asset"):
            if "artifact" in asset.metadata:
                continue
            rows = [_row(list(each), list(each.values())) for each in csv_rows(asset.data.decode())]
            tables.append([asset.metadata["name"], asset.said["step"], rows])
        params |= {name.replace("|", "."): value for name, value in archive.params().items()}
        status = archive.others().get("status", status)
    return {"points": points, "params": {"*": params}, "tables": tables, "status": status}


def from_clearml(folder: Path) -> Stored:
    """The only offline session in the folder `clearml`. Params are strings under dotted names, in `*`."""
    from tests.support.clearml_read import session, stored

    _, task, events = session(folder / "clearml")
    return stored(task, events)


class Naive(Tracker):
    """A minimal plug-in: the few lines that the interface requires, for a service that replaces a
    namespace."""

    registered_name = "naive"

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        self._write("points", [_key(stage, name), step, metric])

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self._write("params", {name or "params": params})

    def _write(self, kind: str, value: Any) -> None:
        with Path("naive.jsonl").open("a") as file:
            file.write(json.dumps([kind, value]) + "\n")


def from_naive(folder: Path) -> Stored:
    """What `Naive` stored; tables reach it as params."""
    stored: Stored = {"points": [], "params": {}, "tables": []}
    for line in (folder / "naive.jsonl").read_text().splitlines():
        kind, value = json.loads(line)
        if kind == "points":
            stored["points"].append(value)
            continue
        ((name, values),) = value.items()
        if name.startswith("eval/table"):
            stage, table, *step = name.split("/")
            rows = [_row(list(row), list(row.values())) for row in values.values()]
            number = int(step[0].split()[1]) if step else None
            stored["tables"].append([_key(stage, table), number, rows])
        else:
            stored["params"][name] = values
    return stored


def _key(stage: str | None, name: str) -> str:
    return f"{stage}/{name}" if stage else name


def _row(columns: list[str], cells: list[Any]) -> str:
    return "\n".join(f"{column}: {cell}" for column, cell in zip(columns, cells, strict=True))
