"""fmstune tunes language models and tracks every run with the tracker the user chose.

    import fmstune

    fmstune.track(0.93, "exact_match", stage="eval")    # a metric of the active run, from anywhere
    fmstune.set_params({"team": "nlp"}, "data")          # metadata of the active run
    fmstune.get_tracker("aim").get_hf_callback()         # any tracker in a Trainer of your own

Importing this package imports nothing heavy: no torch, no transformers, no tracker's SDK.
"""

from fmstune.delivery.recorder import set_params, track
from fmstune.trackers.base import Tracker
from fmstune.trackers.registry import get_tracker, register_tracker

__version__ = "0.1.0"

__all__ = ["Tracker", "__version__", "get_tracker", "register_tracker", "set_params", "track"]
