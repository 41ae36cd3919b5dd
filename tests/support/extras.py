"""Packages of fmstune's extras, which `fmstune[test]` has and somebody's environment may lack."""

from __future__ import annotations

import importlib.util

import pytest

TENSORBOARD = "tensorboard"
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec(TENSORBOARD) is None, reason="the package of the extra `tensorboard`"
)


def skip_without_package_of(tracker: str) -> None:
    """Skip the test when it is about a tracker whose package is not installed."""
    if tracker.lower() == TENSORBOARD:
        pytest.importorskip(TENSORBOARD, reason="the package of the extra `tensorboard`")
