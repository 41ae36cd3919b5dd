"""Check the model and data before torch is imported and the run's directory is created."""

from __future__ import annotations

from pathlib import Path

from fmstune.config.paths.models import holds_adapter
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.tables import RunConfig
from fmstune.data.files.source import Split
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.models.locate import require_complete, require_local_model

_LARGEST_FILE = 1_000_000
"""For files that cannot be read row by row. This size takes some hundredths of a second."""
_ROW_BY_ROW = (".jsonl", ".csv", ".tsv", ".txt")


def look_ahead(config: RunConfig) -> None:
    """Check that a local model exists, and read the first row of each local data source, if that is fast and
    runs no user code. Raises `ModelError` or `DataError`."""
    folder = Path(config.model.path)
    if folder.is_dir() and holds_adapter(folder):
        require_complete(folder)
    else:
        require_local_model(config.model)
    if config.data.skip_bad_rows or config.data.handler is not None:
        return
    by_split: dict[Split, tuple[DataSource, ...]] = {"train": config.data.train, "eval": config.data.eval}
    for split, sources in by_split.items():
        for source in sources:
            # It is not known yet whether the model takes conversations.
            reader = Reader(source, split, config.data, BadRows(), most=1, method=config.run.method)
            if all(_is_cheap(file) for file in reader.origin.files[:1]) and reader.origin.files:
                next(iter(reader), None)


def _is_cheap(file: Path) -> bool:
    return file.suffix in _ROW_BY_ROW or (file.is_file() and file.stat().st_size <= _LARGEST_FILE)
