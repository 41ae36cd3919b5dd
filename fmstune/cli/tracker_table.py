"""The table of `fmstune trackers list`, which needs only the registry."""

from __future__ import annotations

from collections.abc import Sequence

from fmstune.trackers.registry import TrackerEntry, list_trackers

_HEAD = ("name", "state", "version", "origin", "description")


def print_trackers(*, as_json: bool) -> None:
    """Print all available trackers, as a table or as JSON."""
    entries = [_visible(entry) if entry.state == "broken" else entry for entry in list_trackers()]
    if as_json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
    else:
        _print_table([_HEAD, *(_row(entry) for entry in entries)])


def _visible(entry: TrackerEntry) -> TrackerEntry:
    """Hide secrets that an error from a third-party module may contain."""
    import dataclasses

    from fmstune.secrets.redaction import hide

    return dataclasses.replace(entry, description=hide(entry.description), remedy=hide(entry.remedy))


def _row(entry: TrackerEntry) -> tuple[str, ...]:
    text = entry.description + (" (in process)" if entry.in_process else "")
    if entry.remedy:
        text += f" → {entry.remedy}"
    return entry.name, entry.state, entry.version or "-", entry.origin, text


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())
