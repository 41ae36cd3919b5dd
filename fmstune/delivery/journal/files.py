"""What is too large for a line of the journal: files beside it, each called after the hash of its content.

An event names the file in its `item`: `{"file": "<sha256>.png", "size": 1234}`. The same content is there
once, however often it was tracked; a file is whole before the event that names it is written.
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

_NAME = re.compile(r"([0-9a-f]{64})(\.[a-z]{1,5})")


class FileLost(Exception):
    """The file of an event is not there, or is another one by now."""


class Stopped(Exception):
    """There is no time left to read files."""


def keep(journal: Path, data: bytes, suffix: str) -> dict[str, Any]:
    """Write a file beside the journal at this path, unless it is there; what an event says of it. Raises
    `OSError`."""
    folder = journal.parent / FILES_DIR
    path = folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if not (path.is_file() and path.stat().st_size == len(data)):
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # noqa: PTH105  (a path of the recorder's, which may be relative)
        finally:
            temporary.unlink(missing_ok=True)
    return {"file": path.name, "size": len(data)}


def keep_all(journal: Path, files: Mapping[str, Path], *, link: bool) -> dict[str, Any]:
    """Put files, by the names that they are to have, into a folder beside the journal at this path; what an
    event says of it. With `link` they are not copied, where the file system allows that: their owner may
    delete them, but not write into them. Raises `OSError`."""
    store = journal.parent / FILES_DIR
    temporary = store / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir(parents=True)
        for name, source in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (link and linked(source, path)):
                shutil.copyfile(source, path)
        return settled(store, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def linked(source: Path, path: Path) -> bool:
    """Give a file a second name. `False` where that cannot be: on another file system, or one without hard
    links."""
    try:
        os.link(source.resolve(strict=True), path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def settled(store: Path, folder: Path, go_on: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Call a folder in the store after its content, which is read for that; what an event says of it. Raises
    `OSError`, and `Stopped` when it is to stop."""
    names = files_in(folder)
    size = sum((folder / name).stat().st_size for name in names)
    digest = _digest(folder, names, go_on)
    if not (store / digest).is_dir():
        folder.rename(store / digest)
    return {"folder": digest, "files": len(names), "size": size}


def files_in(folder: Path) -> list[str]:
    """The files below a folder, by their names relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def all_kept(journal: Path, item: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]]:
    """The folder that an event names, and the files in it. Links that were given back when they were
    delivered are looked for where they came from: `{"from": "checkpoint-20", "names": [...]}`. Raises
    `FileLost`."""
    name = str(item.get("folder"))
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise FileLost(f"{name[:80]!r} is no folder of the journal's")
    folder = (journal.parent / FILES_DIR / name).absolute()
    try:
        if not folder.is_dir() and "from" in item:
            return _where_they_came_from(journal, item, name)
        files = files_in(folder)
        found = _digest(folder, files)
    except OSError as error:
        raise FileLost(f"its folder {folder} cannot be read: {error.strerror}") from None
    if found != name:
        raise FileLost(f"its folder {folder} has been changed, or is not there")
    return folder, tuple(files)


def _where_they_came_from(
    journal: Path, item: Mapping[str, Any], digest: str
) -> tuple[Path, tuple[str, ...]]:
    """The folder that an event names, made again of links. A tracker is never handed the place itself, which
    has more in it."""
    place, names = str(item["from"]), tuple(map(str, item.get("names") or ()))
    if any(".." in Path(each).parts or Path(each).is_absolute() for each in (place, *names)):
        raise FileLost(f"{place[:80]!r} is no folder of the run's")
    folder = journal.parent.parent / place
    if all((folder / name).is_file() for name in names) and _digest(folder, sorted(names)) == digest:
        keep_all(journal, {name: folder / name for name in names}, link=True)
        return (journal.parent / FILES_DIR / digest).absolute(), tuple(sorted(names))
    raise FileLost(
        f"its links were given back when they were delivered, and {folder.absolute()} does not hold these "
        "files any more"
    )


def _digest(folder: Path, files: Iterable[str], go_on: Callable[[], bool] = lambda: True) -> str:
    """The hash of the names and the contents of files. Raises `Stopped` when it is to stop."""
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


def kept(journal: Path, item: Mapping[str, Any]) -> Path:
    """The file that an event names. Raises `FileLost`."""
    name = str(item.get("file"))
    found = _NAME.fullmatch(name)
    if found is None:  # of a line that somebody has written, it could be any file
        raise FileLost(f"{name[:80]!r} is no file of the journal's")
    path = (journal.parent / FILES_DIR / name).absolute()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileLost(f"its file {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != found[1]:
        raise FileLost(f"its file {path} has been changed")
    return path
