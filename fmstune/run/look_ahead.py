"""What can be seen to be wrong before torch is imported, and before a run's directory is made."""

from __future__ import annotations

from pathlib import Path

from fmstune.config.paths.models import holds_adapter
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.tables import RunConfig
from fmstune.data.files.source import Split
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.models.locate import require_place

_LARGEST_FILE = 1_000_000
"""Of files whose rows do not come one by one. These many bytes take some hundredths of a second."""
_ROW_BY_ROW = (".jsonl", ".csv", ".tsv", ".txt")


def look_ahead(config: RunConfig) -> None:
    """Look for a local model, and at the first row of each local source of data, as far as that takes no time
    and runs no code of the user's. Raises `ModelError` or `DataError`."""
    folder = Path(config.model.path)
    if not folder.is_dir() or not holds_adapter(folder):
        require_place(config.model)
    if config.data.skip_bad_rows or config.data.handler is not None:
        return
    by_split: dict[Split, tuple[DataSource, ...]] = {"train": config.data.train, "eval": config.data.eval}
    for split, sources in by_split.items():
        for source in sources:
            # Whether the model can be given conversations is not known yet.
            reader = Reader(source, split, config.data, BadRows(), most=1, method=config.run.method)
            if all(_is_cheap(file) for file in reader.origin.files[:1]) and reader.origin.files:
                next(iter(reader), None)


def _is_cheap(file: Path) -> bool:
    return file.suffix in _ROW_BY_ROW or (file.is_file() and file.stat().st_size <= _LARGEST_FILE)
