"""Texts, images and histograms of the active run: `fmstune.track_text`, `track_image`, `track_histogram`.

What is small stands in the journal's line; the rest is in a file beside it, written before the line. What
could not be written, since the disk is full, is an event that says so, as is what cannot be shown: a mistake
in the form of a call raises, while what a value holds never ends a training. It is named once, by its name.
"""

from __future__ import annotations

import logging
from typing import Any

from fmstune.delivery.journal.files import keep
from fmstune.delivery.journal.reader import Kind
from fmstune.delivery.recorder import Recorder, here
from fmstune.trackers.values.media import check_bins, encoded_image, histogram_of
from fmstune.trackers.values.plain import text_of

_MOST_IN_LINE = 4096
"""Bytes of a text that stands in the line itself."""
MOST_BYTES = 64 << 20
"""Of one text or image."""
_MOST_NAMED = 1000
logger = logging.getLogger("fmstune")


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

    Numbers beyond that are scaled to fit, modes of Pillow's that PNG does not know are converted, and what is
    no image is recorded as missing; all of that is said once.

    Raises `ValueError` when the image or its name is `None`.
    """
    if image is None or name is None:
        raise ValueError("track_image needs an image and its name")
    if (recorder := _recorder()) is None:
        return
    try:
        data, suffix, altered = encoded_image(image)
        if len(data) > MOST_BYTES:
            raise ValueError(f"{len(data):,} bytes are more than {MOST_BYTES:,}; make it smaller")
    except ValueError as error:
        _record_unreadable(recorder, "image", name, stage, step, error)
        return
    said = {"caption": recorder.hidden(text_of(caption))} if caption else {}
    if altered:
        said["altered"] = altered
        _say(recorder, "image", name, f"was changed: {altered}")
    recorder.record_item("image", name, stage, step, _kept(recorder, data, suffix) | said)


def track_histogram(
    values: Any, name: str, stage: str | None = None, *, step: int | None = None, bins: int = 64
) -> None:
    """Track how numbers are distributed, in up to 512 bins of one width: an array, a tensor, or numbers.
    Those that are not finite are left out and counted; where there is no other number, the histogram is
    recorded as missing. Both are said once.

    Raises `ValueError` when the values or their name are `None`, or not 1 to 512 bins are asked for.
    """
    if values is None or name is None:
        raise ValueError("track_histogram needs values and their name")
    check_bins(bins)
    if (recorder := _recorder()) is None:
        return
    try:
        item = histogram_of(values, bins)
    except ValueError as error:
        _record_unreadable(recorder, "histogram", name, stage, step, error)
        return
    if left_out := item.get("not_finite"):
        _say(recorder, "histogram", name, f"is without numbers that are not finite ({left_out})")
    if altered := item.get("altered"):
        _say(recorder, "histogram", name, f"was changed: {altered}")
    recorder.record_item("histogram", name, stage, step, item)


def _record_unreadable(
    recorder: Recorder, kind: Kind, name: Any, stage: str | None, step: int | None, why: ValueError
) -> None:
    reason = recorder.hidden(" ".join(str(why).split()))
    _say(recorder, kind, name, f"could not be recorded: {reason}")
    recorder.record_item(kind, name, stage, step, {"unreadable": reason})


def _say(recorder: Recorder, kind: Kind, name: Any, what: str) -> None:
    """Warn of something of this name, once."""
    called = (kind, text_of(name))
    if called not in recorder.named and len(recorder.named) < _MOST_NAMED:
        recorder.named.add(called)
        # Without arguments: the screen takes warnings of one format for one.
        logger.warning(recorder.hidden(f"the {kind} {called[1]} {what}"))


def _recorder() -> Recorder | None:
    found = here()
    return found if isinstance(found, Recorder) else None


def _kept(recorder: Recorder, data: bytes, suffix: str) -> dict[str, Any]:
    try:
        return keep(recorder.journal.path, data, suffix)
    except OSError as error:  # of the run's own disk; the training continues
        return {"lost": error.strerror or str(error), "size": len(data)}
