"""The user code of a run that holds secrets everywhere; a separate file, since shippers load no
transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

import fmstune
from tests.support.leaks import ALL, PLANTED


class Tells(TrainerCallback):
    """Tracks secrets in every argument of every call, and ends the run with an error that contains them
    all."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fmstune.track(1.5, PLANTED["metric"], PLANTED["stage"])
        fmstune.track(ALL, "note", "train")
        fmstune.set_params(
            {PLANTED["key"]: {"db_pass": PLANTED["value"]}, "note": [ALL]}, PLANTED["namespace"]
        )
        row = {PLANTED["column"]: PLANTED["cell"], "ssh_key": PLANTED["cell_by_column"], "note": ALL}
        fmstune.track_table([row], PLANTED["table"], PLANTED["stage"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{PLANTED['error']} and {ALL}")


def score(prediction: Any) -> dict[str, float]:
    """The metrics of an eval."""
    return {PLANTED["scored"]: 0.5}
