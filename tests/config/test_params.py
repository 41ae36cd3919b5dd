"""The user's own parameters: `[params]`, `--params-file`, `--param`; later ones win, tables are merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.load.load import load
from fmstune.config.load.values import parse_params
from tests.support.loading import DEMO_FILE, load_text, refusal


@pytest.mark.parametrize("wrong", ["a", "=1", ".a=1", "a..b=1", " =1"])
def test_a_param_without_name_or_value_is_refused(tmp_path: Path, wrong: str) -> None:
    told = refusal(tmp_path, params=[wrong])
    assert told == f"--param {wrong!r} is not of the form NAME=VALUE, such as team=nlp."


@pytest.mark.parametrize("name", ["p.json", "p.toml"])
def test_the_file_overrides_the_table_and_param_overrides_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"a": {"x": 2, "y": 2}}' if name == "p.json" else "[a]\nx = 2\ny = 2\n")
    text = DEMO_FILE + "[params.a]\nx = 1\ny = 1\nz = 1\n"
    config = load_text(tmp_path, text, params=["a.x=3"], params_file=path)
    assert config.params == {"a": {"x": 3, "y": 2, "z": 1}}


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(scalars | st.text(st.characters(exclude_categories=["Cs"])))
def test_every_json_scalar_round_trips(value: object) -> None:
    assert parse_params([f"k={json.dumps(value)}"])["k"] == value


def test_params_are_read_with_the_demo(tmp_path: Path) -> None:
    assert load(None, params=["team=nlp"], cwd=tmp_path).params == {"team": "nlp"}
