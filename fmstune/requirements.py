"""The versions of other packages that fmstune supports, as its own installed metadata declares them.

pip checks them only when it installs fmstune: installing something else later may replace a package by a
version that does not fit. Nothing is imported here, `packaging` included, which would take half of the time
of `fmstune trackers list`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fmstune.errors import ConfigError

_OF_TRACKERS = frozenset({"aim", "wandb"})
"""Required, but used by their trackers only, which check them."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement of fmstune: the package's name, and the range, as `>=5.23,<5.24`. It is `optional` if
    only an extra or some versions of Python need it."""

    name: str
    range: str
    optional: bool

    def __str__(self) -> str:
        return self.name + self.range

    def fits(self, version: str) -> bool:
        """Whether a version is in the range. A pre-release of the first version outside is outside, too."""
        release = _release(version)
        for operator, bound in re.findall(r"(>=|<)([\d.]+)", self.range):
            if (release >= _release(bound)) != (operator == ">="):
                return False
        return True


def require_supported(*, complete: bool = False) -> None:
    """Raise `ConfigError` if the version of a required package is unsupported. With `complete`, all must be
    installed."""
    found: list[str] = []
    wrong: list[str] = []
    for name, required in requirements().items():
        if required.optional or name in _OF_TRACKERS:
            continue
        version = _version(name)
        if version is None and complete:
            found.append(f"{required.name} is not installed")
        elif version is not None and not required.fits(version):
            found.append(f"{required.name} {version} is installed")
        else:
            continue
        wrong.append(str(required))
    if wrong:
        quoted = " ".join(f"'{each}'" for each in wrong)
        raise ConfigError(
            f"{', '.join(found)}, but fmstune needs {' and '.join(wrong)}: run `pip install {quoted}`."
        )


def unmet_requirement(version: str, *names: str) -> str | None:
    """The requirement that an installed version does not meet, as `aim>=3.25,<4`; `None` if it does, or there
    is none. `names` are those that its distribution may have."""
    required = next((each for name in names if (each := requirements().get(_normal(name)))), None)
    return None if required is None or required.fits(version) else str(required)


@functools.cache
def requirements() -> Mapping[str, Requirement]:
    """What fmstune requires, by normalised name; nothing if its source is used without being installed."""
    try:
        lines = importlib.metadata.requires("fmstune") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return parsed(lines)


def parsed(lines: Iterable[str]) -> dict[str, Requirement]:
    """The requirements in lines of a package's metadata, by normalised name."""
    found: dict[str, Requirement] = {}
    for line in lines:
        wanted, _, marker = line.partition(";")
        parsed = re.match(r"([\w.-]+)\s*([<>=].*)?$", wanted.strip())
        if parsed is None:  # extras of fmstune itself
            continue
        clauses = sorted((parsed[2] or "").replace(" ", "").split(","), reverse=True)
        found.setdefault(_normal(parsed[1]), Requirement(parsed[1], ",".join(clauses), bool(marker)))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The release of a version, without what follows it and without zeros at its end."""
    numbers = re.match(r"[\d.]*", version.partition("!")[2] or version)
    parts = [int(part) for part in (numbers[0] if numbers else "").split(".") if part]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
