"""Texts, images and histograms of the active run: `fmstune.track_text`, `track_image`, `track_histogram`.

What is small stands in the journal's line; the rest is in a file beside it, written before the line. What
could not be written, since the disk is full, is an event that says so.
"""

from __future__ import annotations

from typing import Any

from fmstune.delivery.journal.files import keep
from fmstune.delivery.recorder import Recorder, here
from fmstune.trackers.values.media import encoded_image, histogram_of
from fmstune.trackers.values.plain import text_of

_MOST_IN_LINE = 4096
"""Bytes of a text that stands in the line itself."""
MOST_BYTES = 64 << 20
"""Of one text or image."""


def track_text(text: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
    """Track a text of the active run, such as an answer, from anywhere in the training process, or in a child
    that it forks. Does nothing when no run is active here.

    Raises `ValueError` when the text or its name is `None`.
    """
    if text is None or name is None:
        raise ValueError("track_text needs a text and its name")
    if (recorder := _recorder()) is not None:
        record_text(recorder, text, name, stage, step)


def record_text(recorder: Recorder, text: Any, name: str, stage: str | None, step: int | None) -> None:
    """Record a text; a long one is a file beside the journal."""
    written = recorder.hidden(text if type(text) is str else text_of(text), name)
    data = written.encode("utf-8", "backslashreplace")
    if len(data) <= _MOST_IN_LINE:
        item: dict[str, Any] = {"text": written}
    else:
        item = _kept(recorder, data[:MOST_BYTES], ".txt")
        if len(data) > MOST_BYTES:
            item["cut"] = len(data)
    recorder.record_item("text", name, stage, step, item)


def track_image(
    image: Any, name: str, stage: str | None = None, *, step: int | None = None, caption: str = ""
) -> None:
    """Track an image of the active run: a path of a PNG, JPEG, GIF or WebP, its bytes, an image of Pillow's,
    a figure of Matplotlib's, or an array or tensor of (height, width) or (height, width, 1, 3 or 4), also
    with its channels first: integers from 0 to 255, or numbers from 0 to 1.

    Raises `ValueError` when its name is `None`, or it is no image.
    """
    if name is None:
        raise ValueError("track_image needs an image and its name")
    data, suffix = encoded_image(image)
    if len(data) > MOST_BYTES:
        raise ValueError(f"track_image: {len(data):,} bytes are more than {MOST_BYTES:,}; make it smaller")
    if (recorder := _recorder()) is None:
        return
    said = {"caption": recorder.hidden(text_of(caption))} if caption else {}
    recorder.record_item("image", name, stage, step, _kept(recorder, data, suffix) | said)


def track_histogram(
    values: Any, name: str, stage: str | None = None, *, step: int | None = None, bins: int = 64
) -> None:
    """Track how numbers are distributed, in up to 512 bins of one width: an array, a tensor, or numbers.
    Those that are not finite are counted, and named where the run is delivered.

    Raises `ValueError` when the name is `None`, there is no number, or not 1 to 512 bins are asked for.
    """
    if name is None:
        raise ValueError("track_histogram needs values and their name")
    item = histogram_of(values, bins)
    if (recorder := _recorder()) is not None:
        recorder.record_item("histogram", name, stage, step, item)


def _recorder() -> Recorder | None:
    found = here()
    return found if isinstance(found, Recorder) else None


def _kept(recorder: Recorder, data: bytes, suffix: str) -> dict[str, Any]:
    try:
        return keep(recorder.journal.path, data, suffix)
    except OSError as error:  # of the run's own disk; the training goes on
        return {"lost": error.strerror or str(error), "size": len(data)}
