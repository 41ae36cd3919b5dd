"""`fmstune.track`: whatever is tracked, by its kind.

A number is a metric, and so is what is none of the others. Nothing is asked of a foreign object but what it
is: one that raises when it is looked at is a metric too, whose text the journal keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmstune.delivery.media import track_histogram, track_image, track_text
from fmstune.delivery.recorder import here, track_table
from fmstune.trackers.values.media import is_image_file
from fmstune.trackers.values.plain import is_mapping
from fmstune.user_code import is_stop

_CHANNELS = (1, 3, 4)
_PIXELS = ("uint8", "torch.uint8", "bool", "torch.bool")
Track = Callable[..., None]


def track(metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
    """Track something of the active run from anywhere in the training process, or in a child that it forks;
    `step` defaults to the current one. Does nothing when no run is active here (another rank, another
    program).

    - a number is a metric;
    - a text is a text, as `track_text` takes it;
    - a path (`pathlib.Path`), an image of Pillow's, a figure of Matplotlib's, the bytes of an image file, and
      an array or tensor of pixels (two dimensions of bytes or booleans; three, one of them 1, 3 or 4
      channels) are images, as `track_image` takes them;
    - an array, tensor or list of several numbers in one dimension is a histogram, as for `track_histogram`;
    - a list of mappings, or a DataFrame of pandas', is a table, as `track_table` takes it.

    Raises `ValueError` when the metric or its name is `None`, and for what could be two of these.
    """
    if metric is None or name is None or type(metric) in (int, float, bool):
        here().track(metric, name, stage, step=step)
        return
    try:
        how, given = _taken_by(metric)
    except ValueError:
        raise
    except BaseException as error:
        if is_stop(error):
            raise
        how, given = None, metric
    if how is None:
        here().track(given, name, stage, step=step)
    else:
        how(given, name, stage, step=step)


def _taken_by(value: Any) -> tuple[Track | None, Any]:
    """The function that tracks a value, `None` for a metric; and what it is given. Raises `ValueError`, and
    whatever the value does when it is looked at."""
    cls = type(value)
    if cls is str:
        if is_image_file(value):
            raise ValueError(
                f"track: {value!r} is a text, and also the name of an image: give pathlib.Path(…) for the "
                "image, or call fmstune.track_text"
            )
        return track_text, value
    if (
        isinstance(value, Path)
        or hasattr(cls, "savefig")
        or (hasattr(cls, "save") and hasattr(cls, "getbands"))
    ):
        return track_image, value
    if cls in (bytes, bytearray):
        return (track_image if is_image_file(bytes(value)) else None), value
    if hasattr(cls, "to_dict") and hasattr(cls, "iterrows"):
        return track_table, value.to_dict("records")
    if hasattr(cls, "ndim") and hasattr(cls, "shape") and hasattr(cls, "dtype"):
        return _array(value), value
    if cls in (list, tuple) and value and all(map(is_mapping, value)):
        return track_table, value
    if cls in (list, tuple) and len(value) > 1 and all(type(each) in (int, float) for each in value):
        return track_histogram, value
    return None, value


def _array(value: Any) -> Track | None:
    shape, kind = [int(size) for size in value.shape], str(value.dtype)
    if all(size == 1 for size in shape) or not any(word in kind for word in ("int", "float", "bool")):
        return None  # one number; or no numbers
    if len(shape) == 1:
        return track_histogram
    pixels = len(shape) == 2 and kind in _PIXELS
    if pixels or (len(shape) == 3 and (shape[0] in _CHANNELS or shape[2] in _CHANNELS)):
        return track_image
    raise ValueError(
        f"track: an array of the shape {shape} may be an image or numbers: call fmstune.track_image or "
        "fmstune.track_histogram"
    )
