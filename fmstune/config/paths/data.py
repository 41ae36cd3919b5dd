"""Find the files of a data source: one file, those in a directory, or those that match a glob.

Separate from reading them, so that a wrong name is reported before torch is imported.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fmstune.access import denied, reason
from fmstune.config.check.suggest import similar_file
from fmstune.config.paths.folders import files_below
from fmstune.config.paths.splits import Slice, split_called, split_of
from fmstune.text import shown, shown_path

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""The suffixes of supported files."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes after those of `KINDS`: the files are decompressed while being read."""

_ABOUT = ("readme", "license", "licence", "citation", "changelog")
"""Prefixes of the names of files that describe a directory's data."""


class NoFiles(Exception):
    """A name looks like files, but none of them can be read."""


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of a data source. Other data files in the directory are listed in `unreadable`, if their
    format is not supported, or in `of_no_split`, if only they are not named after a split; `other_splits` are
    the splits of further files that are not read."""

    files: tuple[Path, ...]
    unreadable: tuple[Path, ...] = ()
    of_no_split: tuple[Path, ...] = ()
    other_splits: tuple[str, ...] = ()


def kind_of(path: Path) -> str:
    """The suffix that determines how a file is read: `.jsonl` for `a.JSONL.gz`."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def exists(path: Path) -> bool:
    """Whether the file or directory exists."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, with a NUL, or in an unreadable folder
        return False


def is_local(name: str) -> bool:
    """Whether a name can only be a path: `./x`, `a/b/c`. Only the hub knows whether it has `owner/name`: a
    local folder with the owner's name proves nothing."""
    first, slash, rest = name.partition("/")
    return bool(slash) and (first in ("", ".", "..") or first.startswith("~") or "/" in rest)


def is_saved(path: Path) -> bool:
    """Whether a directory was written by `save_to_disk` of a Hugging Face data set."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def local_path(name: str, base: Path | None = None) -> Path:
    """The path of a name, relative to the directory `base`; `~` is the home directory."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # an unknown user
        path = Path(name)
    return (base or Path()) / path


def find_files(name: str, split: str, *, chosen: bool = False, base: Path | None = None) -> FoundFiles | None:
    """The files of a data source, sorted by name; `None` for a name on the hub.

    In a directory whose files are named after splits (`train.jsonl`, `test/a.csv`), only those of `split` are
    used; `chosen` means that the user chose the split, of which a slice may follow (see `Slice`). Raises
    `NoFiles`.
    """
    path = local_path(name, base)
    if exists(path):
        wanted = _without_slice(split)
        return _in_directory(path, name, wanted, chosen) if path.is_dir() else FoundFiles((_readable(path),))
    if _has_wildcard(name):
        _without_slice(split)
        return _fitting(name, base)
    _require_readable(path)
    if kind_of(Path(name)) in KINDS or name.lower().endswith(COMPRESSED) or is_local(name):
        raise NoFiles(f"there is no such file.{similar_file(Path(name), base)}")
    return None


def _without_slice(split: str) -> str:
    try:
        return Slice.of(split)[0]
    except ValueError as error:
        raise NoFiles(f"split = {shown(split)}: {error}.") from None


def _fitting(name: str, base: Path | None) -> FoundFiles:
    try:
        found = sorted(map(Path, glob.glob(str(local_path(name, base)), recursive=True)))  # noqa: PTH207
    except (OSError, ValueError, RecursionError):
        found = []
    _require_readable(local_path(name, base))
    files = [entry for entry in found if entry.is_file()]
    _require_targets(found)
    if not files:
        raise NoFiles("no file matches it.")
    # `**` also matches the folders on the way to its files.
    folders = () if "**" in name else tuple(entry for entry in found if entry.is_dir())
    return FoundFiles(tuple(_readable(entry) for entry in files), unreadable=folders)


def _has_wildcard(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _require_readable(path: Path) -> None:
    """Raise `NoFiles` if a folder on the way to a path or pattern cannot be entered or listed: what it
    contains seems not to exist, and patterns leave it out."""
    for below in (*reversed(path.parents), path):
        folder, needed = below.parent, os.X_OK | (os.R_OK if _has_wildcard(below.name) else 0)
        matching = glob.glob(str(folder), recursive=True) if _has_wildcard(str(folder)) else [str(folder)]  # noqa: PTH207
        for each in matching:
            if os.path.isdir(each) and not os.access(each, needed):  # noqa: PTH112
                raise NoFiles(f"the directory {shown_path(Path(each))} cannot be read: {denied(Path(each))}.")


def _require_targets(found: Iterable[Path]) -> None:
    """Raise `NoFiles` for a data file that is a link to nothing."""
    for each in found:
        if kind_of(each) in KINDS and each.is_symlink() and not exists(each):
            raise NoFiles(f"{shown_path(each)} is a link to {each.readlink()}, which does not exist.")


def _readable(path: Path) -> Path:
    if kind_of(path) not in KINDS:
        raise NoFiles(
            f"{path.name} has an unsupported format ({kind_of(path) or 'no suffix'}); the supported ones are "
            f"{', '.join(KINDS)}."
        )
    return path


def _in_directory(path: Path, name: str, split: str, chosen: bool) -> FoundFiles:
    _require_readable(path / "*")
    if is_saved(path):
        return FoundFiles((path,))
    try:
        found = list(files_below(path, lambda each: each.name.startswith(".")))
    except OSError as error:
        where = Path(error.filename or path)
        raise NoFiles(f"the directory {shown_path(where)} cannot be read: {reason(error, where)}.") from None
    _require_targets(found)
    inside = [each for each in found if each.is_file()]
    files = [each for each in inside if kind_of(each) in KINDS]
    others = tuple(each for each in inside if each not in files and not _is_about(each))
    if not files:
        raise NoFiles(f"the directory has no file in a supported format ({', '.join(KINDS)}).")
    by_split: dict[str | None, list[Path]] = {}
    for each in files:
        by_split.setdefault(split_of(each.relative_to(path)), []).append(each)
    of_no_split: list[Path] = []
    other_splits: list[str] = []
    if by_split.keys() != {None} or chosen:
        wanted = split_called(split)
        if wanted not in by_split:
            there = ", ".join(sorted(key for key in by_split if key)) or "no splits"
            raise NoFiles(f"its files are named after {there}; none is of the split {split}.")
        files = by_split[wanted]
        other_splits = sorted(key for key in by_split if key not in (None, wanted))
        of_no_split = [] if chosen else by_split.get(None, [])
    kinds = sorted({kind_of(each) for each in files})
    if len(kinds) > 1:
        raise NoFiles(
            f"the directory has {' and '.join(kinds)} files; choose one kind, as in {name.rstrip('/')}"
            f"/*{kinds[0]}."
        )
    return FoundFiles(tuple(files), others, tuple(of_no_split), tuple(other_splits))


def _is_about(path: Path) -> bool:
    """Whether a file describes data, or is left over from a program (Spark's `_SUCCESS`)."""
    return path.name.lower().startswith((*_ABOUT, "_"))
