"""Print what a run trains: the model, its precision, the data, and notes about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmstune.config.methods.known import METHODS
from fmstune.console import RunConsole

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer


def describe(built: BuiltTrainer, out: RunConsole) -> None:
    identity = built.model_identity
    share = built.trainable / max(1, identity["parameters"])
    trained = "" if share == 1 else f", {share:.2%} trained"
    count = _count(identity["parameters"])
    precision = built.precision.line(identity["dtype"])
    out.say("model", f"{identity['path']} · {count} parameters{trained} · {precision}")
    if built.adapter:
        out.say("adapter", built.adapter)
    padding = f" · {built.padding.line()}" if built.padding else ""
    out.say("data", f"{built.data.line()}{padding}")
    if besides := METHODS[built.trainer.method].besides:
        out.say("learnt", besides)
    for line in built.data.unused_lines():
        out.warn(line)
    for note in built.notes:
        out.warn(note)
    for line in built.bad_rows.lines():
        out.say("skipped", line)


def _count(number: int) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
