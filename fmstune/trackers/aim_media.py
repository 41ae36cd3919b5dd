"""Texts, images and histograms as Aim's own objects."""

from __future__ import annotations

from typing import Any

from fmstune.trackers.records import Media


def aim_object(media: Media) -> Any:
    """What `Run.track` is given."""
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
