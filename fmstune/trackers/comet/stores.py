"""Where the tracker `comet` stores an experiment: on the server, in archives, or nowhere; and which one."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from fmstune.trackers.comet.account import required_key
from fmstune.trackers.comet.archive import Archive, newest_state
from fmstune.trackers.comet.items import Events, Item
from fmstune.trackers.comet.service import Service
from fmstune.trackers.comet.settings import Settings, disabled
from fmstune.trackers.continued import is_another_runs, mark, note
from fmstune.trackers.records import RunStart, Status, TrackerError


class Store(Protocol):
    """The interface of all stores. `write` and `end` raise `OSError` and `TrackerError`."""

    @property
    def key(self) -> str: ...

    @property
    def page(self) -> str | None: ...

    @property
    def note(self) -> str | None: ...

    @property
    def events(self) -> Events: ...

    @property
    def params(self) -> dict[str, str]: ...

    @property
    def counts(self) -> dict[str, int]: ...

    def holds(self, last: int) -> bool: ...

    def write(self, items: list[Item], events: Sequence[int]) -> None: ...

    def end(self, status: Status, error: str | None, others: list[Item], tags: tuple[str, ...]) -> None: ...


class _Nothing:
    """Comet is disabled."""

    key, page = "disabled", None

    def __init__(self) -> None:
        self.note: str | None = disabled()
        self.events, self.params, self.counts = Events(), dict[str, str](), dict[str, int]()

    def holds(self, last: int) -> bool:
        return True

    def write(self, items: list[Item], events: Sequence[int]) -> None:
        items.clear()

    def end(self, status: Status, error: str | None, others: list[Item], tags: tuple[str, ...]) -> None:
        """Nothing to end."""


def open_store(settings: Settings, start: RunStart) -> tuple[Store, str | None]:
    """The experiment of a run, or another one, with a note, if another run has continued that."""
    if settings.mode == "disabled":
        return _Nothing(), None
    key = start.tracker_run_id or settings.experiment or _key(start.new_run_id)
    marked = mark(start) if start.run_id is not None else {}
    return (_offline if settings.mode == "offline" else _online)(settings, key, start, marked)


def _offline(
    settings: Settings, key: str, start: RunStart, marked: dict[str, Any]
) -> tuple[Store, str | None]:
    found = newest_state(settings.folder, key)
    if found is None or not _is_of_another(found.mark, start):
        return Archive(settings, key, start, marked), None
    noted = _of_its_own(settings, start, key)
    return Archive(settings, _key(None), dataclasses.replace(start, tracker_run_id=None), marked), noted


def _online(
    settings: Settings, key: str, start: RunStart, marked: dict[str, Any]
) -> tuple[Store, str | None]:
    api_key, noted = required_key(settings), None
    store = Service(settings, api_key, key)
    if _is_of_another(store.mark, start):
        store.abandon()
        noted = _of_its_own(settings, start, key)
        store = Service(settings, api_key, _key(None))
    store.begin(marked)
    return store, noted


def _key(new_run_id: str | None) -> str:
    """An experiment's key: the same for each attempt to open the same run."""
    if new_run_id is None:
        return uuid.uuid4().hex
    return hashlib.sha1(new_run_id.encode(), usedforsecurity=False).hexdigest()


def _is_of_another(found: dict[str, Any], start: RunStart) -> bool:
    return start.run_id is not None and is_another_runs(found, start)


def _of_its_own(settings: Settings, start: RunStart, key: str) -> str:
    if settings.experiment == key and start.tracker_run_id is None:
        raise TrackerError(f"The Comet experiment {key} holds other points; unset COMET_EXPERIMENT_KEY.")
    return note(dataclasses.replace(start, tracker_run_id=key))
