"""Texts, images, histograms and files as W&B's own objects."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from fmstune.system.files import link_or_copy
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


def wandb_artifact(artifact: Artifact, run_id: str, folder: Path | None) -> Any:
    """The object to pass to `Run.log_artifact`. Artifact names are unique per project, so the name includes
    the run's id; the same content is the same version. The files are read from `folder`, which gets links to
    them, or without one from where they are. Raises `OSError`."""
    import wandb

    name = re.sub(r"[^\w.-]", "_", artifact.name, flags=re.ASCII)[:_MOST_NAME]
    kind = re.sub(r"[^\w.-]", "_", artifact.type, flags=re.ASCII)[:_MOST_NAME] or "file"
    made = wandb.Artifact(f"{name}-{run_id}", kind)
    for file in artifact.files:
        source = artifact.folder / file
        if folder is not None:
            path = folder / artifact.folder.name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            link_or_copy(source, path)
            source = path
        made.add_file(str(source), name=file, policy="immutable")  # W&B copies others; nothing changes it
    return made
