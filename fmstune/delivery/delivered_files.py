"""Folders of files that a run has delivered: how much of them a tracker has, and freeing the disk space of
linked ones once all trackers have them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from fmstune.delivery.journal.reader import Event, parse
from fmstune.delivery.ledger import Ledger, all_ledgers
from fmstune.layout import FILES_DIR, JOURNAL_NAME, TRACKING_DIR
from fmstune.system.files import open_file
from fmstune.text import counted

_NO_FILES = ("this tracker stores no files", "there is no room for files here")
"""How the ledger records that a tracker accepts no files, now and in earlier versions."""


def folders(journal: Path) -> Iterator[Event]:
    """The events of a journal that deliver files. Raises `OSError`."""
    with open_file(journal) as file:
        for line in file:
            if b'"kind":"artifact"' in line and (event := parse(line)) and "folder" in event.item:
                yield event


def has(ledger: Ledger, event: Event) -> bool:
    """Whether a tracker has certainly stored an event, so that no kill can undo it."""
    seq = event.seq
    taken = seq <= ledger.safe_delivered and seq not in ledger.missing
    return taken and seq not in ledger.suspicion.refused and ledger.suspicion.mark(seq) is None


def release_links(directory: Path, used: Collection[str] = ()) -> None:
    """Remove the links to files that all trackers of the run in `directory` have, those in `used` and those
    of earlier processes: they would keep the disk space of a checkpoint that is removed later. Not while a
    tracker refers to files in place, as `file` does. What cannot be read or removed
    now is left for the next time."""
    tracking = directory / TRACKING_DIR
    with contextlib.suppress(OSError):
        found = list(folders(tracking / JOURNAL_NAME))
        ledgers = all_ledgers(directory)
        known = {ledger.tracker for ledger in ledgers}  # a full disk may have prevented one
        if not found or not known or set(used) - known or any(ledger.refers for ledger in ledgers):
            return
        wanted = {
            event.item["folder"]
            for event in found
            if "from" not in event.item or not all(has(ledger, event) for ledger in ledgers)
        }
        for name in {str(event.item["folder"]) for event in found} - wanted:
            if name.isalnum():  # the line may have been written by anyone
                shutil.rmtree(tracking / FILES_DIR / name, ignore_errors=True)


def progress(directory: Path, ledger: Ledger) -> str | None:
    """How many of the folders a tracker has, and their size, for its line of the report; `None` when there
    are none, or it accepts none."""
    if any(change.endswith(_NO_FILES) for change in ledger.changes):
        return None
    try:
        found = list(folders(directory / TRACKING_DIR / JOURNAL_NAME))
    except OSError:
        return None
    if not found:
        return None
    taken = [event for event in found if has(ledger, event)]
    mb, of = (sum(int(each.item.get("size", 0)) for each in some) / 1e6 for some in (taken, found))
    if len(taken) == len(found):
        return f"{counted(len(found), 'artifact')}, {of:,.1f} MB"
    at = f", {ledger.sending / 1e6:,.1f} MB on their way" if ledger.sending else ""
    return f"{len(taken)} of {counted(len(found), 'artifact')}, {mb:,.1f} of {of:,.1f} MB{at}"
