"""What `fmstune runs` prints as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fmstune.cli.app import app


def run_json(*arguments: str) -> Any:
    """The output of a command of `fmstune runs` that succeeds; its JSON must be strict."""
    done = CliRunner().invoke(app, ["runs", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
