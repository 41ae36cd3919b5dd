"""Names that a service accepts."""

from __future__ import annotations

import re

from fmstune.trackers.records import Limits, utf8

_DOTTED = re.compile(r"^(\.\.|\.?$)")
"""Forbidden prefixes and values of a path component."""
_AROUND = re.compile(r"^\s+|\s+$")


class Names:
    """The names of one scope in a form that a service accepts. Two different names never become the same."""

    def __init__(
        self,
        limits: Limits,
        *,
        chars: str | None = None,
        most: int | None = None,
        reserved: frozenset[str] = frozenset(),
        taken: set[str] | None = None,
        prefix: str = "",
        stripped: bool = False,
        series: bool = False,
    ) -> None:
        """`taken` are names, with their `prefix`, that other scopes use too. With `stripped`, the service
        strips white space from both ends of a name. With `series`, the names are those of metrics, tables
        and media, or prefixes of these."""
        chars = chars or limits.name_chars
        self._bad = re.compile(f"[^{chars}]") if chars else None
        self._most = limits.max_name if most is None else most
        self._nul = limits.nul
        self._paths = limits.paths
        self._fold = str.casefold if limits.ignores_case else str
        self._taken = {self._fold(name) for name in reserved} if taken is None else taken
        self._prefix = prefix
        self._stripped = stripped
        self._strips, self._drops = (limits.strips, limits.drops) if series else ("", "")
        self.known: dict[str, str] = {}
        """What each name is called."""

    def fit(self, name: str, *, again: bool = False) -> str:
        """The accepted form of `name`; with `again`, each repetition of a name gets a new one."""
        if name in self.known and not again:
            return self.known[name]
        stem = self._bad.sub("_", name) if self._bad else utf8(name)
        if not self._nul:
            stem = stem.replace("\0", "_")
        if self._paths:
            parts = stem[: self._most].split("/")
            stem = "/".join(_DOTTED.sub("_", part) for part in parts)[: self._most]
            stem = f"{stem[:-1]}_" if stem.endswith("/") else stem
        stem = stem[: self._most] or "_"
        if self._stripped:
            stem = _AROUND.sub(lambda found: "_" * len(found[0]), stem)
        stem = self._held(stem)
        fitting = stem
        count = 1
        while self._fold(self._prefix + fitting) in self._taken:
            count += 1
            suffix = f"_{count}"
            fitting = stem[: (self._most or len(stem) + 9) - len(suffix)] + suffix
        self._taken.add(self._fold(self._prefix + fitting))
        self.known[name] = fitting
        return fitting

    def _held(self, stem: str) -> str:
        """A name that the service neither strips nor drops."""
        begins = not self._prefix  # else the prefix is stripped
        if self._drops and begins and stem.startswith(self._drops):
            stem = f"_{stem}"[: self._most]
        if self._strips:
            core = stem.rstrip(self._strips)
            stem = core.ljust(len(stem), "_")
            if begins:
                stem = stem.lstrip(self._strips).rjust(len(stem), "_")
        return stem
