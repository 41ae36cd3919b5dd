"""Tables, texts and images as artifacts of an MLflow run, images named as by MLflow's own `log_image`.

That function cannot be used: it puts a random part into each name, so an image that is delivered twice would
be stored twice. MLflow's behaviour was observed with mlflow-skinny 3.17.2.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.trackers.mlflow.labels import MOST_TAG
from fmstune.trackers.records import Artifact, Media, Table

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_TABLES = "mlflow.loggedArtifacts"
_NOT_IN_PATHS = r'[:*?"<>|\\]'
"""Characters that `mlflow.load_table` refuses in a file name, on any system."""
_IMAGES = "mlflow.loggedImages"
"""The tag that tells MLflow's UI that it can show a run's images by step."""
_THUMBNAIL = 256


def log_text(client: MlflowClient, run_id: str, media: Media) -> None:
    """Log a text as a file whose name contains its step and the number of its event."""
    number = media.seq or int(1000 * time.time())
    where = [media.name, *([f"step{media.step}"] if media.step is not None else []), str(number), "txt"]
    client.log_text(run_id, media.text, f"{_folder('texts', media.stage)}/{'.'.join(where)}")


def log_table(client: MlflowClient, run_id: str, table: Table) -> None:
    """Log a table as a file that MLflow's UI and `load_table` read."""
    columns = list(table.columns)
    rows = [[row.get(column) for column in columns] for row in table.rows]
    where = [f"step{table.step}" if table.step is not None else None, table.seq or int(1000 * time.time())]
    file = ".".join(str(part) for part in (table.name, *where, "json") if part is not None)
    path = f"{_folder('tables', table.stage)}/{file}"
    client.log_dict(run_id, {"columns": columns, "data": rows}, path)
    known = json.loads(client.get_run(run_id).data.tags.get(_TABLES, "[]"))
    if (entry := {"path": path, "type": "table"}) not in known:
        listed = json.dumps([*known, entry])
        if len(listed) < MOST_TAG:  # beyond that, they are shown as JSON
            client.set_tag(run_id, _TABLES, listed)


def _folder(kind: str, stage: str | None) -> str:
    """The folder of a stage. A stage is part of a metric's name, which may have characters that a path may
    not."""
    return f"{kind}/{re.sub(_NOT_IN_PATHS, '_', stage)}" if stage else kind


def log_files(client: MlflowClient, run_id: str, artifact: Artifact) -> None:
    """Log files in a folder named after the artifact."""
    client.log_artifacts(run_id, str(artifact.folder), artifact.name)


def log_image(client: MlflowClient, run_id: str, media: Media) -> None:
    """Log an image and its small copy, which MLflow's UI shows by step."""
    from PIL import Image

    key = f"{media.stage}~{media.name}" if media.stage else media.name
    own = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {media.seq or time.time_ns()}")
    moment = int(1000 * (media.time or time.time()))
    stem = f"{key}+step+{media.step or 0}+timestamp+{moment}+{own}"
    assert media.file is not None
    with tempfile.TemporaryDirectory() as folder, Image.open(media.file) as image:
        whole, small = Path(folder, f"{stem}.png"), Path(folder, f"{stem}+compressed.webp")
        if media.file.suffix == ".png":
            shutil.copyfile(media.file, whole)
        else:
            image.save(whole)
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(small)
        for path in (whole, small):
            client.log_artifact(run_id, str(path), "images")
    client.set_tag(run_id, _IMAGES, "True")
