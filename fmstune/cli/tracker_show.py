"""`fmstune trackers show`: a tracker's options, what it stores, and how events are delivered to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmstune.trackers.described import Described, Option
    from fmstune.trackers.records import Check


@dataclass(frozen=True, slots=True)
class Present:
    """The current value of an option, and its origin: `fmstune.toml:3`, `--set`, `the variable WANDB_MODE`,
    or `default`."""

    value: Any
    origin: str


def present(about: Described, given: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Present]:
    """The current value of each option. Configured values override the vendor's environment variables."""
    return {each.name: _present(each, given, origins) for each in about.options or ()}


def _present(option: Option, given: Mapping[str, Any], origins: Mapping[str, str]) -> Present:
    if option.name in given:
        return Present(given[option.name], origins.get(option.name) or "the configuration")
    for name in option.variables:
        if value := os.environ.get(name):
            return Present(value, f"the variable {name}")
    return Present(option.default, "default")


def as_json(about: Described, now: Mapping[str, Present], found: Check) -> dict[str, Any]:
    """The whole description, with the options' current values and their origins."""
    options = [
        {**dataclasses.asdict(each), **dataclasses.asdict(now[each.name])} for each in about.options or ()
    ]
    return {**dataclasses.asdict(about), "options": options, "check": dataclasses.asdict(found)}


def lines(about: Described, now: Mapping[str, Present]) -> Iterator[str]:
    """The description as lines of text, without the check."""
    yield f"{about.name}: {about.description}" if about.description else about.name
    if about.package is not None:
        version = f"{about.package} {about.version}" if about.version is not None else "not installed"
        yield f"package  {version} · {about.install}"
    for word, said in (("keeps", about.keeps), ("delivery", about.delivers)):
        shown = [f"{key}: {value}" for key, value in said.items() if value]
        if shown:
            yield f"{word:8} {' · '.join(shown)}"
    if about.resumed:
        yield f"resume   {about.resumed}"
    if about.limits:
        yield "limits   " + ", ".join(f"{key} = {value!r}" for key, value in about.limits.items())
    if about.options is None:
        yield "options  any: it does not declare them"
    elif not about.options:
        yield "options  none"
    for each in about.options or ():
        default = "" if each.default in (None, (), "", []) else f" Default: {each.default}."
        yield f"  {each.name:14} {each.help}{default}"
        if (held := now[each.name]).origin != "default":
            yield f"  {'':14} now: {held.value!r}, from {held.origin}"
