"""The labels of a run in MLflow: its experiment, tags and description.

MLflow's behaviour was observed with mlflow-skinny 3.17.2.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmstune.trackers.continued import MARK
from fmstune.trackers.records import TrackerError, utf8

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

MOST_TAG = 5000
_MOST_KEY, _MOST_EXPERIMENT = 250, 250
_NO_KEY = re.compile(r"[^/\w.\- :]")
_NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""


def experiment_name(options: Any) -> str | None:
    """The experiment that the user chose for this tracker."""
    return options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")


def experiment_of(client: MlflowClient, name: str | None, group: str | None) -> str:
    """The id of a new run's experiment, which is created when absent: the chosen one, else the one named
    after the run's group, else MLflow's default."""
    from mlflow.exceptions import MlflowException

    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if name is None and (given or not group):
        return given or "0"
    name = name or utf8(group or "").replace("\0", "_")[:_MOST_EXPERIMENT]
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run has created it meanwhile
            if found is None:
                raise error from None
    if found.lifecycle_stage != "active":
        raise TrackerError(f"the experiment {name!r} is deleted: restore it, or choose another.")
    return str(found.experiment_id)


def own_tags() -> dict[str, str]:
    """The tags that MLflow's own API gives a new run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "fmstune", "mlflow.source.type": "LOCAL"}


def tags_of(tags: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A run's tags as MLflow's pairs: `team=nlp` becomes `nlp` under `team`, a plain word has no value. Also
    returns a sentence for each tag that had to be changed."""
    found: dict[str, str] = {}
    changes = []
    for tag in filter(None, tags):
        given, _, value = utf8(tag).replace("\0", "_").partition("=")
        key = _NO_KEY.sub("_", given)[:_MOST_KEY] or "_"
        if key.startswith("mlflow."):  # MLflow interprets these itself
            key = f"_{key}"[:_MOST_KEY]
        if key != given or len(value) > MOST_TAG:
            changes.append(f"the tag {given[:80]} is called {key[:80]}")
        found[key] = value[:MOST_TAG]
    return found, changes


def note_of(notes: str | None) -> dict[str, str]:
    """The tag that is a run's description."""
    return {_NOTE: utf8(notes).replace("\0", "\\0")[:MOST_TAG]} if notes else {}


def reopen(client: MlflowClient, run: Run, name: str, tags: Mapping[str, str]) -> None:
    """Open an existing run and update its name and labels."""
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    if run.info.run_name != name:
        client.update_run(run.info.run_id, name=name)
    for key, value in tags.items():
        if run.data.tags.get(key) != value:
            client.set_tag(run.info.run_id, key, value)


def read_mark(run: Run | None) -> dict[str, Any]:
    """Which run of fmstune the MLflow run holds, and up to which event."""
    try:
        found = json.loads(run.data.tags.get(MARK, "{}")) if run is not None else {}
    except ValueError:  # a user's own
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("last_event", 0), int) else {}


def mark_text(held: dict[str, Any], changes: Sequence[str]) -> str:
    """The tag that records which fmstune run the MLflow run holds, up to which event, and what was adapted.
    Stored events are not delivered again, so after a kill nothing else would know of the adaptations."""
    kept = list(changes)
    while len(text := json.dumps({**held, "changes": kept} if kept else held)) > MOST_TAG:
        kept = kept[: len(kept) // 2]
        kept += [f"{len(changes) - len(kept)} more were adapted, as the process that was killed knew"]
    return text


def changes_of(found: dict[str, Any]) -> dict[str, None]:
    """What was adapted, according to a mark."""
    said = found.get("changes")
    return {str(each): None for each in said} if isinstance(said, list) else {}
