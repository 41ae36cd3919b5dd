"""`fmstune trackers new` writes a package that passes the conformance kit, and overwrites nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from fmstune.testing.new_tracker import write_package
from tests.support.commands import fmstune

EXAMPLE = Path(__file__).parents[2] / "examples" / "tracker-package"


def test_the_example_package_is_what_it_writes(tmp_path: Path) -> None:
    done = fmstune("trackers", "new", "sqlite", "mine", cwd=tmp_path, light=True)
    assert done.returncode == 0, done.stderr
    assert "next: cd mine && python -m pytest -s" in done.stderr
    files = [tmp_path / line for line in done.stdout.splitlines()]
    assert {file.name for file in files} == {path.name for path in EXAMPLE.iterdir() if path.is_file()}
    for file in files:
        assert file.read_text() == (EXAMPLE / file.name).read_text()


def test_a_new_tracker_passes_its_own_test_unchanged(tmp_path: Path) -> None:
    write_package("my-store_2", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # their imports take longer than the tests
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout
    assert "Warning" not in done.stderr
    project = tomli.loads((tmp_path / "pyproject.toml").read_text())["project"]
    where = project["entry-points"]["fmstune.trackers"]["my-store_2"]
    module, _, name = where.partition(":")
    tree = ast.parse((tmp_path / f"{module}.py").read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My", "'My' is not a valid name for a tracker"),
        ("", "'' is not a valid name for a tracker"),
        ("a/b", "'a/b' is not a valid name for a tracker"),
        ("2nd", "'2nd' is not a valid name for a tracker"),
        ("aim", "aim is one of fmstune's own trackers; choose another name."),
        ("mine", "fmstune-mine/pyproject.toml already exists, and is not overwritten"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(name: str, said: str, tmp_path: Path) -> None:
    there = tmp_path / "fmstune-mine" / "pyproject.toml"
    there.parent.mkdir()
    there.write_text("mine")
    done = fmstune("trackers", "new", name, cwd=tmp_path, light=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [there]
    assert there.read_text() == "mine"
