"""Texts, images, histograms and files as W&B's own objects."""

from __future__ import annotations

import html
import re
from typing import Any

from fmstune.trackers.records import Artifact, Media

_MOST_NAME = 64


def wandb_object(media: Media) -> Any:
    """The object to pass to `Run.log`. A plain string would only be a value of the summary, shown in no
    panel."""
    import wandb

    if media.kind == "text":
        page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{html.escape(media.text)}</pre>'
        return wandb.Html(page, inject=False, data_is_not_path=True)
    if media.kind == "image":
        return wandb.Image(str(media.file), caption=media.text or None)
    width = (media.high - media.low) / len(media.counts)
    edges = [media.low + width * number for number in range(len(media.counts))]
    return wandb.Histogram(np_histogram=(list(media.counts), [*edges, media.high]))


def wandb_artifact(artifact: Artifact, run_id: str) -> Any:
    """The object to pass to `Run.log_artifact`. Artifact names are unique per project, so the name includes
    the run's id; the same content is the same version."""
    import wandb

    name = re.sub(r"[^\w.-]", "_", artifact.name, flags=re.ASCII)[:_MOST_NAME]
    kind = re.sub(r"[^\w.-]", "_", artifact.type, flags=re.ASCII)[:_MOST_NAME] or "file"
    made = wandb.Artifact(f"{name}-{run_id}", kind)
    for file in artifact.files:  # read in place; nothing changes it
        made.add_file(str(artifact.folder / file), name=file, policy="immutable")
    return made
