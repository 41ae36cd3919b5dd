"""Images and distributions of numbers, from whatever Python has them in, as files and bins."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from fmstune.user_code import is_stop

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif"}
_CHANNELS = (1, 3, 4)
_LONGEST_PATH = 1000
_MOST_BINS = 512
"""Aim and W&B take no more."""


def encoded_image(image: Any) -> tuple[bytes, str]:
    """The bytes of an image file, and the suffix of its format. Raises `ValueError` for what is none, and
    whatever the object does when it is read."""
    try:
        return _encoded(image)
    except ValueError:
        raise
    except BaseException as error:
        if is_stop(error):
            raise
        raise ValueError(f"the image cannot be read: {type(error).__name__}: {error}") from error


def is_image_file(given: str | bytes) -> bool:
    """Whether bytes, or the file of this name, are an image of a known format."""
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


def histogram_of(values: Any, bins: int) -> dict[str, Any]:
    """The bins of the finite ones among numbers. Raises `ValueError` when there is none."""
    import numpy as np

    if type(bins) is not int or not 1 <= bins <= _MOST_BINS:
        raise ValueError(f"a histogram has 1 to {_MOST_BINS} bins, not {bins!r}")
    try:
        numbers = np.asarray(_on_cpu(values), dtype=np.float64).ravel()
    except BaseException as error:
        if is_stop(error):
            raise
        raise ValueError(f"a histogram is of numbers: {type(error).__name__}: {error}") from error
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        raise ValueError("a histogram needs at least one finite number")
    low, high = float(finite.min()), float(finite.max())
    # Bins have a width: of one value, or of neighbours among large numbers, they reach beyond these.
    least = max(float(low == high), 8 * bins * math.ulp(max(abs(low), abs(high))))
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    if not math.isfinite(high - low):
        raise ValueError("the numbers of a histogram lie too far apart for floating-point numbers")
    counts, _ = np.histogram(finite, bins=bins, range=(low, high))
    left_out = int(numbers.size - finite.size)
    item: dict[str, Any] = {"counts": counts.tolist(), "low": low, "high": high}
    return item | ({"not_finite": left_out} if left_out else {})


def _encoded(image: Any) -> tuple[bytes, str]:
    if isinstance(image, (str, os.PathLike)):
        path = Path(os.fsdecode(image))
        if not path.is_file():
            raise ValueError(f"there is no image {path}")
        return _known(path.read_bytes(), f"{path}")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _known(bytes(image), f"what begins with {bytes(image[:8])!r}")
    for method, how in (("save", {"format": "PNG"}), ("savefig", {"format": "png"})):
        write = getattr(image, method, None)  # of Pillow, of Matplotlib
        if callable(write):
            file = io.BytesIO()
            write(file, **how)
            return _known(file.getvalue(), type(image).__name__)
    return _png(_on_cpu(image), channels_first=hasattr(image, "detach")), ".png"


def _known(data: bytes, what: str) -> tuple[bytes, str]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, ".webp"
    for signature, suffix in _SIGNATURES.items():
        if data.startswith(signature):
            return data, suffix
    raise ValueError(f"{what} is no image: PNG, JPEG, GIF and WebP are taken")


def _on_cpu(values: Any) -> Any:
    if hasattr(values, "detach"):  # a tensor: also of another device, with a gradient, in bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy()
    return values


def _png(values: Any, *, channels_first: bool) -> bytes:
    """An array as a PNG, in which 8 bits are each channel's. Where either end of the shape could be the
    channels, they come first in a tensor and last in an array."""
    import numpy as np

    pixels = np.asarray(values)
    first = pixels.ndim == 3 and pixels.shape[0] in _CHANNELS
    if first and (channels_first or pixels.shape[2] not in _CHANNELS):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or not pixels.size:
        raise ValueError(f"an array of the shape {list(pixels.shape)} is no image")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise ValueError("an image of floating-point numbers has numbers from 0 to 1")
        pixels = np.rint(pixels * 255)
    elif not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("an image has integers from 0 to 255, or numbers from 0 to 1")
    height, width, channels = pixels.shape
    rows = pixels.astype(np.uint8).reshape(height, -1)
    # Before each row stands which filter it has: none.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    colours = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
