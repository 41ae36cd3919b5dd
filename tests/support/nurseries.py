"""Interpreters that have imported trackers' SDKs, one for each tracker that a module tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from fmstune.testing.lives import Nursery, nursery


@contextmanager
def nurseries(modules: Mapping[str, Sequence[str]]) -> Iterator[Callable[[str], Nursery]]:
    """What gives a tracker's nursery by its name, made at the first call; `modules` are what each imports."""
    with ExitStack() as stack:
        made: dict[str, Nursery] = {}

        def of(name: str) -> Nursery:
            if name not in made:
                made[name] = stack.enter_context(nursery(*modules[name]))
            return made[name]

        yield of
