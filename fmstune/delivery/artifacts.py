"""Files that a run delivers to its trackers: `fmstune.track_artifact`, and the tuned model when it ends.

They are copied first, by content, so that later changes do not affect what arrives; the trackers' processes
read the copies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.config.paths.folders import files_below
from fmstune.delivery.journal.files import store_all
from fmstune.delivery.recorder import Recorder, active_recorder
from fmstune.trackers.values.plain import text_of


def track_artifact(path: str | os.PathLike[str], name: str | None = None, *, type: str = "file") -> None:
    """Pass a file, or a folder with all its contents, to those trackers of the active run that store files.
    It is copied now, and may change afterwards. `name` defaults to its own name; `type` is its kind
    (`model`, `dataset`, …). The files are not searched for secrets. Does nothing when no run is active
    here.

    Raises `ValueError` if there is no file.
    """
    try:
        source = Path(os.fsdecode(path))
    except TypeError:
        raise ValueError(f"track_artifact needs a path, not {text_of(path)}") from None
    recorder = active_recorder()
    own = recorder.journal.path.parent.resolve() if isinstance(recorder, Recorder) else None
    called = source.resolve().name if name is None else name
    try:
        files = _files_of(source, own)
    except OSError as error:  # the training continues
        if isinstance(recorder, Recorder):
            lost = f"{error.filename}: {error.strerror}"
            recorder.record_item(
                "artifact", called, None, None, {"type": recorder.hidden(str(type)), "lost": lost}
            )
        return
    if not files:
        raise ValueError(f"track_artifact: there is no file {source}")
    if isinstance(recorder, Recorder):
        record(recorder, files, called, type, link=False)


def record(
    recorder: Recorder, files: Mapping[str, Path], name: str, type: str, *, link: bool
) -> dict[str, Any]:
    """Store files under the given names; return their entry for the journal. With `link`, files in the run's
    directory that nothing writes to are not copied."""
    came_from = {"from": ".", "names": sorted(files)} if link else {}
    said = {"type": recorder.hidden(str(type))}
    try:
        item = said | store_all(recorder.journal.path, files, link=link) | came_from
    except OSError as error:  # the run's own disk, or a file that is gone; the training continues
        item = said | {"lost": error.strerror or str(error)}
    recorder.record_item("artifact", name, None, None, item)
    return item


def _files_of(source: Path, own: Path | None) -> dict[str, Path]:
    """The files at a path, without the run's own journal and its folder."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        return {}
    every = files_below(source, lambda path: own is not None and path.is_dir() and path.resolve() == own)
    # No pipes, and no links to nothing.
    return {str(path.relative_to(source)): path for path in every if path.is_file()}
