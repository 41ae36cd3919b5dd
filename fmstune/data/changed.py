"""Whether a resumed run has the data that it started with; it resumes with the current data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.data.summary import DataSummary
from fmstune.delivery.journal.reader import JournalError, JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.text import counted

_PASSED_OVER = "as many of its rows are skipped as were trained on before"

_EVALUATED = ("eval_source", "eval_sha256", "eval_rows")


def recorded_params(run: Path) -> Mapping[str, Mapping[str, Any]]:
    """The params of each name, like "data", that the last process to set some has set, in the journal of the
    run in a directory; empty if there is none. The user's may have the same name."""
    found: dict[str, dict[str, Any]] = {}
    by_others: set[str] = set()
    try:
        for event in JournalReader(run / TRACKING_DIR / JOURNAL_NAME):
            if event.kind == "resume":
                by_others = {*found}
            elif event.kind == "params" and event.name is not None:
                earlier = {} if event.name in by_others else found.get(event.name, {})
                found[event.name] = earlier | dict(event.values)
                by_others.discard(event.name)
    except (OSError, JournalError):
        return {}  # only a checkpoint, or a damaged journal, which delivery reports
    return found


def changed_data(before: Mapping[str, Any], now: DataSummary) -> str:
    """A readable list of what differs in the data; empty if nothing does."""
    return "; ".join(_changes(before, now.as_params())) if before else ""


def evaluates_otherwise(before: Mapping[str, Any], now: DataSummary) -> bool:
    """Whether evaluations have other rows, or other sets of them, than before."""
    params = now.as_params()
    return bool(before) and any(before.get(name) != params.get(name) for name in (*_EVALUATED, "eval_sets"))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    streamed = [bool(each.get("streaming")) for each in (before, now)]
    if any(streamed):
        if all(streamed) and _files(before) != _files(now):
            yield f"{now['source']} (streamed, with other contents: {_PASSED_OVER})"
    elif _files(before) != _files(now) or before.get("rows") != now.get("rows"):
        yield f"{now['source']} ({_then_and_now(before, now, 'rows', 'row')})"
    elif before.get("tokens") != now.get("tokens"):
        yield f"the tokens of {now['source']} ({_then_and_now(before, now, 'tokens', 'token')})"
    what = now.get("eval_source") or before.get("eval_source")
    if [before.get(name) for name in _EVALUATED] == [now.get(name) for name in _EVALUATED]:
        if before.get("eval_sets") != now.get("eval_sets"):
            yield f"{what} to evaluate on (in other sets)"
    else:
        yield f"{what} to evaluate on ({_then_and_now(before, now, 'eval_rows', 'row')})"


def _files(params: Mapping[str, Any]) -> list[Any]:
    sources = params.get("sources") or [params]
    return [tuple(source.get(name) for name in ("source", "sha256", "fingerprint")) for source in sources]


def _then_and_now(before: Mapping[str, Any], now: Mapping[str, Any], name: str, thing: str) -> str:
    then, there = int(before.get(name) or 0), int(now.get(name) or 0)
    if then == there:
        return f"{counted(there, thing)}, as before, with other contents"
    return f"{counted(then, thing)} before, {there:,} now"
