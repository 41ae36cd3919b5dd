"""`fmstune init --from` in this process."""

from __future__ import annotations

from typing import Any

import pytest

from fmstune.cli.main import main
from fmstune.config.schema.tables import RunConfig


def init(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["init", *arguments])
    return int(end.value.code or 0)


def value_of(config: RunConfig, key: str) -> Any:
    table, _, name = key.partition(".")
    found: Any = getattr(config, table)
    found = found.get(name) if isinstance(found, dict) else getattr(found, name)
    if key in ("data.train", "data.eval"):
        return [(source.path, source.split, source.columns) for source in found]
    return found
