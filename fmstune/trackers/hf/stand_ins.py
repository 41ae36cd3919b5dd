"""What a callback of transformers sees of a Trainer, rebuilt from a run's journal."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, cast

from transformers import PretrainedConfig, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from fmstune.trackers.records import RunStart
from fmstune.trackers.swanlab.settings import project_variable
from fmstune.trackers.values.normalise import flatten
from fmstune.transformers_compat import experiment_of


class StandInTrainer:
    """Call a callback as a Trainer would: one event per logged step, and no others."""

    def __init__(
        self,
        integration: str,
        start: RunStart | None,
        params: Mapping[str, Mapping[str, Any]],
        arguments: Mapping[str, Any],
    ) -> None:
        """Start the training with the params known so far and the user's arguments."""
        given = params.get("config", {}).get("training", {})
        own = {"output_dir": start.directory, "run_name": start.name} if start is not None else {}
        self.args = arguments_of({**given, **params.get("decided", {}), **own, **arguments}, params)
        if start is not None:
            said = {"run.group": start.group, "run.tags": list(start.tags), "run.notes": start.notes}
            self.args.more |= {key: value for key, value in said.items() if value}
        self.state = TrainerState(
            is_local_process_zero=True,
            is_world_process_zero=True,
            max_steps=max(self.args.max_steps, 0),
            num_train_epochs=int(self.args.num_train_epochs),
            logging_steps=int(self.args.logging_steps),
            epoch=0.0,
        )
        self.control = TrainerControl()
        self.model = StandInModel(params.get("model", {}))
        self._callback: Any = INTEGRATION_TO_CALLBACK[integration]()
        if integration == "swanlab":
            self._callback._swanlab = _SwanLab(self._callback._swanlab)
            # SWANLAB_LOG_MODEL would only request what this run does not have.
            self._callback._log_model = None
        for event in ("on_init_end", "on_train_begin", "on_epoch_begin"):
            self._call(event)

    def log(self, logs: dict[str, Any], step: int | None, epoch: float | None, *, evaluated: bool) -> None:
        """Pass what was logged at a step; `evaluated`: all of it belongs to an evaluation."""
        state = self.state
        if step is not None and step > state.global_step:
            state.global_step = step
            self._call("on_step_end")
        if epoch is not None and epoch > (state.epoch or 0.0):
            passed = int(epoch) > int(state.epoch or 0.0)
            state.epoch = epoch
            if passed:
                self._call("on_epoch_end")
                self._call("on_epoch_begin")
        # A user's own metric may be of an earlier step than the current one.
        now, state.global_step = state.global_step, state.global_step if step is None else step
        values = {**logs, **({} if epoch is None else {"epoch": epoch})}
        state.log_history.append({**values, "step": state.global_step})
        if (live := getattr(self._callback, "live", None)) is not None:
            live.step = state.global_step  # DVCLive counts its logs, and there are more here
        self._call("on_log", logs=dict(values))
        if evaluated:
            self._call("on_evaluate", metrics=dict(values))
        state.global_step = now

    def end(self) -> None:
        """End the training, whatever its status."""
        self._call("on_epoch_end")
        self._call("on_train_end")
        # Comet would close at interpreter exit, where its archive was empty (seen with comet-ml 3.58).
        if (end := getattr(experiment_of(self._callback), "end", None)) is not None:
            end()

    def _call(self, event: str, **more: Any) -> None:
        others = ("processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
        rest = {"model": self.model, **dict.fromkeys(others), **more}
        getattr(self._callback, event)(self.args, self.state, self.control, **rest)


class _SwanLab:
    """The package as transformers' callback (5.23) expects it: without a run, `get_run` returns `None`. Since
    swanlab 0.8 it raises instead, so that no run would ever start."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def init(self, **given: Any) -> Any:
        with project_variable():  # the callback has read it, and the package fails on it
            return self._package.init(**given)

    def get_run(self) -> Any:
        return self._package.get_run() if self._package.has_run() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)


class StandInModel:
    """What the journal records of a model."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        known = {key: value for key, value in params.items() if key != "config"}
        self.config = PretrainedConfig(
            **{"name_or_path": str(params.get("path", "")), **params.get("config", known)}
        )
        self._parameters = int(params.get("parameters", 0))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of all parameters."""
        return self._parameters


def arguments_of(given: Mapping[str, Any], params: Mapping[str, Mapping[str, Any]]) -> _Arguments:
    """The arguments of the run. Their own `__init__` is skipped, as it would set up devices and processes for
    training. `to_dict` also returns all other params of the run."""
    made: Any = object.__new__(_Arguments)
    fields = {each.name: each for each in dataclasses.fields(TrainingArguments)}
    for name, each in fields.items():
        make: Any = each.default_factory
        default = each.default if make is dataclasses.MISSING else make()
        setattr(made, name, None if default is dataclasses.MISSING else default)
    made._n_gpu, made.distributed_state = 1, None
    for name in given.keys() & fields.keys():
        kind = type(getattr(made, name))
        setattr(made, name, kind(given[name]) if issubclass(kind, enum.Enum) else given[name])
    rest = {name: values for name, values in params.items() if name not in ("config", "decided")}
    settings = dict(params.get("config", {}))
    training = {key: value for key, value in settings.pop("training", {}).items() if key not in fields}
    rest["model"] = {key: value for key, value in rest.get("model", {}).items() if key != "config"}
    made.more = {**training, **dict(flatten({**settings, **rest}))}
    return cast("_Arguments", made)


class _Arguments(TrainingArguments):
    more: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.more}
