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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmstune.layout import FILES_DIR

_NAME = re.compile(r"([0-9a-f]{64})(\.[a-z]{1,5})")


class FileLost(Exception):
    """The file of an event is not there, or is another one by now."""


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
    size = 0
    try:
        temporary.mkdir(parents=True)
        for name, source in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(source, path, link=link)
            size += path.stat().st_size
        digest = _digest(temporary, sorted(files))
        if not (store / digest).is_dir():
            temporary.rename(store / digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"folder": digest, "files": len(files), "size": size}


def all_kept(journal: Path, item: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]]:
    """The folder that an event names, and the files in it. Raises `FileLost`."""
    name = str(item.get("folder"))
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise FileLost(f"{name[:80]!r} is no folder of the journal's")
    folder = (journal.parent / FILES_DIR / name).absolute()
    try:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        found = _digest(folder, files)
    except OSError as error:
        raise FileLost(f"its folder {folder} cannot be read: {error.strerror}") from None
    if found != name:
        raise FileLost(f"its folder {folder} has been changed, or is not there")
    return folder, tuple(files)


def _put(source: Path, path: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), path)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(source, path)


def _digest(folder: Path, files: Iterable[str]) -> str:
    """The hash of the names and the contents of files."""
    whole = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
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
