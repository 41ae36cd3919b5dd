"""Tests that need a GPU: `pytest tests/device` runs them on one, and prints a table. See `conftest`."""
