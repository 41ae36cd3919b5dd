"""The requirements of the package are true: the pinned versions fit, the lowest are not below what others
need. An unsupported version is reported before anything is imported."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fmstune.errors import ConfigError
from fmstune.requirements import _normal, parsed, require_supported, requirements
from tests.support.commands import fmstune
from tests.support.documents import README, ROOT

PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"]]
EVERY = [
    each
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for each in map(Requirement, lines)
    if each.name != "fmstune"
]
PINNED = {
    _normal(name): version
    for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text())
}
LOWEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")
CAPPED = ("transformers", "trl")
"""Their ranges are a single minor version, so that what they require is required by every fmstune."""


def lowest(specifier: SpecifierSet) -> Version:
    return max((Version(each.version) for each in specifier if each.operator == ">="), default=Version("0"))


def test_the_pinned_versions_are_in_the_declared_ranges() -> None:
    wrong = [
        f"{each} against {PINNED[_normal(each.name)]}"
        for each in EVERY
        if _normal(each.name) in PINNED and not each.specifier.contains(PINNED[_normal(each.name)])
    ]
    assert not wrong
    assert {_normal(each.name) for each in DIRECT} <= set(PINNED)


def test_each_required_package_runs_on_the_lowest_python() -> None:
    wrong = {}
    for each in DIRECT:
        needs = importlib.metadata.metadata(each.name)["Requires-Python"]
        if needs and not SpecifierSet(needs).contains(LOWEST_PYTHON):
            wrong[each.name] = needs
    assert not wrong


def test_no_lowest_version_is_below_what_transformers_and_trl_require() -> None:
    ours = {_normal(each.name): lowest(each.specifier) for each in DIRECT}
    below = [
        f"{each.name}>={ours[_normal(each.name)]}, but {name} needs {each}"
        for name in CAPPED
        for each in map(Requirement, importlib.metadata.requires(name) or [])
        if each.marker is None and ours.get(_normal(each.name), Version("9999")) < lowest(each.specifier)
    ]
    assert not below


def test_every_statement_about_python_agrees() -> None:
    assert (
        f"Python {LOWEST_PYTHON} to 3.12 (3.13 works too, but Aim has no wheels for it yet)"
        in README.read_text()
    )
    assert {f"{each.marker}" for each in DIRECT if each.name == "aim"} == {'python_version < "3.13"'}
    settings = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["ruff"]["target-version"] == f"py{LOWEST_PYTHON.replace('.', '')}"
    assert settings["mypy"]["python_version"] == LOWEST_PYTHON
    for file in ("examples/tracker-package/pyproject.toml", "fmstune/testing/templates/pyproject.toml.txt"):
        assert f'requires-python = ">={LOWEST_PYTHON}"' in (ROOT / file).read_text(), file


@pytest.mark.parametrize("required", EVERY, ids=str)
def test_a_range_is_read_as_pip_reads_it(required: Requirement) -> None:
    bounds = [each.version for each in required.specifier]
    versions = [*bounds, *(f"{bound}.1" for bound in bounds), "0.0.1", "9999", f"{bounds[0]}+cpu"]
    found = parsed([str(required)])[_normal(required.name)]
    assert {version: found.fits(version) for version in versions} == {
        version: required.specifier.contains(version, prereleases=True) for version in versions
    }


def test_the_first_pre_release_after_the_range_is_outside() -> None:
    (transformers,) = parsed(["transformers<5.24,>=5.23"]).values()
    assert not transformers.fits("5.24.0.dev0")
    assert transformers.fits("5.23.1")
    assert requirements()["transformers"] == transformers


def in_version(folder: Path, **versions: str) -> str:
    """A `PYTHONPATH` on which packages have these versions, and torch cannot be imported."""
    for name, version in versions.items():
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    return f"{folder}:{ROOT}"


@pytest.mark.parametrize(
    "command",
    [
        *("train", "data", "generate runs/a --prompt x", "merge runs/a b", "init --yes"),
        "config explain training.seed",
    ],
)
def test_an_unsupported_version_is_one_sentence_with_the_remedy(command: str, tmp_path: Path) -> None:
    path = in_version(tmp_path, transformers="5.24.0", trl="1.17.0")
    done = fmstune(*command.split(), cwd=tmp_path, PYTHONPATH=path)
    assert done.stderr == (
        "error: transformers 5.24.0 is installed, trl 1.17.0 is installed, but fmstune needs "
        "transformers>=5.23,<5.24 and trl>=1.16,<1.17: run `pip install 'transformers>=5.23,<5.24' "
        "'trl>=1.16,<1.17'`.\n"
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fmstune.requirements.requirements", lambda: parsed(["no-such-package<2,>=1"]))
    require_supported()
    with pytest.raises(ConfigError) as raised:
        require_supported(complete=True)
    assert str(raised.value) == (
        "no-such-package is not installed, but fmstune needs no-such-package>=1,<2: run `pip install "
        "'no-such-package>=1,<2'`."
    )


def test_a_version_that_a_tracker_does_not_support_is_reported(tmp_path: Path) -> None:
    path = in_version(tmp_path, trackio="0.44.0")
    listed = fmstune("trackers", "list", "--json", cwd=tmp_path, light=True, PYTHONPATH=path)
    entry = next(entry for entry in json.loads(listed.stdout) if entry["name"] == "trackio")
    assert (entry["state"], entry["version"]) == ("unsupported", "0.44.0")
    assert entry["remedy"] == "pip install 'trackio>=0.43,<0.44'"
    done = fmstune("trackers", "check", "trackio", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 3
    assert "unsupported: trackio 0.44.0 is installed, but fmstune needs trackio>=0.43,<0.44" in done.stdout
    assert "run `pip install 'trackio>=0.43,<0.44'`" in done.stdout


def test_the_commands_for_runs_do_not_need_the_versions_of_training(tmp_path: Path) -> None:
    path = in_version(tmp_path, transformers="5.24.0")
    done = fmstune("runs", "list", cwd=tmp_path, light=True, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
