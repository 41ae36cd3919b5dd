"""A vendor's callback that is given copies: what it changes in the arguments, the state, the control, the
logs or the metrics is kept from the Trainer, and what it does to the model is looked after. A tracker has no
say in the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from fmstune.delivery.guarded_model import ModelGuard
from fmstune.trackers.records import TrackerError

Called = Callable[[str, Callable[[], Any]], None]
"""Makes the call of an event, given its name."""


def guarded_callback(callback: Any, called: Called) -> TrainerCallback:
    """A callback of the same events as `callback`, which is called through `called` with copies."""
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]

    def event(name: str) -> Callable[..., None]:
        inner = getattr(callback, name)

        def call(self: TrainerCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def with_copies() -> None:
                own = {key: _copied(value) for key, value in kwargs.items()}
                # The arguments are not copied deeply: some hold open handles, and nothing in them is a number
                # that the Trainer reads again by reference.
                guard = ModelGuard(kwargs.get("model"))
                try:
                    inner(_shallow(args), _own_state(state), copy.copy(control), **own)
                finally:
                    changed = guard.undo()
                if changed:
                    raise TrackerError(changed)

            called(name, with_copies)

        return call

    methods: dict[str, Any] = {name: event(name) for name in events if hasattr(callback, name)}
    # Of one that does nothing then, the Trainer need not have a checkpoint ready (`WholeCheckpoints`).
    methods["reads_checkpoints"] = acts_on_save(callback)
    methods["known_as"] = type(callback).__name__
    guarded: TrainerCallback = type("Guarded" + type(callback).__name__, (TrainerCallback,), methods)()
    return guarded


def acts_on_save(callback: Any) -> bool:
    """Whether a callback has an `on_save` of its own: its class, or it alone; one of a vendor's need not be a
    `TrainerCallback`."""
    found = getattr(callback, "on_save", None)
    return found is not None and getattr(found, "__func__", found) is not TrainerCallback.on_save


def _own_state(state: Any) -> Any:
    """A copy of the Trainer's state. Its history grows with the run, so that a copy of all of it at each
    event would take time by the square of the steps: the list is copied, and of its entries the last one."""
    own = _shallow(state)
    history = getattr(own, "log_history", None)
    if isinstance(history, list) and history:
        own.log_history = [*history[:-1], _copied(history[-1])]
    return own


def _shallow(value: Any) -> Any:
    """A copy of an object whose own lists and mappings are copies, too."""
    own = copy.copy(value)
    for name, held in vars(value).items():
        if name != "log_history":
            vars(own)[name] = _copied(held)
    return own


def _copied(value: Any) -> Any:
    """A copy of plain data, all through; models, tensors, optimizers and data loaders stay what they are."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else value
