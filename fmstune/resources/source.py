"""Sources of metrics: groups that are read together, with handling of those that cannot be read.

The names of metrics end in their unit: `_percent`, `_mb` (a million bytes), `_watts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SYSTEM = "system"
"""The stage of the metrics about the machine, and about a run's use of time."""
MB = 1e6
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Source:
    """Metrics that are read together, and their description: `the network`."""

    name: str
    read: Callable[[], Figures]


@dataclass(slots=True)
class Sources:
    """Reads several sources. If one fails, only its metrics are missing; `say` gets the reason, once each."""

    sources: Iterable[Source]
    say: Callable[[str], None]
    _said: set[str] = field(default_factory=set)

    def read(self) -> Figures:
        """Read all sources that work."""
        found: Figures = {}
        for source in self.sources:
            try:
                found |= source.read()
            # psutil, NVML and the kernel have their own errors, none of which should stop a run. A source
            # that fails now may work at the next sample, so it is tried again.
            except Exception as error:
                if source.name not in self._said:
                    self._said.add(source.name)
                    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                    self.say(
                        f"resources: {source.name} cannot be read ({why}); other metrics are still recorded"
                    )
        return found
