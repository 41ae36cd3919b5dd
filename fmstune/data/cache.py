"""A cache of prepared data: on this machine, nothing is tokenised twice.

The key of an entry covers everything that it depends on: the contents of the files, the settings of the
data, the tokenizer with its chat template, the lengths, the seed, and the version of this code. When
several processes need the same entry, like the ranks of a run, the first prepares it and the others wait
for its lock: unlike a torch barrier, that has no time limit and ends when the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from fmstune._version import __version__
from fmstune.config.methods.known import DEFAULT
from fmstune.config.schema.data import DataConfig
from fmstune.data.files.source import Origin
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.unused import NotUsed
from fmstune.data.summary import DataSummary, SourceSummary
from fmstune.system.files import cache_folder

logger = logging.getLogger("fmstune")

_PREPARATION = 13  # increment when the same rows are prepared differently
_WORTH_SECONDS = 3.0
"""Data that are prepared faster are not cached, unless several processes need them."""
_DAYS = 30
"""Entries that have not been used for this long are removed."""
_COMMIT = re.compile("[0-9a-f]{40}")
_PLACES = "places.json"
_SUMMARY = "summary.json"  # written last: an entry without it is not complete


def prepare_once(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    seed: int,
    skipped: Path | None = None,
    *,
    method: str = DEFAULT,
    keep_end: bool = False,
    unweighted: str = "",
    divided_by: tuple[str, str] = ("", ""),
    as_given: bool = False,
    worth: float = _WORTH_SECONDS,
) -> PreparedData:
    """Like `prepare`, reusing what an earlier run or another process has prepared, if it is the same.

    Not cached are streams, hub data without a known commit, rows created by a handler, and data with bad
    rows, which are reported each time.
    """
    files = _files(config) if config.cache and not config.streaming and config.handler is None else None

    def made_now() -> PreparedData:
        return prepare(
            config,
            tokenizer,
            max_length,
            seed,
            skipped,
            method=method,
            keep_end=keep_end,
            unweighted=unweighted,
            divided_by=divided_by,
            as_given=as_given,
        )

    if files is None:
        return made_now()
    how: dict[str, Any] = {"max_length": max_length, "seed": seed, "method": method, "keep_end": keep_end}
    how |= {"unweighted": unweighted, "divided_by": divided_by, "as_given": as_given}
    entry = cache_directory() / _key(config, tokenizer, how, files)
    with _locked(entry):
        found = _load(entry)
        if found is not None:
            return found
        began = time.monotonic()
        made = made_now()
        shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if not made.bad.count and (shared or time.monotonic() - began >= worth):
            _store(made, entry)
        return made


def cache_directory() -> Path:
    """Where entries are stored: `FMSTUNE_CACHE`, else `fmstune/prepared` in the user's cache directory."""
    return cache_folder() / "prepared"


def _files(config: DataConfig) -> dict[str, str] | None:
    """The SHA-256 of the files of each source, or its commit on the hub; `None` when one has neither."""
    found: dict[str, str] = {}
    for split, sources in (("train", config.train), ("eval", config.eval)):
        for number, source in enumerate(sources):
            origin = Origin.of(source, "train" if split == "train" else "eval")
            commit = (
                source.revision if not origin.files and _COMMIT.fullmatch(source.revision or "") else None
            )
            content = origin.sha256() or commit
            if content is None:
                return None
            found[f"{split}-{number}"] = "\n".join([content, *origin.beside])
    return found


def _key(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    how: dict[str, Any],
    files: dict[str, str],
) -> str:
    depends_on = {
        "version": [__version__, _PREPARATION],
        "config": asdict(config),
        "files": files,
        "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
        "how": how,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Give only one process at a time access to an entry. Without a writable cache, nothing is locked."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(entry.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(lock)
        yield
    finally:
        os.close(lock)


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if os.environ.get("WORLD_SIZE", "1") == "1":  # else it is another rank
            logger.warning(
                "another process is preparing the same data, and this one waits for it; if that is stopped "
                "(Ctrl-Z), end it, or prepare the data here: --set data.cache=false"
            )
        fcntl.flock(file, fcntl.LOCK_EX)


def _load(entry: Path) -> PreparedData | None:
    """The data of an entry; `None` if it is missing or damaged."""
    if not entry.exists():
        return None
    try:
        raw = json.loads((entry / _SUMMARY).read_text(encoding="utf-8"))
        sources = tuple(SourceSummary(**each) for each in raw.pop("sources"))
        unused, of_eval = (
            tuple(NotUsed(**each) for each in raw.pop(name)) for name in ("unused", "eval_unused")
        )
        raw["eval_sets"] = tuple((name, count) for name, count in raw["eval_sets"])
        summary = DataSummary(**raw, sources=sources, unused=unused, eval_unused=of_eval)
        summary = replace(summary, prepared_before=True)
        places = json.loads((entry / _PLACES).read_text(encoding="utf-8"))
        train = datasets.load_from_disk(str(entry / "train"))
        evaluation = datasets.load_from_disk(str(entry / "eval")) if summary.eval_rows else None
        dict(train[-1]), evaluation and dict(evaluation[-1])  # the last row is readable
        with contextlib.suppress(OSError):  # on a file system without times
            os.utime(entry)
    except Exception:  # damaged in whatever way: it is prepared again
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return PreparedData(train, evaluation, summary, BadRows(), places)


def _store(made: PreparedData, entry: Path) -> None:
    """Store what was prepared. A full or read-only cache is not an error."""
    scratch = entry.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        _remove_old(entry.parent)
        sets: list[tuple[str, Any]] = [("train", made.train), ("eval", made.eval)]
        try:
            for name, rows in sets:
                if rows is not None:
                    rows.save_to_disk(str(scratch / name))
            (scratch / _PLACES).write_text(json.dumps(list(made.places)), encoding="utf-8")
            (scratch / _SUMMARY).write_text(json.dumps(asdict(made.summary)), encoding="utf-8")
            scratch.replace(entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_old(folder: Path) -> None:
    oldest = time.time() - _DAYS * 24 * 3600
    for entry in folder.iterdir():
        if entry.stat().st_mtime >= oldest:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
