"""Interpreters that have imported trackers' SDKs, one for each tracker that a module tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from fmstune.testing.lives import Nursery, nursery
from tests.support.aim_servers import provide_database


@contextmanager
def nurseries(modules: Mapping[str, Sequence[str]]) -> Iterator[Callable[[str], Nursery]]:
    """What gives a tracker's nursery by its name, made at the first call; `modules` are what each imports."""
    with ExitStack() as stack:
        made: dict[str, Nursery] = {}

        def of(name: str) -> Nursery:
            if name not in made:
                more = ["tests.support.aim_database"] if "aim" in modules[name] else []
                if more:
                    provide_database()
                made[name] = stack.enter_context(nursery(*modules[name], *more))
            return made[name]

        yield of
