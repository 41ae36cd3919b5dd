"""Runs are filtered and sorted by any field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fmstune.errors import ConfigError
from fmstune.report.fields import chosen, ordered, values_of
from fmstune.report.listing import ListedRun
from fmstune.report.summary import RunDetail, RunLine


def a_run(number: int, **fields: Any) -> ListedRun:
    detail = RunDetail(
        settings={"training": {"learning_rate": number / 10, "packing": number > 1}, "data": {"train": "x"}},
        params={"params": {"team": f"t{number}", "nested": {"deep": number}}, "git": {"commit": "abc"}},
        metrics={"eval/loss": float(number), "train/loss": 1.0, **fields.pop("metrics", {})},
    )
    line = RunLine(name=str(number), seconds=60.0 * number, loss=1.0)
    return ListedRun(f"runs/{number}", fields.pop("status", "finished"), line, detail)


RUNS = [a_run(1), a_run(2, status="killed"), a_run(3, metrics={"eval/loss": math.nan})]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("status=killed", "2"),
        ("status!=killed", "13"),
        ("training.learning_rate>=0.2", "23"),
        ("learning_rate<0.2", "1"),
        ("lr=2e-1", "2"),
        ("eval/loss<5", "12"),
        ("eval/loss=nan", "3"),
        ("team=t1", "1"),
        ("params.team=t[12]", "12"),
        ("team~T", "123"),
        ("nested.deep>1", "23"),
        ("git.commit=abc", "123"),
        ("training.packing=true", "23"),
        ("duration>1m30s", "23"),
        ("duration<=120", "12"),
        ("error=", "123"),
        ("error!=", ""),
        ("train=x", "123"),
        ("team>t1", "23"),
        ("team>1", ""),
    ],
)  # fmt: skip
def test_a_condition_can_refer_to_any_setting_param_or_metric(condition: str, names: str) -> None:
    assert "".join(run.line.name for run in chosen(RUNS, condition)) == names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tem=x", "Did you mean team"),
        ("loss", "is not a condition; use one such as"),
        ("trainng.learning_rate>1", "Did you mean training.learning_rate"),
    ],
)
def test_a_condition_that_no_run_can_meet_is_an_error(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(RUNS, wrong)


def test_runs_are_sorted_by_any_field_and_those_without_it_come_last() -> None:
    assert [run.line.name for run in ordered(RUNS, "eval/loss", reverse=True)] == ["2", "1", "3"]
    assert [run.line.name for run in ordered(RUNS, "team", reverse=True)] == ["3", "2", "1"]
    assert values_of(RUNS, "nested.deep") == [1, 2, 3]
