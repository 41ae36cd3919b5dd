"""`python -m tests.support.aim_reader REPOSITORY [reindex]`: prints the runs of an Aim repository as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import aim


def runs(path: str, *, reindex: bool) -> list[dict[str, Any]]:
    """The runs in the repository, as the fields of `tests.support.readers.AimRun`."""
    repo = aim.Repo.from_path(path)
    if reindex:
        repo._recreate_index()
    found = []
    for run in repo.iter_runs():
        points = []
        for metric in run.metrics():
            frame = metric.dataframe()
            # Several values of one step come in the order in which they were tracked.
            columns = [] if frame is None else [frame[name].tolist() for name in ("step", "time", "value")]
            rows = [[step, value] for step, _, value in sorted(zip(*columns, strict=True))]
            points.append([metric.name, metric.context.to_dict().get("subset"), rows])
        found.append(
            {
                "hash": run.hash,
                "name": run.name,
                "experiment": run.experiment,
                "tags": list(run.tags),
                "params": run[...],
                "points": points,
            }
        )
    return found


if __name__ == "__main__":
    print(json.dumps(runs(sys.argv[1], reindex=len(sys.argv) > 2), default=str))
