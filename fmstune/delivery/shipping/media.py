"""Texts, images, histograms and files of the journal as passed to trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

from fmstune.delivery.journal.files import stored_file, stored_folder
from fmstune.delivery.journal.reader import Event
from fmstune.secrets.redaction import beginning
from fmstune.trackers.records import Artifact, Limits, Media, utf8

_KINDS = {"text": "texts", "image": "images", "histogram": "histograms", "artifact": "files"}


def why_not(event: Event, takes: Collection[str]) -> str | None:
    """Why an event is not delivered to a tracker that accepts these kinds; `None` if it is."""
    what = _called(event)
    if "unreadable" in event.item:
        return f"{what} could not be recorded: {event.item['unreadable']}"
    if "lost" in event.item:
        return f"{what} could not be written beside the journal: {event.item['lost']}"
    if event.kind not in takes:
        return f"{what} stays in the journal only: this tracker stores no {_KINDS[event.kind]}"
    return None


def changed(event: Event, limits: Limits) -> Iterator[str]:
    """What was left out when it was recorded, or does not fit a tracker with these limits."""
    if event.item.get("caption") and not limits.captions:
        yield f"captions of {_called(event)} are left out: this tracker stores none"
    if left_out := event.item.get("not_finite"):
        yield f"{_called(event)} leaves out numbers that are not finite ({left_out})"
    if altered := event.item.get("altered"):
        yield f"{_called(event)} was changed: {altered}"
    if size := event.item.get("cut"):
        yield f"{_called(event)} was cut: it has {size} bytes"


def _called(event: Event) -> str:
    where = f"{event.stage}/{event.name}" if event.stage else f"{event.name}"
    return f"the {event.kind} {beginning(where, 80) if where.isprintable() else ascii(where)[1:80]}"


def with_files(artifact: Artifact, journal: Path, event: Event) -> Artifact:
    """The artifact with the event's files. Raises `FileLost`."""
    folder, files = stored_folder(journal, event.item)
    size = sum((folder / name).stat().st_size for name in files)
    return dataclasses.replace(artifact, folder=folder, files=files, size=size)


def with_content(media: Media, journal: Path, event: Event) -> Media:
    """The media with the event's content or its file. Raises `FileLost`, and `ValueError` and the like for a
    foreign line."""
    item = event.item
    if media.kind == "histogram":
        counts = tuple(item["counts"])
        return dataclasses.replace(media, counts=counts, low=float(item["low"]), high=float(item["high"]))
    if media.kind == "image":
        return dataclasses.replace(
            media, file=stored_file(journal, item), text=utf8(str(item.get("caption", "")))
        )
    text = str(item["text"]) if "text" in item else stored_file(journal, item).read_text("utf-8", "replace")
    return dataclasses.replace(media, text=utf8(text))
