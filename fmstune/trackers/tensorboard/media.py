"""Texts, images and histograms as TensorBoard's summaries.

Observed with tensorboard 2.21."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.trackers.records import Media

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_SHOWN = (".png", ".jpg", ".gif")
"""The formats whose type TensorBoard sends to the browser; it does not know WebP."""


def fenced(text: str) -> str:
    """Escape a text so that TensorBoard shows it unchanged: it renders texts as Markdown, and drops what
    looks like HTML."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def unfenced(text: str) -> str:
    """The text that was passed to `fenced`; any other text unchanged."""
    found = re.fullmatch(r"(`{3,})(?:json)?\n(.*)\n\1", text, re.S)
    return found[2] if found else text


def image_summary(media: Media) -> Summary.Image:
    """An image, as written by `SummaryWriter.add_image`."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    path = Path(str(media.file))
    with Image.open(path) as image:
        width, height = image.size
        colours = len(image.getbands())
        data = path.read_bytes()
        if path.suffix not in _SHOWN:
            file = io.BytesIO()
            image.save(file, "PNG")
            data = file.getvalue()
    return Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=data)


def histogram_value(media: Media, tag: str) -> Summary.Value:
    """A histogram, as written by `tf.summary.histogram`: left and right edge and count of each bin. (The
    format of `SummaryWriter.add_histogram` has sums of the numbers, which are not known here.)"""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
    from tensorboard.plugins.histogram.metadata import create_summary_metadata

    bins = len(media.counts)
    width = (media.high - media.low) / bins
    ends = [*(media.low + width * number for number in range(bins)), media.high]
    rows = zip(ends, ends[1:], map(float, media.counts), strict=False)
    content = b"".join(struct.pack("<3d", *row) for row in rows)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in (bins, 3)])
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=content)
    about = create_summary_metadata(display_name=None, description=None)
    return Summary.Value(tag=tag, metadata=about, tensor=tensor)
