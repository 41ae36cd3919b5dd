"""Whether a resumed run has the data that it was begun with; it is resumed with those that are there now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.data.summary import DataSummary
from fmstune.delivery.journal.reader import JournalError, JournalReader
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.text import counted


def recorded_data(run: Path) -> Mapping[str, Any]:
    """What the journal of the run in a directory says of its data, at last; nothing where it has no word."""
    found: Mapping[str, Any] = {}
    try:
        for event in JournalReader(run / TRACKING_DIR / JOURNAL_NAME):
            if event.kind == "params" and event.name == "data":
                found = event.values
    except (OSError, JournalError):
        return {}  # a checkpoint alone, or a damaged journal, about which delivery speaks
    return found


def changed_data(before: Mapping[str, Any], now: DataSummary) -> str:
    """What of the data differs, for people; nothing where nothing does. Of a stream nothing is known."""
    if not before or now.streaming or before.get("streaming"):
        return ""
    return "; ".join(_changes(before, now.as_params()))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if _files(before) != _files(now) or before.get("rows") != now.get("rows"):
        yield f"{now['source']} ({_then_and_now(before, now, 'rows', 'row')})"
    elif before.get("tokens") != now.get("tokens"):
        yield f"the tokens of {now['source']} ({_then_and_now(before, now, 'tokens', 'token')})"
    names = ("eval_source", "eval_sha256", "eval_rows")
    if [before.get(name) for name in names] != [now.get(name) for name in names]:
        what = now.get("eval_source") or before.get("eval_source")
        yield f"{what} to evaluate on ({_then_and_now(before, now, 'eval_rows', 'row')})"


def _files(params: Mapping[str, Any]) -> list[Any]:
    sources = params.get("sources") or [params]
    return [(source.get("source"), source.get("sha256")) for source in sources]


def _then_and_now(before: Mapping[str, Any], now: Mapping[str, Any], name: str, thing: str) -> str:
    then, there = int(before.get(name) or 0), int(now.get(name) or 0)
    if then == there:
        return f"{counted(there, thing)}, as before, with other contents"
    return f"{counted(then, thing)} before, {there:,} now"
