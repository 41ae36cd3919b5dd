"""Texts and images as artifacts of an MLflow run, images as MLflow's own `log_image` names them.

That function cannot be used: it draws a part of each name by chance, so that an image which is delivered a
second time would be there twice. What is said of MLflow was seen with mlflow-skinny 3.17.2.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.trackers.records import Artifact, Media

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_IMAGES = "mlflow.loggedImages"
"""The tag by which MLflow's UI knows that it can show a run's images by step."""
_THUMBNAIL = 256


def log_text(client: MlflowClient, run_id: str, media: Media) -> None:
    """Log a text as a file, whose name has its step and the number of its event."""
    number = media.seq or int(1000 * time.time())
    where = [media.name, *([f"step{media.step}"] if media.step is not None else []), str(number), "txt"]
    folder = f"texts/{media.stage}" if media.stage else "texts"
    client.log_text(run_id, media.text, f"{folder}/{'.'.join(where)}")


def log_files(client: MlflowClient, run_id: str, artifact: Artifact) -> None:
    """Log files in a folder of the artifact's name."""
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
