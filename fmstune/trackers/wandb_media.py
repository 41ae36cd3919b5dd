"""Texts, images and histograms as W&B's own objects."""

from __future__ import annotations

import html
from typing import Any

from fmstune.trackers.records import Media


def wandb_object(media: Media) -> Any:
    """What `Run.log` is given. A bare text would be a value of the run's summary alone, shown in no panel."""
    import wandb

    if media.kind == "text":
        page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{html.escape(media.text)}</pre>'
        return wandb.Html(page, inject=False, data_is_not_path=True)
    if media.kind == "image":
        return wandb.Image(str(media.file), caption=media.text or None)
    width = (media.high - media.low) / len(media.counts)
    edges = [media.low + width * number for number in range(len(media.counts))]
    return wandb.Histogram(np_histogram=(list(media.counts), [*edges, media.high]))
