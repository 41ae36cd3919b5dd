"""The summary of a run, in a few lines: what was tuned, the results, the use of time, and the next
commands."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.report import DeliveryReport
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.report.commands import next_commands, open_command
from fmstune.report.curves import Curve, Figures, TrackedRun, read_run
from fmstune.report.show import RESOURCES, RunView, view_of
from fmstune.report.words import cell, duration
from fmstune.system.memory import format_bytes
from fmstune.text import counted

_LEAST_SHARE = 0.01
"""The smallest share of the time to report."""
_LEAST_GAP = 0.01
_WORKING = ("system/forward_seconds", "system/backward_seconds", "system/optimizer_seconds")


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """The measured and the estimated bytes of a part of the memory."""

    measured: int
    estimated: int | None

    @property
    def gap(self) -> int:
        """The error of the estimate."""
        return 0 if self.estimated is None else self.measured - self.estimated


@dataclass(frozen=True, slots=True)
class Ending:
    """The summary of a run. `seconds` is the time of its processes, including imports, and `time` its
    division into phases, longest first; `memory` has the measured `peak` and the `estimate` in bytes;
    `memory_parts` its parts at the first update, measured and estimated; `energy` is in watt-hours of the
    GPUs; `mfu` is the share of their peak FLOPs used by the model. `model` is the path of the tuned model, or
    of the newest checkpoint, or `None` if there is neither; `opens` has the commands that open trackers'
    runs, and `next` the next commands."""

    run: str
    status: str
    error: str | None
    step: int | float | None
    tuned: str
    loss: Figures | None
    evaluation: Figures | None
    seconds: float
    time: Mapping[str, float]
    tokens: int | None
    tokens_per_second: float | None
    memory: Mapping[str, int]
    memory_parts: Mapping[str, MemoryPart]
    mfu: float | None
    energy: float | None
    model: str | None
    delivery: Sequence[DeliveryReport]
    opens: Mapping[str, str]
    next: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON-compatible values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """The summary as labels and texts; the deliveries are reported separately."""
        per_second = f" · {self.tokens_per_second:,.0f} per second" if self.tokens_per_second else ""
        energy = f"{self.energy:.3g} Wh by the GPUs" if self.energy else ""
        if self.energy and self.tokens:
            energy += f" · {self.energy / self.tokens * 1e6:.3g} Wh per million tokens"
        used = f" · {self.mfu:.1%} of the GPUs' peak FLOPs (MFU)" if self.mfu else ""
        labelled = [
            ("tuned" if self.model else "model", self.tuned),
            ("loss", _losses(self.loss)),
            ("eval", _losses(self.evaluation)),
            ("time", f"{duration(self.seconds)}{_shares(self.time, self.seconds)}"),
            ("tokens", f"{self.tokens:,}{per_second}{used}" if self.tokens else ""),
            ("memory", memory_line(self.memory_parts)),
            ("energy", energy),
            ("model", f"the newest checkpoint is {self.model}" if self._is_checkpoint else ""),
            *(("open", command) for command in self.opens.values()),
        ]
        found = [(label, text) for label, text in labelled if text]
        return found + [("next" if not at else "", command) for at, command in enumerate(self.next)]

    @property
    def _is_checkpoint(self) -> bool:
        return self.model is not None and self.model != self.run


def ending(directory: Path) -> Ending:
    """Summarise the run in a directory. Raises the errors of `read_run`."""
    run = read_run(directory)
    return ending_of(run, view_of(run))


def ending_of(run: TrackedRun, view: RunView) -> Ending:
    """Summarise a run that has been read, whether or not it has ended."""
    curves = {curve.key: curve for curve in run.curves}
    figures = {each.key: each for each in view.figures}
    spent = time_spent(run.curves)
    startup = sum(seconds for name, seconds in spent.items() if name in _START)
    imports = spent.get("imports", 0.0)
    seconds = run.replay.seconds + imports  # the journal starts after the imports
    if startup:
        rest = seconds - sum(spent.values())
        spent = {**spent, "start and end": max(0.0, rest)}
    tokens = _last_number(curves.get("train/num_tokens"))
    # Tokens of steps that a resumed run repeats count once, so their time does, too.
    working = sum(math.fsum(curves[key].finite()[2]) for key in _WORKING if key in curves)
    memory = {
        name: int(number)
        for name, key in (("peak", "train/peak_memory"), ("estimate", "train/estimated_memory"))
        if (number := _last_number(curves.get(key))) is not None
    }
    return Ending(
        run=str(run.directory),
        status=view.status,
        error=view.line.error,
        step=view.line.step,
        tuned=_tuned(view),
        loss=figures.get("train/loss"),
        evaluation=figures.get("eval/loss"),
        seconds=seconds,
        time=dict(sorted(spent.items(), key=lambda each: -each[1])),
        tokens=None if tokens is None else int(tokens),
        tokens_per_second=tokens / working if tokens and working else None,
        memory=memory,
        memory_parts=memory_parts(curves),
        mfu=mfu(curves),
        energy=energy(run.curves),
        model=_model(view),
        delivery=view.delivery,
        opens={each.tracker: command for each in view.delivery if (command := open_command(each))},
        next=next_commands(view, question_of(run)),
    )


_START = ("imports", "model", "data preparation", "trainer")


def time_spent(curves: Sequence[Curve]) -> dict[str, float]:
    """The seconds that a run's processes spent in each phase of the start and of the training, without empty
    phases."""
    named = {
        "startup_imports_seconds": "imports",
        "startup_model_seconds": "model",
        "startup_data_seconds": "data preparation",
        "startup_trainer_seconds": "trainer",
        "data_seconds": "waiting for data",
        **{
            f"{phase}_seconds": phase
            for phase in ("forward", "backward", "optimizer", "evaluation", "checkpoint", "logging", "other")
        },
    }
    found: dict[str, float] = {}
    for curve in curves:
        if curve.stage == RESOURCES and curve.name in named:
            # Steps that a resumed run repeated count again.
            total = curve.total()
            if total > 0:
                found[named[curve.name]] = total
    return found


def memory_parts(curves: Mapping[str, Curve]) -> dict[str, MemoryPart]:
    """The measured parts of the memory of a run's newest process."""
    found = {}
    for name in ("weights", "gradients", "optimizer", "activations"):
        measured = _last_number(curves.get(f"{RESOURCES}/memory_{name}_mb"))
        expected = _last_number(curves.get(f"{RESOURCES}/memory_{name}_estimated_mb"))
        if measured is not None:
            estimated = None if expected is None else round(expected * 1e6)
            found[name] = MemoryPart(round(measured * 1e6), estimated)
    return found


def memory_line(parts: Mapping[str, MemoryPart]) -> str:
    """`weights 538 MB, gradients 538 MB, …; largest deviation from the estimate: activations, 20 MB more`."""
    taken = ", ".join(f"{name} {format_bytes(part.measured)}" for name, part in parts.items())
    widest = max(parts.items(), key=lambda each: abs(each[1].gap), default=None)
    if widest is None or abs(widest[1].gap) < _LEAST_GAP * max(1, widest[1].measured):
        return taken
    gap = widest[1].gap
    return (
        f"{taken}; largest deviation from the estimate: {widest[0]}, {format_bytes(abs(gap))} "
        f"{'more' if gap > 0 else 'less'}"
    )


def mfu(curves: Mapping[str, Curve]) -> float | None:
    """The mean of the logged model FLOPs utilisation; `None` if it was not recorded."""
    curve = curves.get(f"{RESOURCES}/mfu_percent")
    if curve is None:
        return None
    shares = [float(each.value) for each in curve.numbers() if math.isfinite(each.value)]
    return sum(shares) / len(shares) / 100 if shares else None


def energy(curves: Sequence[Curve]) -> float | None:
    """The watt-hours used by a run's GPUs, integrated over the samples; `None` if none reports its power."""
    hours = [_hours(curve) for curve in curves if curve.stage == RESOURCES and curve.name.endswith("_watts")]
    return sum(hours) if hours else None


def question_of(run: TrackedRun) -> str | None:
    """A question that the model answered at an evaluation."""
    for table in reversed(run.tables):
        asked = [row.get("question", row.get("prompt")) for row in table.rows]
        if table.name == "samples" and asked and isinstance(asked[0], str):
            return " ".join(asked[0].split()) or None
    return None


def _hours(curve: Curve) -> float:
    """Integrate over the samples of each process, ignoring intervals in which the clock was set back."""
    seconds = 0.0
    for samples in curve.by_process():
        for (time, watts), (later, watts_later) in itertools.pairwise(samples):
            seconds += max(0.0, later - time) * (watts + watts_later) / 2
    return seconds / 3600


def _tuned(view: RunView) -> str:
    model, data = view.detail.params.get("model", {}), view.detail.params.get("data", {})
    settings = view.detail.settings
    adapters = [
        word
        for table, word in (("lora", "LoRA"), ("prompt_tuning", "prompt tuning"))
        if isinstance(settings.get(table), Mapping) and settings[table].get("enabled") is True
    ]
    rows, of_eval = data.get("rows"), data.get("eval_rows")
    if view.line.model is None:  # imported, or not a training of fmstune's
        return ""
    parts = [
        view.line.model,
        " and ".join([str(view.line.method), *adapters]),
        str(view.line.data) + (f", {counted(rows, 'row')}" if isinstance(rows, int) and rows else ""),
    ]
    if isinstance(of_eval, int) and of_eval:
        parts.append(f"eval {counted(of_eval, 'row')}")
    if isinstance(model.get("parameters"), int):
        parts[0] += f" ({model['parameters']:,} parameters)"
    return " · ".join(parts)


def _losses(figures: Figures | None) -> str:
    """`5.93 → best 0.836 at step 55 → 0.889`."""
    if figures is None:
        return ""
    if figures.points == 1:
        return cell(figures.last)
    best = figures.lowest if figures.lowest != figures.last else None
    middle = [f"best {cell(best)} at step {cell(figures.lowest_step)}"] if best is not None else []
    ends = [cell(figures.last) + ("" if middle or figures.lowest is None else " (the best)")]
    odd = (
        f" · {counted(figures.not_finite, 'value is', 'values are')} not finite" if figures.not_finite else ""
    )
    return " → ".join([cell(figures.first), *middle, *ends]) + odd


def _shares(time: Mapping[str, float], whole: float) -> str:
    worth = [
        f"{name} {duration(seconds)}" for name, seconds in time.items() if seconds > whole * _LEAST_SHARE
    ]
    return f": {', '.join(worth)}" if worth else ""


def _model(view: RunView) -> str | None:
    if view.line.model is None:
        return None
    if view.status == "finished":
        return str(view.directory)
    newest = newest_checkpoint(view.directory)
    return None if newest is None else str(newest)


def _last_number(curve: Curve | None) -> float | None:
    value = None if curve is None else curve.last.value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
