"""Texts, images, histograms and files as Aim's own objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmstune.trackers.records import Artifact, Media


def aim_object(media: Media) -> Any:
    """The object to pass to `Run.track`."""
    from aim import Distribution, Image, Text

    if media.kind == "text":
        return Text(media.text)
    if media.kind == "histogram":
        return Distribution.from_histogram(media.counts, (media.low, media.high))
    return Image(_loaded(media), caption=media.text, format="png")


def _loaded(media: Media) -> Any:
    # Given a path, Aim guesses the format from its name.
    from PIL import Image as Pillow

    with Pillow.open(str(media.file)) as image:
        image.load()
        return image.copy()


def log_files(run: Any, artifact: Artifact, where: Path) -> None:
    """Copy files into a folder next to Aim's own, unless the user has set another location in Aim.

    `Run.log_artifact` is not used: on an error it only logs, and returns as if it had succeeded.
    """
    from aim.sdk.objects.artifact import Artifact as AimArtifact

    if run.artifacts_uri is None:
        run.set_artifacts_uri(where.absolute().as_uri())
    for name in artifact.files:
        made = AimArtifact(str(artifact.folder / name), uri=run.artifacts_uri, name=f"{artifact.name}/{name}")
        made.upload(block=True)
        run.meta_run_tree.subtree("artifacts")[made.name] = made
