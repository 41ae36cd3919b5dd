"""Texts, images and histograms of the active run: `fmstune.track_text`, `track_image`, `track_histogram`.

Small values are stored in the journal's line; others in a file next to it, written before the line. What
could not be written because the disk is full, or cannot be displayed, becomes an event that records the
reason. An invalid call raises, but no value ever ends a training. Each problem is reported once per name.
"""

from __future__ import annotations

import logging
from typing import Any

from fmstune.delivery.journal.files import store_file
from fmstune.delivery.journal.reader import Kind
from fmstune.delivery.recorder import Recorder, active_recorder
from fmstune.trackers.values.media import check_bins, encoded_image, histogram_of
from fmstune.trackers.values.plain import text_of

_MOST_IN_LINE = 4096
"""The most bytes of a text that is stored in the line itself."""
MOST_BYTES = 64 << 20
"""The most bytes of one text or image."""
_MOST_NAMED = 1000
logger = logging.getLogger("fmstune")


def track_text(text: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
    """Track a text of the active run, such as an answer, from anywhere in the training process or a child
    that it forks. Does nothing when no run is active here.

    Raises `ValueError` when the text or its name is `None`.
    """
    if text is None or name is None:
        raise ValueError("track_text needs a text and its name")
    if (recorder := _recorder()) is not None:
        record_text(recorder, text, name, stage, step)


def record_text(recorder: Recorder, text: Any, name: str, stage: str | None, step: int | None) -> None:
    """Record a text; a long one is a file next to the journal."""
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
    """Track an image of the active run: the path of a PNG, JPEG, GIF or WebP, its bytes, a Pillow image, a
    Matplotlib figure, or an array or tensor of (height, width) or (height, width, 1, 3 or 4), also with its
    channels first: integers from 0 to 255, or numbers from 0 to 1.

    Numbers outside these ranges are scaled to fit, Pillow modes that PNG does not support are converted, and
    anything but an image is recorded as missing; each of these is reported once.

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
    """Track the distribution of numbers, in up to 512 bins of equal width: an array, a tensor, or numbers.
    Non-finite numbers are left out and counted; if there are no others, the histogram is recorded as missing.
    Both are reported once.

    Raises `ValueError` when the values or their name are `None`, or `bins` is not 1 to 512.
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
        _say(recorder, "histogram", name, f"leaves out numbers that are not finite ({left_out})")
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
    """Warn about this name, once."""
    called = (kind, text_of(name))
    if called not in recorder.named and len(recorder.named) < _MOST_NAMED:
        recorder.named.add(called)
        # Without arguments: the screen treats warnings with the same format as one.
        logger.warning(recorder.hidden(f"the {kind} {called[1]} {what}"))


def _recorder() -> Recorder | None:
    found = active_recorder()
    return found if isinstance(found, Recorder) else None


def _kept(recorder: Recorder, data: bytes, suffix: str) -> dict[str, Any]:
    try:
        return store_file(recorder.journal.path, data, suffix)
    except OSError as error:  # the run's own disk; the training continues
        return {"lost": error.strerror or str(error), "size": len(data)}
