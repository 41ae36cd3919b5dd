"""Fine-tune language models, and track every run with the trackers of your choice.

    import fmstune

    fmstune.train("fmstune.toml", {"training.max_steps": 20})  # the same as the command
    fmstune.track(0.93, "exact_match", stage="eval")    # a metric of the active run, from anywhere
    fmstune.set_params({"team": "nlp"}, "data")          # metadata of the active run
    fmstune.track_table([{"q": "…", "a": "…"}], "samples")  # rows that belong together
    fmstune.get_tracker("aim").get_hf_callback()         # any tracker, in your own Trainer

Importing this package imports nothing else: each name below is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmstune._version import __version__

if TYPE_CHECKING:
    from fmstune.api import train
    from fmstune.delivery.artifacts import track_artifact
    from fmstune.delivery.media import track_histogram, track_image, track_text
    from fmstune.delivery.recorder import set_params, track_table
    from fmstune.delivery.tracked import track
    from fmstune.trackers.base import Tracker
    from fmstune.trackers.registry import get_tracker, register_tracker


__all__ = [
    "Tracker",
    "__version__",
    "get_tracker",
    "register_tracker",
    "set_params",
    "track",
    "track_artifact",
    "track_histogram",
    "track_image",
    "track_table",
    "track_text",
    "train",
]

_MODULES = {
    "train": "fmstune.api",
    "track": "fmstune.delivery.tracked",
    "track_table": "fmstune.delivery.recorder",
    "track_artifact": "fmstune.delivery.artifacts",
    "track_text": "fmstune.delivery.media",
    "track_image": "fmstune.delivery.media",
    "track_histogram": "fmstune.delivery.media",
    "set_params": "fmstune.delivery.recorder",
    "Tracker": "fmstune.trackers.base",
    "get_tracker": "fmstune.trackers.registry",
    "register_tracker": "fmstune.trackers.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fmstune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
