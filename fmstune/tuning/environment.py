"""The process that a run is in: its rank, and the libraries' own output."""

from __future__ import annotations

import os
import warnings


def is_main_process() -> bool:
    """Whether this is world rank zero, the only process that journals, ships and prints."""
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """Turn off what libraries print by themselves, and TRL's message to a hub at each trainer's start
    (unless the user has decided about that himself). Before their import: they read it then."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # What libraries deprecate among themselves is nothing that a user of this tool could mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
