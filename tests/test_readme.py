"""README and docs/ are true: commands parse, outputs are real, tables are complete, and links are not
broken."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fmstune.cli.app import app
from fmstune.config.load.load import load
from fmstune.trackers.registry import BUILT_IN
from tests.support import documents
from tests.support.documents import ROOT
from tests.support.end_to_end import aim_points
from tests.support.readme_options import matrix, table

README = documents.README.read_text()
ALL = documents.all_text()


def commands() -> list[str]:
    """Every `fmstune …` in the documents' code blocks, without comments and prompts."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", ALL, re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = [
        re.search(
            r"(?:^|&& |/|-m |=offline )"
            r"(fmstune (?:init|train|evaluate|trackers|data|merge|generate|config|runs|env).*)",
            line,
        )
        for line in lines
    ]
    return [match.group(1).partition("  #")[0].partition(" # ")[0].strip() for match in found if match]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 12


@pytest.mark.parametrize("command", commands())
def test_each_command_has_flags_and_arguments_that_exist(command: str) -> None:
    group = typer.main.get_command(app)
    _, *arguments = shlex.split(command)
    while hasattr(group, "commands"):
        group = group.commands[arguments.pop(0)]
    if "--resume" in arguments and arguments[-1] == "--resume":
        arguments.append("auto")
    group.make_context("fmstune", arguments)


def test_the_table_of_settings_matches_the_program() -> None:
    assert table() in ALL, "run `python -m tests.support.readme_options`"


def test_the_matrix_of_trackers_matches_their_classes() -> None:
    assert matrix() in README, "run `python -m tests.support.readme_options`"


def test_every_tracker_and_each_of_its_options_is_in_the_table_of_trackers() -> None:
    import dataclasses

    from fmstune.trackers.registry import tracker_class

    for name in BUILT_IN:
        (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        tracker = tracker_class(name)
        assert tracker.description in row
        for field in dataclasses.fields(tracker.Config) if tracker.Config else ():
            assert f"`{field.name}`" in row


def test_the_table_of_faults_matches_the_suite() -> None:
    from tests.support.scenarios import SCENARIOS

    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| \d+/\d+ \| (\d+)/(\d+) \|$", ALL, re.M)
    assert [row[:2] for row in rows] == [(who, what) for what, (who, _) in SCENARIOS.items()]
    assert all(delivered == total for _, _, delivered, total in rows)


def test_the_error_in_the_readme_is_the_one_that_is_printed(tmp_path: Path) -> None:
    command = ["-m", "fmstune", "train", "--set", "training.lerning_rate=3e-4"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() in README


def test_the_translated_configuration_in_the_docs_is_the_one_that_is_written(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n# qlora.yml\n(.*?)```\n\n```console\n(.*?)```", ALL, re.S)
    assert block
    theirs, shown = block.groups()
    (tmp_path / "qlora.yml").write_text(theirs)
    printed = ""
    for command in ("fmstune init --from qlora.yml", "tail -n 19 fmstune.toml"):
        name, *arguments = command.split()
        words = [sys.executable, "-m", "fmstune", *arguments] if name == "fmstune" else [name, *arguments]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        printed += f"$ {command}\n{done.stderr}{done.stdout}"
    assert printed == shown


def test_ci_runs_the_second_command() -> None:
    second = re.findall(r"```sh\n(.*?)\n```", README, re.S)[1]
    assert second in (ROOT / ".ci" / "run").read_text()


def test_the_example_configuration_is_complete_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(Path("examples/first.toml"))
    assert config.tracking.trackers == ("file",)
    assert config.training["learning_rate"] == 3e-3


def test_the_tracker_in_the_readme_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(from fmstune import Tracker\n.*?)```", README, re.S)
    names: dict[str, type] = {}
    exec(code, names)
    tracker = names["PrintTracker"]()
    tracker.track(1.5, "loss", "train", step=3)
    tracker.set_params({"a": 1}, "params")
    assert capsys.readouterr().out == "3 train loss 1.5\nparams {'a': 1}\n"


TRACKERS = (ROOT / "docs" / "trackers.md").read_text()
COMPLETE = [code for code in re.findall(r"```python\n(.*?)```", TRACKERS, re.S) if "Trainer(..." not in code]


@pytest.mark.parametrize("code", COMPLETE, ids=lambda code: code.strip().splitlines()[-1])
def test_each_example_about_trackers_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if "for step" in code:
        assert len(aim_points(tmp_path)) == 10


def test_the_readme_is_short_enough_to_read_in_minutes() -> None:
    shown = re.sub(r"```.*?```|^\|.*?$", "", README, flags=re.S | re.M)
    assert len(shown.split()) < 2500


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_each_link_to_a_file_or_a_section_works(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", document.read_text())
    for path, section in links:
        target = document.parent / path if path else document
        assert target.exists(), path
        if section:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}
            assert section[1:] in anchors, (path, section)
