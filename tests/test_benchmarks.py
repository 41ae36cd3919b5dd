"""The benchmarks run, and write their table into README. How fast something is, no test asserts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as all_of_them
from tests.benchmarks import scanner_cost
from tests.benchmarks.results import VARIABLE, as_table, multiple, record, recorded
from tests.support import documents


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which benchmarks append the rows of the table."""
    path = tmp_path / "results.jsonl"
    path.touch()
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_each_benchmark_is_in_the_table() -> None:
    there = {path.stem for path in Path(all_of_them.__file__).parent.glob("[a-z]*.py")} - {"results"}
    assert {name for name, *_ in all_of_them.PARTS} == there


@pytest.mark.parametrize("arguments", [("delivery", "20", "file"), ("journal_reads", "50", "1")])
def test_a_benchmark_records_a_row(
    results: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    name, *_ = arguments
    monkeypatch.setattr(sys, "argv", list(arguments))
    importlib.import_module(f"tests.benchmarks.{name}").main()
    [row] = recorded(results)
    assert "×" in row.result


def test_the_cost_of_the_scanner_is_measured(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ROUNDS": 2, "STEPS": 3, "SAMPLES": 2}.items():
        monkeypatch.setattr(scanner_cost, name, value)
    scanner_cost.main()
    assert len(recorded(results)) == 1
    assert "us of the training thread" in capsys.readouterr().out


def test_the_output_of_a_failed_benchmark_is_its_error(results: Path) -> None:
    assert all_of_them.measured(("delivery", "many"), results).startswith("failed: ValueError")


def test_a_table_names_a_repeated_peer_once(results: Path) -> None:
    record("a", "the peer", "1 ×")
    record("b", "the peer", "2 ×", "peer --fast")
    found = recorded(results)
    assert as_table(found).splitlines()[2:] == ["| a | the peer | 1 × |", "| b | the same | 2 × |"]
    assert all_of_them.commands(found) == ["peer --fast"]
    assert json.loads(results.read_text().splitlines()[0])["what"] == "a"


def test_a_ratio_has_two_or_three_digits() -> None:
    assert [multiple(ratio) for ratio in (0.7512, 2.994, 3.0, 9.9, 9.96, 77.2)] == [
        "0.75 ×", "2.99 ×", "3.0 ×", "9.9 ×", "10 ×", "77 ×"
    ]  # fmt: skip


def test_readme_and_the_page_on_speed_have_the_places_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [tmp_path / path.name for path in documents.DOCUMENTS]
    for copy, path in zip(copies, documents.DOCUMENTS, strict=True):
        copy.write_text(path.read_text())
    monkeypatch.setattr(documents, "DOCUMENTS", tuple(copies))
    documents.put("speed", "a table\n")
    documents.put("benchmarks", "an output\n")
    assert "<!-- speed -->\na table\n<!-- end of speed -->" in (tmp_path / "README.md").read_text()
    assert "<!-- benchmarks -->\nan output\n<!--" in (tmp_path / "speed.md").read_text()
