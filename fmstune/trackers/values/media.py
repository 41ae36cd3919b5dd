"""Images and distributions of numbers, from common Python types, as files and bins."""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from fmstune.errors import is_stop

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif"}
_CHANNELS = (1, 3, 4)
_MODES_OF_PNG = ("1", "L", "LA", "I", "I;16", "I;16B", "P", "RGB", "RGBA")
_WITH_ALPHA = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
_LONGEST_PATH = 1000
_MOST_BINS = 512
"""The maximum of Aim and W&B."""
_LARGEST = sys.float_info.max / 4
"""The difference of two such numbers is finite, too, as the width of a histogram must be."""


def encoded_image(image: Any) -> tuple[bytes, str, str]:
    """The bytes of an image file, the suffix of its format, and what had to be changed, if anything. Raises
    `ValueError` for anything but an image, and for what cannot be read."""
    try:
        return _encoded(image)
    except ValueError:
        raise
    except BaseException as error:
        if is_stop(error):
            raise
        raise ValueError(f"the image cannot be read: {type(error).__name__}: {error}") from error


def is_image_file(given: str | bytes) -> bool:
    """Whether the bytes, or the file of this name, are an image in a known format."""
    try:
        data = given
        if isinstance(given, str):
            if not given.isprintable() or len(given) > _LONGEST_PATH or not Path(given).is_file():
                return False
            with Path(given).open("rb") as file:
                data = file.read(16)
        _known(bytes(data), "")  # type: ignore[arg-type]
    except (OSError, ValueError):
        return False
    return True


def check_bins(bins: Any) -> None:
    """Raise `ValueError` for a number of bins that trackers cannot store."""
    if type(bins) is not int or not 1 <= bins <= _MOST_BINS:
        raise ValueError(f"a histogram has 1 to {_MOST_BINS} bins, not {bins!r}")


def histogram_of(values: Any, bins: int) -> dict[str, Any]:
    """The bins of the finite numbers. Raises `ValueError` if there are none."""
    import numpy as np

    check_bins(bins)
    try:
        numbers = _numbers(values)
    except BaseException as error:
        if is_stop(error):
            raise
        raise ValueError(f"a histogram needs numbers: {type(error).__name__}: {error}") from error
    finite = numbers[np.isfinite(numbers)]
    if not numbers.size:
        raise ValueError("a histogram needs at least one number")
    if not finite.size:
        raise ValueError(f"a histogram needs a finite number, and none of these {numbers.size} is finite")
    inside = np.clip(finite, -_LARGEST, _LARGEST)
    low, high = float(inside.min()), float(inside.max())
    # Bins need a width: for a single value, or adjacent large numbers, they extend beyond the values.
    least = max(float(low == high), 8 * bins * math.ulp(max(abs(low), abs(high))))
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    counts, _ = np.histogram(inside, bins=bins, range=(low, high))
    left_out, moved = int(numbers.size - finite.size), int((inside != finite).sum())
    item: dict[str, Any] = {"counts": counts.tolist(), "low": low, "high": high}
    if moved:
        item["altered"] = f"numbers beyond ±{_LARGEST:.2g} are counted in the outermost bins ({moved})"
    return item | ({"not_finite": left_out} if left_out else {})


def _numbers(values: Any) -> Any:
    import numpy as np

    if isinstance(values, (list, tuple)) and any(hasattr(each, "detach") for each in values):
        values = [_on_cpu(each) for each in values]
    values = _on_cpu(values)
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, np.ma.getdata(values))
    if np.iscomplexobj(values):
        raise TypeError("complex numbers have no order")
    try:
        return np.asarray(values, dtype=np.float64).ravel()
    except OverflowError:  # an integer too large for a float
        return np.array([_float(each) for each in values], dtype=np.float64)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _encoded(image: Any) -> tuple[bytes, str, str]:
    if isinstance(image, (str, os.PathLike)):
        path = Path(os.fsdecode(image))
        if not path.is_file():
            raise ValueError(f"there is no image {path}")
        return *_known(path.read_bytes(), f"{path}"), ""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return *_known(bytes(image), f"data starting with {bytes(image[:8])!r}"), ""
    if hasattr(image, "getbands") and hasattr(image, "mode"):
        return _pillow(image)
    for method, how in (("save", {"format": "PNG"}), ("savefig", {"format": "png"})):
        write = getattr(image, method, None)  # `save` of Pillow-like objects, `savefig` of Matplotlib
        if callable(write):
            return *_saved(write, how, image), ""
    return _png(_on_cpu(image), channels_first=hasattr(image, "detach"))


def _pillow(image: Any) -> tuple[bytes, str, str]:
    """A Pillow image; one in a mode that PNG does not support is converted."""
    mode, changed = str(image.mode), ""
    if mode == "F":  # Pillow would clip it to 0 and 255
        return _png(image, channels_first=False)
    if mode not in _MODES_OF_PNG:
        other = _WITH_ALPHA.get(mode, "RGB")
        image, changed = image.convert(other), f"converted from {mode} to {other}"
    return *_saved(image.save, {"format": "PNG"}, image), changed


def _saved(write: Any, how: dict[str, str], image: Any) -> tuple[bytes, str]:
    file = io.BytesIO()
    write(file, **how)
    return _known(file.getvalue(), type(image).__name__)


def _known(data: bytes, what: str) -> tuple[bytes, str]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, ".webp"
    for signature, suffix in _SIGNATURES.items():
        if data.startswith(signature):
            return data, suffix
    raise ValueError(f"{what} is not an image: use PNG, JPEG, GIF or WebP")


def _on_cpu(values: Any) -> Any:
    if hasattr(values, "detach"):  # a tensor: also on another device, with a gradient, in bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy()
    return values


def _png(values: Any, *, channels_first: bool) -> tuple[bytes, str, str]:
    """An array as a PNG with 8 bits per channel, and what was changed. If either end of the shape could be
    the channels, they come first in a tensor and last in an array."""
    import numpy as np

    pixels = np.asarray(values)
    first = pixels.ndim == 3 and pixels.shape[0] in _CHANNELS
    if first and (channels_first or pixels.shape[2] not in _CHANNELS):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or not pixels.size:
        raise ValueError(f"an array of shape {list(pixels.shape)} is not an image")
    changed = ""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating):
        pixels, changed = _as_bytes(pixels)
    else:
        raise ValueError(f"an image has integers from 0 to 255 or numbers from 0 to 1, not {pixels.dtype}")
    height, width, channels = pixels.shape
    rows = pixels.astype(np.uint8).reshape(height, -1)
    # Each row is preceded by its filter type: none.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    colours = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)
    return data, ".png", changed


def _as_bytes(pixels: Any) -> tuple[Any, str]:
    """Integers from 0 to 255 and numbers from 0 to 1 as bytes. Values outside are scaled to fit, and
    non-finite ones are black. Also returns what was changed, if anything."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels, ""
    whole = bool(np.issubdtype(pixels.dtype, np.integer))
    most = 255.0 if whole else 1.0
    numbers, said = pixels.astype(np.float64), []
    finite = np.isfinite(numbers)
    if missing := int(numbers.size - finite.sum()):
        said.append(f"pixels that are not finite are black ({missing})")
        numbers[~finite] = min(0.0, float(numbers[finite].min(initial=0.0)))
    numbers = np.clip(numbers, -_LARGEST, _LARGEST)
    low, high = min(0.0, float(numbers.min())), max(most, float(numbers.max()))
    if pixels.dtype == np.uint16 and high > most:
        high = 65535.0  # as programs show 16 bits: images of one name stay comparable
    if low < 0 or high > most:
        said.append(f"pixels from {low:g} to {high:g} are scaled to 8 bits")
        numbers, most = (numbers - low) / (high - low), 1.0
    return np.rint(numbers * (255 / most)), "; ".join(said)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
