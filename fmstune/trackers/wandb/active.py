"""The open runs of the process, as W&B's SDK knows them.

`wandb.init` in a script returns the latest run that is open in the process, whoever opened it, and in a
notebook finishes it. So a tracker's run is hidden from it. Observed with wandb 0.31.0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wandb


_hidden: set[wandb.Run] = set()


def hide_from_init(run: wandb.Run) -> None:
    """Have `wandb.init` leave this run alone. Undone by `closed`."""
    from wandb.sdk.wandb_setup import singleton

    singleton().remove_active_run(run)
    _hidden.add(run)


def closed(run: wandb.Run) -> None:
    """Forget a hidden run that is about to be finished."""
    _hidden.discard(run)


def any_open() -> bool:
    """Whether a run is open in the process: a tracker's, or one of a script's own."""
    from wandb.sdk.wandb_setup import singleton

    return bool(_hidden) or singleton().most_recent_active_run is not None


@contextlib.contextmanager
def shown_to_sdk(run: wandb.Run) -> Iterator[None]:
    """Show the run meanwhile: the latest open run tells the SDK whether media are stored offline."""
    from wandb.sdk.wandb_setup import singleton

    if not run.disabled:
        singleton().add_active_run(run)
    try:
        yield
    finally:
        hide_from_init(run)
