"""What devices can compute at most, and what a token of a training takes: model FLOPs utilisation (MFU)
divides one by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "tf32", "half"]


@dataclass(frozen=True, slots=True)
class Peak:
    """The most operations a second, in 10^12; `half` is that of bfloat16 and float16 with sums of 32 bits.
    `None`: there are no such units."""

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
"""By a part of the name that torch gives a device; the first that fits. By the vendors' data sheets of each
card (of the SXM form, where nothing else is said), for dense matrices: where a sheet has the figure with
sparsity alone, half of it. GeForce cards sum up in 32 bits at half the speed that sheets advertise."""
_OTHER_CARDS = frozenset({"ti", "super", "d", "laptop", "max", "mig"})
"""Words that make a card another one, or a part of one."""


def peak_of(device: str, precision: Precision) -> float | None:
    """The most operations a second of a device, by its name; `None` where that is not known."""
    words = device.replace("-", " ").lower().split()
    if _OTHER_CARDS & set(words):
        return None
    for name, peak in PEAKS.items():
        if f" {name.lower()} " in f" {' '.join(words)} ":
            most: float | None = getattr(peak, precision)
            return None if most is None else most * 1e12
    return None


def operations_per_token(matrices: int, trained: int) -> float:
    """The operations that a token of a training takes: two for each weight in the forward pass, two for the
    gradient of what comes in, and two for that of each trained weight; `matrices` has all weights but the
    embeddings, which are looked up. Not those of attention between tokens, nor what gradient checkpointing
    computes again."""
    return 4.0 * matrices + 2.0 * min(trained, matrices)
