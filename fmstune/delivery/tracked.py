"""`fmstune.track`: track any value by its kind.

A number is a metric, and so is anything that is none of the other kinds. A foreign object is only asked for
its type: one that raises when it is inspected is a metric too, and the journal stores its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fmstune.delivery.media import track_histogram, track_image, track_text
from fmstune.delivery.recorder import active_recorder, track_table
from fmstune.errors import is_stop
from fmstune.trackers.values.media import is_image_file
from fmstune.trackers.values.plain import is_mapping, text_of

_NUMBERS = ("int", "float", "bool")
_PIXELS = ("uint8", "torch.uint8", "bool", "torch.bool")
Track = Callable[..., None]


def track(metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
    """Track a value in the active run, from anywhere in the training process or a child that it forks. `step`
    defaults to the current one. Does nothing when no run is active here (another rank, another program).

    - a number is a metric;
    - a string is a text, as for `track_text`;
    - a path (`pathlib.Path`), a Pillow image, a Matplotlib figure, the bytes of an image file, and an array
      or tensor of pixels are images, as for `track_image`: bytes or booleans in two dimensions, or in three
      where the first or last has 1, 3 or 4 channels; other numbers with 1 or 3;
    - an array, tensor, list, tuple or range of several numbers in one dimension is a histogram, as for
      `track_histogram`;
    - a list of mappings, or a pandas DataFrame, is a table, as for `track_table`. An index other than the row
      numbers becomes its first columns.

    Raises `ValueError` when the metric or its name is `None`, and for an ambiguous value. The contents of a
    value never raise: what cannot be displayed is reported once, and the training continues.
    """
    if metric is None or name is None or type(metric) in (int, float, bool):
        active_recorder().track(metric, name, stage, step=step)
        return
    try:
        how, given = function_for(metric)
    except BaseException as error:
        if isinstance(error, Ambiguous) or is_stop(error):
            raise
        how, given = None, metric
    if how is None:
        active_recorder().track(given, name, stage, step=step)
    else:
        how(given, name, stage, step=step)


class Ambiguous(ValueError):
    """A value has two possible kinds: an error of the caller, unlike an exception that a value raises."""


def function_for(value: Any) -> tuple[Track | None, Any]:
    """The function that tracks a value, `None` for a metric, and its argument. Raises `Ambiguous`, and
    whatever the value raises when it is inspected."""
    cls = type(value)
    if cls is str:
        if is_image_file(value):
            raise Ambiguous(
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
    if hasattr(cls, "itertuples") and hasattr(cls, "iterrows"):
        return track_table, _rows(value)
    if hasattr(cls, "ndim") and hasattr(cls, "shape") and hasattr(cls, "dtype"):
        return _array(value), value
    if cls in (list, tuple) and value and all(map(is_mapping, value)):
        return track_table, value
    if cls in (list, tuple, range) and len(value) > 1 and all(map(_is_number, value)):
        return track_histogram, value
    return None, value


def _is_number(value: Any) -> bool:
    """Whether a value is a Python number, or a single number of NumPy's or torch's."""
    cls = type(value)
    if cls in (int, float, bool):
        return True
    of_arrays = hasattr(cls, "ndim") and hasattr(cls, "dtype")
    return of_arrays and value.ndim == 0 and any(word in str(value.dtype) for word in _NUMBERS)


def _rows(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a DataFrame, with unique names for columns: index columns and columns with equal names are
    named apart. An index that only counts the rows is left out."""
    index, names = frame.index, list[str]()
    labels = list(index.names)
    counts = labels == [None] and "int" in str(index.dtype) and all(at == of for at, of in enumerate(index))
    if not counts:
        unnamed = ["index"] if len(labels) == 1 else [f"level_{level}" for level in range(len(labels))]
        names += [
            other if label is None else _name(label) for label, other in zip(labels, unnamed, strict=True)
        ]
    names += [_name(column) for column in frame.columns]
    unique = dict[str, None]()
    for stem in names:
        name, count = stem, 1
        while name in unique:
            count += 1
            name = f"{stem} ({count})"
        unique[name] = None
    rows = frame.itertuples(index=False, name=None)
    for place, row in zip(index, rows, strict=True):
        first = () if counts else (place if len(labels) > 1 else (place,))
        yield dict(zip(unique, (*first, *row), strict=True))


def _name(label: Any) -> str:
    # Columns with several levels have tuples as labels.
    return str(label) if type(label) in (str, tuple) else text_of(label)


def _array(value: Any) -> Track | None:
    shape, kind = [int(size) for size in value.shape], str(value.dtype)
    if all(size == 1 for size in shape) or not any(word in kind for word in _NUMBERS):
        return None  # a single number, or no numbers
    if len(shape) == 1:
        return track_histogram
    # Numbers in four rows need not be pixels: they may be the attention of four heads.
    channels = (1, 3, 4) if kind in _PIXELS else (1, 3)
    pixels = len(shape) == 2 and kind in _PIXELS
    if pixels or (len(shape) == 3 and (shape[0] in channels or shape[2] in channels)):
        return track_image
    raise Ambiguous(
        f"track: an array of shape {shape} may be an image or numbers: call fmstune.track_image or "
        "fmstune.track_histogram"
    )
