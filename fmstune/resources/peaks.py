"""Peak FLOPs of devices and FLOPs per trained token, for the model FLOPs utilisation (MFU)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "tf32", "half"]


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak TFLOPs (10^12 operations per second); `half` is for bfloat16 and float16 with 32-bit accumulation.
    `None`: no such units."""

    float32: float
    tf32: float | None
    half: float | None


PEAKS: Mapping[str, Peak] = {
    "B200": Peak(75, 1100, 2250),
    "GH200": Peak(67, 494, 989),
    "H200": Peak(67, 494, 989),
    "H100 NVL": Peak(60, 417, 835),
    "H100 PCIe": Peak(51, 378, 756),
    "H100": Peak(67, 494, 989),
    "H20": Peak(44, 74, 148),
    "A100": Peak(19.5, 156, 312),
    "A800": Peak(19.5, 156, 312),
    "A40": Peak(37.4, 74.8, 149.7),
    "A30": Peak(10.3, 82, 165),
    "A10": Peak(31.2, 62.5, 125),
    "L40S": Peak(91.6, 183, 362),
    "L40": Peak(90.5, 90.5, 181),
    "L4": Peak(30.3, 60, 121),
    "V100": Peak(15.7, None, 125),
    "T4": Peak(8.1, None, 65),
    "RTX 4090": Peak(82.6, 82.6, 165),
    "RTX 3090": Peak(35.6, 35.6, 71),
    "MI300X": Peak(163, 654, 1307),
}
"""By a part of torch's name for the device; the first match is used. From the vendors' data sheets of each
card (the SXM variant, unless noted), for dense matrices: half of the figure if the sheet has only one with
sparsity. GeForce cards accumulate in 32 bits at half the advertised speed."""
_OTHER_CARDS = frozenset({"ti", "super", "d", "laptop", "max", "mig"})
"""Words in the name of a different card, or of a part of one."""


def peak_of(device: str, precision: Precision) -> float | None:
    """The peak operations per second of a device, by its name; `None` if unknown."""
    words = device.replace("-", " ").lower().split()
    if _OTHER_CARDS & set(words):
        return None
    for name, peak in PEAKS.items():
        if f" {name.lower()} " in f" {' '.join(words)} ":
            most: float | None = getattr(peak, precision)
            return None if most is None else most * 1e12
    return None


def operations_per_token(matrices: int, trained: int) -> float:
    """The operations per trained token: two for each weight in the forward pass, two for the gradient of its
    input, and two for the gradient of each trained weight. `matrices` is the number of weights without the
    embeddings, which are looked up. Excludes attention between tokens and the recomputation of gradient
    checkpointing."""
    return 4.0 * matrices + 2.0 * min(trained, matrices)
