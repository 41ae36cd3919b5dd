"""Files that a run hands over to its trackers: `fmstune.track_artifact`, and the tuned model at its end.

They are put aside first, by content, so that nothing that happens to them later changes what arrives; the
trackers' processes take them from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.files import keep_all
from fmstune.delivery.recorder import Recorder, here


def track_artifact(path: str | os.PathLike[str], name: str | None = None, *, type: str = "file") -> None:
    """Hand a file, or a folder with all that is in it, to those trackers of the active run that hold files.
    It is copied now, and may change afterwards. `name` is by default its own, `type` says what it is
    (`model`, `dataset`, …). Secrets in the files are not looked for. Does nothing when no run is active here.

    Raises `ValueError` where there is no file.
    """
    try:
        source = Path(os.fsdecode(path))
    except TypeError:
        raise ValueError(f"track_artifact needs a path, not {path!r}") from None
    recorder = here()
    own = recorder.journal.path.parent.resolve() if isinstance(recorder, Recorder) else None
    files = _files_of(source, own)
    if not files:
        raise ValueError(f"track_artifact: there is no file {source}")
    if isinstance(recorder, Recorder):
        record(recorder, files, source.resolve().name if name is None else name, type, link=False)


def record(
    recorder: Recorder, files: Mapping[str, Path], name: str, type: str, *, link: bool
) -> dict[str, Any]:
    """Record files by the names that they are to have; what the journal says of them. With `link`, files in
    the run's directory that nobody writes into are not copied."""
    came_from = {"from": ".", "names": sorted(files)} if link else {}
    said = {"type": recorder.hidden(str(type))}
    try:
        item = said | keep_all(recorder.journal.path, files, link=link) | came_from
    except OSError as error:  # of the run's own disk, or of a file that is gone; the training continues
        item = said | {"lost": error.strerror or str(error)}
    recorder.record_item("artifact", name, None, None, item)
    return item


def _files_of(source: Path, own: Path | None) -> dict[str, Path]:
    """The files at a path, without the run's own journal and what is beside it."""
    if source.is_file():
        return {source.name: source}
    found = {}
    for folder, folders, names in os.walk(source):
        here = Path(folder)
        if own is not None:
            folders[:] = [each for each in folders if (here / each).resolve() != own]
        for name in names:
            if (here / name).is_file():  # no pipe, no link to nowhere
                found[str((here / name).relative_to(source))] = here / name
    return found
