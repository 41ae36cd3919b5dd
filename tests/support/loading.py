"""Short helpers that load a configuration, or return the message when it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError

DEMO_FILE = '[model]\npath = "demo"\n[data]\ntrain = "demo"\n'


def load_text(folder: Path, text: str, sets: Sequence[str] = (), **given: Any) -> RunConfig:
    """The configuration loaded from a folder whose fmstune.toml contains `text`."""
    (folder / "fmstune.toml").write_text(text, encoding="utf-8")
    return load(None, sets=sets, cwd=folder, **given)


def refusal(folder: Path, text: str | None = None, **given: Any) -> str:
    """The message with which a configuration is refused."""
    if text is not None:
        (folder / "fmstune.toml").write_text(text, encoding="utf-8")
    path = given.pop("config_path", None)
    with pytest.raises(ConfigError) as caught:
        load(path, cwd=folder, **given)
    assert caught.value.exit_code == 2
    return str(caught.value)
