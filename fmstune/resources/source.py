"""Sources of figures: what is read together, and what becomes of one that cannot be read.

All figures are numbers whose names end in their unit: `_percent`, `_mb` (a million bytes), `_watts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SYSTEM = "system"
"""The stage of what is tracked of the machine, and of where a run's time goes."""
MB = 1e6
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Source:
    """Figures that are read together, and what they are for people: `the network`."""

    name: str
    read: Callable[[], Figures]


@dataclass(slots=True)
class Sources:
    """Reads several sources. One that fails costs its own figures alone; `say` gets why, once of each."""

    sources: Iterable[Source]
    say: Callable[[str], None]
    _said: set[str] = field(default_factory=set)

    def read(self) -> Figures:
        """The figures that can be read now."""
        found: Figures = {}
        for source in self.sources:
            try:
                found |= source.read()
            # psutil, NVML and the kernel each have errors of their own, and none is worth a run. What
            # fails now may be there at the next sample, so it is asked again.
            except Exception as error:
                if source.name not in self._said:
                    self._said.add(source.name)
                    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                    self.say(
                        f"resources: {source.name} cannot be read ({why}); the other figures are recorded"
                    )
        return found
