"""A run in which every input holds a secret of its own, and everything that can print or store prints it.

`PLANTED` holds what must not appear in any output; its keys name the inputs. `LeakyTracker` is a tracker of
such a run; the user's own code is in `leaky_code`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Check, MetricPoint, RunStart, TrackerRun

FORM = "0k1Q2w3E4r5T6y7U8i9OaPsDfGhJzXc"
PLANTED = {
    "env": "plant env/passwörd",
    "env_lines": "plant-env-first-line\nplant-env-second-line",
    "env_pat": "plant-env-pat",
    "env_connection": "Server=h;User=u;Pw=plant-env-connection",
    "env_url": "plant-env-url",
    "netrc": "2f4d1a819b424bacb61d94122f4d1a819b424bac",
    "toml": "plant-toml-api-key",
    "toml_url": "plant-toml-url-p@ss",
    "toml_nested": "plant-toml-nested",
    "set": "plant-set-pass",
    "hub": "plant-hub-token",
    "param": "plant-param-flag",
    "param_note": f"hf_note{FORM}",
    "file_list": "plant-file-list",
    "file_number": "8765432187654321",
    "file_nested": "plant-file-nested",
    "metric": f"hf_metric{FORM}",
    "stage": f"hf_stage{FORM}",
    "namespace": f"hf_namespace{FORM}",
    "key": f"ghp_key{FORM}",
    "table": f"hf_table{FORM}",
    "column": f"hf_column{FORM}",
    "cell": f"sk-cell-{FORM}",
    "cell_by_column": "plant-cell",
    "value": "plant-value",
    "scored": f"hf_scored{FORM}",
    "error": f"xoxb-error-{FORM}",
}
# The value of a secretly named keyword in code is known only there. Secrets in the configuration and in the
# environment are known everywhere; `sync` and `check` know them without the params.
ALL = " | ".join(secret for name, secret in PLANTED.items() if name not in ("cell_by_column", "value"))
_OF_TRAINING = ("hub", "param", "file_list", "file_number", "file_nested", "cell_by_column", "value")
KNOWN = " | ".join(secret for name, secret in PLANTED.items() if name not in _OF_TRAINING)
ENVIRONMENT = {
    "PGPASSWORD": PLANTED["env"],
    "DEPLOY_CREDENTIALS": PLANTED["env_lines"],
    "SERVICE_PAT": PLANTED["env_pat"],
    "STORE_CONNECTION_STRING": PLANTED["env_connection"],
    "DATABASE_URL": f"postgres://me:{PLANTED['env_url']}@db/x",
}


def configuration(collected: Path) -> str:
    """The configuration of such a run, as TOML."""
    return f"""\
[training]
hub_token = "{PLANTED["hub"]}"
[trackers."tests.support.leaks:LeakyTracker"]
collected = "{collected}"
api_key = "{PLANTED["toml"]}"
uri = "https://bob:{PLANTED["toml_url"]}@localhost/x"
auth = {{ "refresh" = ["{PLANTED["toml_nested"]}"] }}
[run]
callbacks = ["tests.support.leaky_code:Tells"]
compute_metrics = "tests.support.leaky_code:score"
"""


PARAMS_FILE = {
    "api_keys": [PLANTED["file_list"]],
    "password": int(PLANTED["file_number"]),
    "credentials": {"value": PLANTED["file_nested"], "deep": [{"a": PLANTED["file_nested"]}]},
}


class LeakyTracker(Tracker):
    """Writes what it receives and the processes that it sees to files, prints secrets, and raises them."""

    registered_name = "rude"

    def open(self, start: RunStart) -> TrackerRun:
        said = ALL if start.trainer_pid else KNOWN
        print(said, self.config)
        os.write(2, f"{said}\n".encode())
        subprocess.run(
            [sys.executable, "-c", "import sys; print(sys.stdin.read())"], input=said.encode(), check=True
        )
        here = psutil.Process()
        seen = [here, *here.parents()[:1], *here.children(recursive=True)]
        self._write([process.cmdline() for process in seen])
        return TrackerRun("1", f"https://localhost/?token={PLANTED['error']}")

    def check(self, timeout: float) -> Check:
        if self.config.get("unwell"):
            return Check("unreachable", KNOWN, KNOWN, f"https://bob:{PLANTED['toml_url']}@h", PLANTED["toml"])
        return Check("ok", "well")

    def track_point(self, point: MetricPoint) -> None:
        self._write(point)
        if point.step == 3:
            raise RuntimeError(f"401 for {self.config}: {KNOWN}")

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        self._write([name, params])

    def _write(self, what: Any) -> None:
        with Path(self.config["collected"]).open("a") as file:
            file.write(f"{what}\n")
