"""Isolates W&B tests: their own home and current folder, and no settings but theirs."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fmstune.trackers.records import MetricPoint, RunStart

SECRET = "hunter2-planted-secret"
FAKE_KEY = "0123456789" * 5


def isolate_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder the home directory and the current folder of this process."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower() in ("netrc", "http_proxy", "https_proxy"):
            monkeypatch.delenv(name)
    (folder / "home").mkdir()
    (folder / "here").mkdir()
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("DATABASE_URL", f"postgres://user:{SECRET}@db/x")
    monkeypatch.chdir(folder / "here")


def point(seq: int, **values: Any) -> MetricPoint:
    """The event `seq`, a loss unless other values are given."""
    return MetricPoint(values or {"loss": 1 / seq}, "train", step=seq * 10, seq=seq)


def start(
    run_id: str | None = None, *, redelivery: bool = False, own: str = "one", after: int = 0
) -> RunStart:
    """The start of a run, or of a resumed one."""
    return RunStart("tune-7", "runs/tune-7", run_id, redelivery, os.getpid(), own, after)


def children() -> set[str]:
    """The child processes of this process."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split())


def refused_url() -> str:
    """A URL on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
