"""Run a vendor's callback on copies, as a tracker must not affect the training: its changes to the arguments,
state, control, logs or metrics do not reach the Trainer, and its changes to the model are undone or
reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from fmstune.delivery.guarded_model import ModelGuard
from fmstune.trackers.records import TrackerError

Called = Callable[[str, Callable[[], Any]], None]
"""Runs the call of an event, given its name."""


def guarded_callback(callback: Any, called: Called) -> TrainerCallback:
    """A callback for the same events as `callback`, which is called through `called` with copies."""
    events = [name for name in dir(TrainerCallback) if name.startswith("on_")]

    def event(name: str) -> Callable[..., None]:
        inner = getattr(callback, name)

        def call(self: TrainerCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def with_copies() -> None:
                own = {key: _copied(value) for key, value in kwargs.items()}
                # The arguments are not copied deeply: some hold open handles, and the Trainer does not read
                # any number in them again by reference.
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
    # For one that does nothing then, the Trainer need not finish a checkpoint first (`AtomicCheckpoints`).
    methods["reads_checkpoints"] = acts_on_save(callback)
    methods["known_as"] = type(callback).__name__
    guarded: TrainerCallback = type("Guarded" + type(callback).__name__, (TrainerCallback,), methods)()
    return guarded


def acts_on_save(callback: Any) -> bool:
    """Whether a callback has its own `on_save`, in its class or its instance; a vendor's need not be a
    `TrainerCallback`."""
    found = getattr(callback, "on_save", None)
    return found is not None and getattr(found, "__func__", found) is not TrainerCallback.on_save


def _own_state(state: Any) -> Any:
    """A copy of the Trainer's state. Its history grows with the run, so copying all of it at each event would
    take quadratic time: the list is copied, and its last entry."""
    own = _shallow(state)
    history = getattr(own, "log_history", None)
    if isinstance(history, list) and history:
        own.log_history = [*history[:-1], _copied(history[-1])]
    return own


def _shallow(value: Any) -> Any:
    """A copy of an object, including its own lists and mappings."""
    own = copy.copy(value)
    for name, held in vars(value).items():
        if name != "log_history":
            vars(own)[name] = _copied(held)
    return own


def _copied(value: Any) -> Any:
    """A deep copy of plain data; models, tensors, optimizers and data loaders are shared."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else value
