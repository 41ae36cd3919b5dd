"""`compute_metrics` receives each eval row exactly once, with only the row's own values, whatever the method,
the batch size, the size of the last batch, and the number of processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmstune.config.methods.known import METHODS
from tests.support.evaluated import ROWS, SIZE, Found, built, given, write_rows
from tests.support.ranks import run_ranks

TWO = """\
import json, os
from fmstune.config.methods.known import METHODS
from tests.support.evaluated import ROWS, SIZE, built, given

found = {
    f"{method} {rows}": given(run, rows, SIZE)
    for method in METHODS
    for run in [built(method)]
    for rows in range(1, ROWS + 1)
}
if os.environ["RANK"] == "0":
    print(json.dumps(found, default=float))
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    write_rows(folder)
    (folder / "two.py").write_text(TWO)
    done = run_ranks(2, cwd=folder, module=str(folder / "two.py"))
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr + done[1].stderr
    return json.loads(done[0].stdout.splitlines()[-1])


def same(found: Found, expected: Found) -> bool:
    return len(found) == len(expected) and all(
        len(one) == len(other) and np.allclose(one, other, rtol=1e-3, atol=1e-3)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_compute_metrics_receives_each_row_once(
    method: str, of_two: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    run = built(method)
    alone, _ = given(run, ROWS, 1)
    each = len(alone) // ROWS
    assert each == (2 if method in ("dpo", "orpo") else 1)
    for rows in range(1, ROWS + 1):
        found, figures = given(run, rows, 2 * SIZE)
        assert same(found, alone[: each * rows]), (rows, "one process")
        together, of_both = of_two[f"{method} {rows}"]
        assert same(together, alone[: each * rows]), (rows, "two processes")
        assert of_both["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-4), rows
