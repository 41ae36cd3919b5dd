"""The fields to filter and sort runs by: columns of the table, settings, params and metrics."""

from __future__ import annotations

import fnmatch
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmstune.config.check.suggest import ALIASES, closest
from fmstune.config.inspect.compare import flat
from fmstune.config.load.values import dotted, split_key
from fmstune.errors import ConfigError
from fmstune.report.listing import ListedRun
from fmstune.text import shown

_SHOWN: dict[str, Callable[[ListedRun], Any]] = {
    "run": lambda run: run.path,
    "name": lambda run: run.line.name,
    "status": lambda run: run.status,
    "error": lambda run: run.line.error,
    "model": lambda run: run.line.model,
    "method": lambda run: run.line.method,
    "data": lambda run: run.line.data,
    "loss": lambda run: run.line.loss,
    "eval": lambda run: run.line.eval,
    "step": lambda run: run.line.step,
    "duration": lambda run: run.line.seconds,
    "age": lambda run: None if run.line.created is None else time.time() - run.line.created,
}
"""The fields in the table."""
_OF_RUN = ("group", "tags", "notes")
"""Settings of the run whose names trackers' options may share."""
_TIMES = ("duration", "age")
_ORDERS = ("<", "<=", ">", ">=")
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.S)
_TIME = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def needs_detail(key: str) -> bool:
    """Whether a field needs more than the columns of the table."""
    return key not in _SHOWN


def condition_key(text: str) -> str:
    """The field of a condition such as `loss<1.5`. Raises `ConfigError`."""
    return _condition(text)[0]


def values_of(runs: Sequence[ListedRun], key: str) -> list[Any]:
    """The value of a field in each run; `None` if a run does not have it.

    A name is searched for in the columns of the table, the metrics (`eval/loss`), the settings
    (`training.learning_rate`), the params (`params.team`, or `team`) and the last parts of all of these.
    Raises `ConfigError` if no run has it.
    """
    if key in _SHOWN:
        return [_SHOWN[key](run) for run in runs]
    if not runs:
        return []
    for place in (_metric, _setting, _namespace, _param):
        found = [place(run, key) for run in runs]
        if any(value is not None for value in found):
            return found
    if key in _OF_RUN:
        return values_of(runs, f"run.{key}")
    known = _known(runs)
    named = [each for each in known if re.split(r"[./]", each)[-1] == key]
    alias = ALIASES.get(key)
    if alias in known or len(named) == 1:
        return values_of(runs, str(alias) if alias in known else named[0])
    if named:
        raise ConfigError(f"{shown(key)} is ambiguous: use {' or '.join(sorted(named)[:4])}.")
    close = closest(key, [*_SHOWN, *known])
    raise ConfigError(
        f"no run here has {shown(key)} as a setting, a param or a metric."
        + (f" Did you mean {close}?" if close else "")
    )


def chosen(
    runs: Sequence[ListedRun], condition: str, among: Sequence[ListedRun] | None = None
) -> list[ListedRun]:
    """The runs that match a condition on a field of any of the runs in `among`: `=`, `!=`, `<`, `<=`, `>`,
    `>=`, or `~` for "contains". `*` and `?` are wildcards, and an empty value after `=` matches missing
    fields. Raises `ConfigError`."""
    key, operator, text = _condition(condition)
    seconds = _in_seconds(text) if key in _TIMES else None
    if key in _TIMES and seconds is None and text and _number(text) is None:
        raise ConfigError(f"--where {shown(condition)}: {key} takes a time such as 90s, 5m, 2h30m, 3d or 2w.")
    wanted = text if seconds is None else str(seconds)
    _require_comparable(condition, operator, wanted, values_of(runs if among is None else among, key))
    values = _values(runs, key, among)
    return [run for run, value in zip(runs, values, strict=True) if _holds(value, operator, wanted)]


def _values(runs: Sequence[ListedRun], key: str, among: Sequence[ListedRun] | None) -> list[Any]:
    every = runs if among is None else among
    known = dict(zip(map(id, every), values_of(every, key), strict=True))
    return [known[id(run)] for run in runs]


def ordered(
    runs: Sequence[ListedRun],
    key: str,
    *,
    reverse: bool = False,
    among: Sequence[ListedRun] | None = None,
) -> list[ListedRun]:
    """Sort the runs by a field of any of the runs in `among`, smallest first; those without it, or with NaN,
    come last. Raises `ConfigError`."""
    pairs = list(zip(runs, _values(runs, key, among), strict=True))
    there = [pair for pair in pairs if not _is_missing(pair[1])]
    lacking = [run for run, value in pairs if _is_missing(value)]
    there.sort(key=lambda pair: _rank(pair[1]), reverse=reverse)
    return [run for run, _ in there] + lacking


def _condition(text: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--where {shown(text)} is not a condition; use one such as loss<1.5 or team=nlp.")
    return match[1], match[2], match[3]


def _require_comparable(condition: str, operator: str, wanted: str, values: Sequence[Any]) -> None:
    """Raise `ConfigError` for a value that the field cannot be compared with (`loss<1 and eval<2`)."""
    if operator in _ORDERS and not wanted:
        raise ConfigError(f"--where {shown(condition)}: there is no value after {operator}.")
    there = [each for value in values for each in (value if isinstance(value, (list, tuple)) else [value])]
    numbers = any(_number(each) is not None for each in there)
    texts = any(isinstance(each, (str, bool)) for each in there)
    if (
        numbers
        and not texts
        and operator != "~"
        and _number(wanted) is None
        and not re.search("^$|[*?]", wanted)
    ):
        raise ConfigError(
            f"--where {shown(condition)}: the field is a number, but {shown(wanted)} is not. Use a separate "
            "--where for each condition."
        )


def _holds(value: Any, operator: str, wanted: str) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds(each, operator, wanted) for each in value) or (not value and not wanted)
    if value is None or not wanted:
        missing = value is None or value == ""
        return {"=": missing == (not wanted), "==": missing == (not wanted)}.get(
            operator, operator == "!=" and missing != (not wanted)
        )
    if operator == "~":
        return wanted.lower() in _text(value).lower()
    number = _number(wanted)
    if operator in ("=", "==", "!="):
        same = _same(value, wanted, number)
        return same != (operator == "!=")
    mine = _number(value)
    if mine is None or number is None:
        mine, number = (None, None) if mine is not None or number is not None else (_text(value), wanted)
    if mine is None:
        return False
    return bool(
        {"<": mine < number, "<=": mine <= number, ">": mine > number, ">=": mine >= number}[operator]
    )


def _same(value: Any, wanted: str, number: Any) -> bool:
    mine = None if isinstance(value, (bool, str)) else _number(value)
    if mine is not None and number is not None:
        return bool(mine == number or (mine != mine and number != number))
    return fnmatch.fnmatchcase(_text(value), wanted) or _text(value) == wanted


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _in_seconds(text: str) -> float | None:
    if not _TIME.fullmatch(text):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([smhdw])", text))


def _rank(value: Any) -> tuple[int, Any]:
    number = value if isinstance(value, bool) else _number(value)
    return (1, _text(value)) if number is None else (0, number)


def _is_missing(value: Any) -> bool:
    number = _number(value)  # NaN may be a string in a param
    return value is None or (isinstance(number, float) and math.isnan(number))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _metric(run: ListedRun, key: str) -> Any:
    return run.detail.metrics.get(key)


def _setting(run: ListedRun, key: str) -> Any:
    return _within(run.detail.settings, key)


def _namespace(run: ListedRun, key: str) -> Any:
    return _within(run.detail.params, key)


def _param(run: ListedRun, key: str) -> Any:
    return _within(run.detail.params.get("params", {}), key)


def _within(tables: Mapping[str, Any], key: str) -> Any:
    if key in tables:
        found: Any = tables[key]
    else:
        try:
            parts = split_key(key, "")
        except ConfigError:  # a metric may have any name
            return None
        found = tables
        for part in parts:
            found = found.get(part) if isinstance(found, Mapping) else None
    return None if isinstance(found, Mapping) else found


def _known(runs: Sequence[ListedRun]) -> list[str]:
    """The fields of all runs, without duplicates."""
    known: dict[str, None] = {}
    for run in runs:
        known |= dict.fromkeys(run.detail.metrics)
        known |= dict.fromkeys(flat(run.detail.settings))
        for name, values in run.detail.params.items():
            known |= dict.fromkeys(flat(values, () if name == "params" else (name,)))
    return [key for key in known if key != dotted([])]
