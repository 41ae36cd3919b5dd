"""The trackers `hf:NAME`: any callback that transformers integrates, in a shipper instead of in the training.

The callback sees what it would see in a Trainer, rebuilt from the run's journal: arguments, state, control,
and a stand-in for the model with its config and number of parameters. The behaviour of transformers was
observed with 5.23. Importing it takes seconds and torch, in the shipper."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fmstune.text import counted
from fmstune.trackers.base import Tracker
from fmstune.trackers.built_in import BUILT_IN
from fmstune.trackers.hf.integrations import INTEGRATIONS, PREFIX
from fmstune.trackers.records import (
    Check,
    Limits,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerRun,
    merged,
)

_NOT_GOT = (
    "its callback gets metrics, params and the end: no weights, gradients, checkpoints or tables; what its "
    "SDK measures of a process is that of this one, not of the training"
)


_OWN = {each.package: name for name, each in BUILT_IN.items() if each.package is not None}
"""fmstune's own trackers for the same packages, by package."""


@dataclass(frozen=True)
class IntegrationOptions:
    """Options of the trackers `hf:NAME`."""

    arguments: Mapping[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Fields of TrainingArguments that the callback reads, such as run_name and project; "
            "else the run's own."
        },
    )
    environment: Mapping[str, str] | None = field(
        default=None,
        metadata={"help": "Variables that apply to this callback only, such as WANDB_PROJECT."},
    )


class IntegrationTracker(Tracker):
    """The SDK stores what its own callback makes of a run: `train/loss` from `loss`, `eval/loss` from
    `eval_loss`. The callback starts at the first step, when the initial params are known.

    A callback cannot continue a run or recognise an event. So a resumed run becomes a further run there with
    only the new steps, and an interrupted delivery is repeated from its start, as a further run too."""

    integration: ClassVar[str]
    description = "a callback of transformers, in a process of its own"
    Config = IntegrationOptions
    config: IntegrationOptions
    continues = takes_late = False
    keeps_tables = False
    durable_on = "close"
    limits = Limits(joins=True, prefixes={"train": "", "eval": "eval_", "test": "test_"})

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._start: RunStart | None = None
        self._trainer: Any = None
        self._params: dict[str, dict[str, Any]] = {}
        self._said: dict[str, None] = {}
        self._tables = 0
        self._held: list[MetricPoint] = []

    @property
    def adapted(self) -> tuple[str, ...]:
        tables = (f"{counted(self._tables, 'table')} not given to it",) if self._tables else ()
        return (*self._said, *tables)

    def open(self, start: RunStart) -> TrackerRun:
        os.environ.update(self.config.environment or {})
        for variable in INTEGRATIONS[self.integration].uploads:
            if os.environ.get(variable, "false").lower() not in ("false", "0", "no", "off"):
                self._said[f"{variable} is turned off, as there is no model here"] = None
            os.environ[variable] = "false"
        if why := self._turned_off():
            raise TrackerError(f"{why[0]}; {why[1]}.")
        self._start, self._trainer, self._held = start, None, []
        self._said[_NOT_GOT] = None
        return TrackerRun()

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage)
        self.track_point(MetricPoint({name: metric}, stage, step))

    def track_point(self, point: MetricPoint) -> None:
        if self._trainer is None and not point.step:
            self._held.append(point)
            return
        self._log(point)

    def _log(self, point: MetricPoint) -> None:
        prefix = self.limits.prefix(point.stage)
        logs = {f"{prefix}{name}": value for name, value in point.values.items()}
        self._began().log(
            logs, point.step, point.epoch, evaluated=point.stage == "eval" and "loss" in point.values
        )

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        namespace = name or "params"
        before = self._params.get(namespace, {})
        self._params[namespace] = merged(before, params)
        if self._trainer is not None and self._params[namespace] != before:
            self._said[f"params {namespace} came after the first step, when its callback takes none"] = None

    def track_table(self, table: Table) -> None:
        self._tables += 1

    def close(self, status: Status, error: str | None = None) -> None:
        if self._start is None:
            return
        if status != "finished":
            self._said[
                f"its callback knows no status: the run, which {_WORDS[status]}, ends there as any"
            ] = None
        self._began().end()
        self._start = self._trainer = None
        gc.collect()  # MLflow's callback ends its run on deletion
        if self.seq is not None:
            # SDKs send what they buffer when the interpreter exits. A shipper does not exit that way, as
            # other SDKs hang there.
            atexit._run_exitfuncs()

    def check(self, timeout: float) -> Check:
        if why := self._turned_off():
            return Check("bad_option", *why)
        package = INTEGRATIONS[self.integration].package
        more = f"; the tracker {_OWN[package]} asks, and keeps more of a run" if package in _OWN else ""
        return Check("ok", f"{package} is installed; nothing more is asked of it{more}")

    def _turned_off(self) -> tuple[str, str] | None:
        """Which variable silently turns the callback off, so that everything sent to it would be lost, and
        the remedy."""
        given = os.environ | dict(self.config.environment or {})
        for variable, values in INTEGRATIONS[self.integration].takes.items():
            if (value := given.get(variable, "")) and value.lower() not in values:
                takes = ", ".join(values)
                return f"{variable}={value} turns its callback off, which takes {takes}", "unset it"
        for variable in INTEGRATIONS[self.integration].needs:
            if not given.get(variable):
                return f"its callback does nothing without {variable}", "set it"
        return None

    def _began(self) -> Any:
        if self._start is None:
            self.open_alone()
        if self._trainer is None:
            from fmstune.trackers.hf.stand_ins import StandInTrainer

            arguments = dict(self.config.arguments or {})
            self._trainer = StandInTrainer(self.integration, self._start, self._params, arguments)
            held, self._held = self._held, []
            for point in held:
                self._log(point)
        return self._trainer


_WORDS: Mapping[Status, str] = {"finished": "finished", "failed": "failed", "interrupted": "was interrupted"}


def __getattr__(name: str) -> type[IntegrationTracker]:
    """The class of an integration, under its name: `fmstune.trackers.hf_tracker:dvclive`."""
    if name not in INTEGRATIONS:
        raise AttributeError(f"transformers integrates no {name}")
    found = INTEGRATIONS[name]
    more = f" (the tracker {_OWN[found.package]} keeps more of a run)" if found.package in _OWN else ""
    own = {
        "__module__": __name__, "__qualname__": name, "integration": name, "registered_name": PREFIX + name,
        "package": found.package, "distributions": (found.distribution, f"{found.distribution}-skinny"),
        "install_hint": f"pip install {found.distribution}",
        "description": f"transformers' own callback for {name}, in a process of its own{more}",
    }  # fmt: skip
    made = type(name, (IntegrationTracker,), own)
    globals()[name] = made
    return made
