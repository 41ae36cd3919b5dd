"""Compare the tables, media and artifacts that a service stores for a run with the run's journal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fmstune.delivery.journal.reader import Event
from fmstune.testing.compare import comparable, is_named
from fmstune.testing.findings import Stored
from fmstune.testing.runs import FILES
from fmstune.trackers.values.normalise import as_text


def params_of_tables(events: Iterable[Event]) -> dict[str, Any]:
    """The params that the base class's `track_table` makes of tables, by namespace."""
    found: dict[str, Any] = {}
    for event in events:
        if event.kind == "table":
            name = _key(event) + ("" if event.step is None else f"/step {event.step}")
            found[name] = {str(number): dict(row) for number, row in enumerate(event.rows, 1)}
    return found


def _missing_tables(
    events: Iterable[Event], tables: Iterable[tuple[str, int | None, Any]], changes: Sequence[str]
) -> Iterable[str]:
    """The tables that are missing or different, as sentences; those without rows may be missing."""
    held = {(name, step): rows for name, step, rows in tables}
    for event in events:
        key = _key(event)
        if event.kind != "table" or not event.rows or is_named(key, changes):
            continue
        rows = held.get((key, event.step))
        where = f"the table {key}" + ("" if event.step is None else f" at step {event.step}")
        if rows is None:
            yield f"{where} is missing"
        elif len(rows) != len(event.rows):
            yield f"{where} has {len(rows)} rows instead of {len(event.rows)}"
        else:
            yield from _of_rows(where, event.rows, rows, changes)


def _missing_media(
    events: Iterable[Event],
    media: Iterable[tuple[str, str, int | None]],
    kinds: Collection[str],
    changes: Sequence[str],
) -> Iterable[str]:
    """The texts, images and histograms that are missing, as sentences, of the `kinds` that it stores."""
    held = set(media)
    for event in events:
        key = _key(event)
        there = (event.kind, key, event.step) in held
        if event.kind in kinds and not there and not is_named(key, changes):
            yield (
                f"the {event.kind} {key}"
                + ("" if event.step is None else f" at step {event.step}")
                + (" is missing")
            )


def _missing_files(
    events: Iterable[Event], artifacts: Iterable[tuple[str, Mapping[str, bytes]]]
) -> Iterable[str]:
    """The artifacts and files that are missing or different, as sentences."""
    held = {name: dict(files) for name, files in artifacts}
    for event in events:
        if event.kind != "artifact":
            continue
        where = f"the artifact {event.name}"
        if event.name not in held:
            yield f"{where} is missing"
            continue
        files = held[event.name]
        for name, content in FILES.items():
            if name not in files:
                yield f"the file {name} of {where} is missing"
            elif files[name] != content:
                yield f"the file {name} of {where} has other content"


def missing_items(
    events: Sequence[Event], stored: Stored, declared: Mapping[str, Any], changes: Sequence[str]
) -> list[str]:
    """The tables, media and artifacts that a tracker that `declared` to store them lacks, if `read` returns
    them."""
    found: list[str] = []
    if declared["tables"] == "tables" and stored.tables is not None:
        found += _missing_tables(events, stored.tables, changes)
    if stored.media is not None:
        found += _missing_media(events, stored.media, declared["media"], changes)
    if declared["artifacts"] and stored.artifacts is not None:
        found += _missing_files(events, stored.artifacts)
    return found


def uncompared(stored: Stored, declared: Mapping[str, Any]) -> str:
    """What the tracker stores but `read` does not return, as a sentence; empty if there is nothing."""
    left_out = [
        name
        for name, is_stored, given in (
            ("params", True, stored.params),
            ("status", True, stored.status),
            ("tables", declared["tables"] == "tables", stored.tables),
            ("media", bool(declared["media"]), stored.media),
            ("artifacts", declared["artifacts"], stored.artifacts),
        )
        if is_stored and given is None
    ]
    return f"Not compared, since `read` does not return them: {', '.join(left_out)}." if left_out else ""


def _of_rows(
    where: str,
    expected: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    changes: Sequence[str],
) -> Iterable[str]:
    for number, (row, held) in enumerate(zip(expected, rows, strict=True), 1):
        for column, value in row.items():
            got = held.get(column)
            same = as_text(got) == as_text(value) or comparable(got) == comparable(value)
            if not same and not is_named(column, changes):
                yield f"{where} has {got!r} instead of {value!r} in row {number}, column {column}"


def _key(event: Event) -> str:
    return "/".join(part for part in (event.stage, event.name) if part)
