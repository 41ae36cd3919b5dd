"""The name, group, tags and notes that each tracker stored for its only run, read through the tracker's own
SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Labelled = dict[str, Any]


def from_aim(folder: Path) -> Labelled:
    """The only run of the Aim repository in `folder`."""
    import aim

    (run,) = aim.Repo.from_path(str(folder)).iter_runs()
    said = {"name": run.name, "group": run.experiment, "notes": run.description}
    return said | {"tags": sorted(run.tags)}


def from_wandb(folder: Path) -> Labelled:
    """The only run in W&B's offline files under `folder`, as the newest of them has it."""
    from tests.support.readers import read_wandb_offline, wandb_offline_dirs

    fields = read_wandb_offline(wandb_offline_dirs(folder)[-1]).fields
    said = {"name": fields["display_name"], "group": fields["run_group"], "notes": fields["notes"]}
    return said | {"tags": sorted(fields["tags"])}


def from_trackio(folder: Path) -> Labelled:
    """The only run of the project `fmstune` in the folder `trackio`."""
    import os

    from trackio.sqlite_storage import SQLiteStorage

    os.chdir(folder)  # the SDK opens its folder by a relative path
    (run,) = SQLiteStorage.get_run_records("fmstune")
    config = SQLiteStorage.get_run_config("fmstune", run_id=run["id"]) or {}
    said = {"name": run["name"], "group": config["_Group"], "notes": config.get("notes")}
    return said | {"tags": sorted(config.get("tags", []))}


def from_swanlab(folder: Path) -> Labelled:
    """The only run in the folder `swanlog`, from the first record of its file."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = (folder / "swanlog").glob("run-*/run-*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    said = Record.FromString(next(reader)).start
    found = {"name": said.name, "group": said.group, "notes": said.description}
    return found | {"tags": sorted(said.tags)}


def from_clearml(folder: Path) -> Labelled:
    """The only offline session in the folder `clearml`; a group is a project."""
    from tests.support.clearml_read import session

    _, task, _ = session(folder / "clearml")
    group = task["project_name"] if task["project_name"] != "fmstune" else None
    return {"name": task["name"], "group": group, "notes": task.get("comment"), "tags": task["tags"]}


def from_comet(folder: Path) -> Labelled:
    """The only experiment in the folder of Comet archives; each archive adds its tags."""
    from tests.support.comet_archives import archives

    found = archives(folder)
    others = {key: value for archive in found for key, value in archive.others().items()}
    tags = {tag for archive in found for tag in archive.about["tags"]}
    said = {"name": others["Name"], "group": others.get("group"), "notes": others.get("notes")}
    return said | {"tags": sorted(tags)}


def from_mlflow(folder: Path) -> Labelled:
    """The only run in the store `mlflow.db`, in any experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    (run,) = client.search_runs(list(experiments))
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith(("mlflow.", "fmstune"))}
    return {
        "name": run.info.run_name,
        "group": experiments[run.info.experiment_id],
        "notes": run.data.tags.get("mlflow.note.content"),
        "tags": sorted(f"{key}={value}" if value else key for key, value in tags.items()),
    }
