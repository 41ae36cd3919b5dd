"""Fixtures for tracker tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from tests.support.wandb_cloud import WandbCloud
from tests.support.wandb_isolation import isolate_wandb


@pytest.fixture
def isolated_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test has its own home and current folder, and no W&B settings but its own."""
    isolate_wandb(tmp_path, monkeypatch)
    yield tmp_path
    wandb.teardown()  # its session keeps the environment of its first use


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbCloud]:
    """A stand-in for W&B's cloud, and a key for it in the environment."""
    with WandbCloud() as cloud:
        monkeypatch.setenv("WANDB_BASE_URL", cloud.url)
        monkeypatch.setenv("WANDB_API_KEY", cloud.key)
        yield cloud
        cloud.answer = "ok"
        wandb.teardown()  # while the cloud still responds
