"""Data that is too large for a line of the journal: files next to it, each named after the hash of its
content.

An event refers to the file in its `item`: `{"file": "<sha256>.png", "size": 1234}`. The same content is
stored once, however often it was tracked; a file is complete before its event is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fmstune.layout import FILES_DIR
from fmstune.system.files import link_or_copy, rename_folder

_NAME = re.compile(r"([0-9a-f]{64})(\.[a-z]{1,5})")


class FileLost(Exception):
    """The file of an event is missing or has changed."""


class Stopped(Exception):
    """No time is left to read files."""


def store_file(journal: Path, data: bytes, suffix: str) -> dict[str, Any]:
    """Write a file next to the journal at this path, unless it exists; return its entry for an event. Raises
    `OSError`."""
    folder = journal.parent / FILES_DIR
    path = folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if not (path.is_file() and path.stat().st_size == len(data)):
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # noqa: PTH105  (the recorder's path may be relative)
        finally:
            temporary.unlink(missing_ok=True)
    return {"file": path.name, "size": len(data)}


def store_all(journal: Path, files: Mapping[str, Path], *, link: bool) -> dict[str, Any]:
    """Store files under the given names in a folder next to the journal at this path; return its entry for an
    event. With `link` they are not copied if the file system allows it: their owner may delete them, but not
    write to them. Raises `OSError`."""
    store = journal.parent / FILES_DIR
    temporary = store / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir(parents=True)
        for name, source in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, path) if link else shutil.copyfile(source, path)
        return named_by_content(store, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def named_by_content(store: Path, folder: Path, go_on: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Name a folder in the store after its content, which is read for that; return its entry for an event.
    Raises `OSError`, and `Stopped` when it has to stop."""
    names = files_in(folder)
    size = sum((folder / name).stat().st_size for name in names)
    digest = _digest(folder, names, go_on)
    if not (store / digest).is_dir():
        rename_folder(folder, store / digest)
    return {"folder": digest, "files": len(names), "size": size}


def files_in(folder: Path) -> list[str]:
    """The files below a folder, by their names relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stored_folder(journal: Path, item: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]]:
    """The folder of an event, and the files in it. Links that were removed after delivery are looked up at
    their origin: `{"from": "checkpoint-20", "names": [...]}`. Raises `FileLost`."""
    name = str(item.get("folder"))
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise FileLost(f"{name[:80]!r} is not a folder of the journal")
    folder = (journal.parent / FILES_DIR / name).absolute()
    try:
        if not folder.is_dir() and "from" in item:
            return _rebuilt_from_source(journal, item, name)
        files = files_in(folder)
        found = _digest(folder, files)
    except OSError as error:
        raise FileLost(f"its folder {folder} cannot be read: {error.strerror}") from None
    if found != name:
        raise FileLost(f"its folder {folder} has changed or is missing")
    return folder, tuple(files)


def _rebuilt_from_source(journal: Path, item: Mapping[str, Any], digest: str) -> tuple[Path, tuple[str, ...]]:
    """The folder of an event, rebuilt from links. A tracker is never given the original folder, which
    contains other files."""
    place, names = str(item["from"]), tuple(map(str, item.get("names") or ()))
    if any(".." in Path(each).parts or Path(each).is_absolute() for each in (place, *names)):
        raise FileLost(f"{place[:80]!r} is not a folder of the run")
    folder = journal.parent.parent / place
    if all((folder / name).is_file() for name in names) and _digest(folder, sorted(names)) == digest:
        store_all(journal, {name: folder / name for name in names}, link=True)
        return (journal.parent / FILES_DIR / digest).absolute(), tuple(sorted(names))
    raise FileLost(
        f"its links were removed after delivery, and {folder.absolute()} no longer contains these files"
    )


def _digest(folder: Path, files: Iterable[str], go_on: Callable[[], bool] = lambda: True) -> str:
    """The hash of the names and the contents of files. Raises `Stopped` when it has to stop."""
    whole = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                if not go_on():
                    raise Stopped
                content.update(block)
        whole.update(f"{content.hexdigest()} {name}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def stored_file(journal: Path, item: Mapping[str, Any]) -> Path:
    """The file of an event. Raises `FileLost`."""
    name = str(item.get("file"))
    found = _NAME.fullmatch(name)
    if found is None:  # a foreign line could name any file
        raise FileLost(f"{name[:80]!r} is not a file of the journal")
    path = (journal.parent / FILES_DIR / name).absolute()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileLost(f"its file {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != found[1]:
        raise FileLost(f"its file {path} has changed")
    return path
