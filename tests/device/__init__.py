"""What needs a GPU to be seen: `pytest tests/device` runs it on one, and prints a table. See `conftest`."""
