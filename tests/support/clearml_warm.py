"""Importing this loads ClearML's SDK and its configuration, so that a process forked from this one needs to
load neither."""

from __future__ import annotations

import clearml.backend_api.session.session
import clearml.utilities.plotly_reporter  # noqa: F401

from fmstune.trackers.clearml.places import ClearmlOptions, place_of

place_of(ClearmlOptions(offline=True), "clearml")
