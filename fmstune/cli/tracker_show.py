"""`fmstune trackers show`: one tracker's options, what it keeps and how it is delivered to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmstune.trackers.described import Described
    from fmstune.trackers.records import Check


def as_json(about: Described, given: Mapping[str, Any], found: Check) -> dict[str, Any]:
    """All of it, with the options' present values."""
    options = [
        {**dataclasses.asdict(each), "value": given.get(each.name, each.default)}
        for each in about.options or ()
    ]
    return {**dataclasses.asdict(about), "options": options, "check": dataclasses.asdict(found)}


def lines(about: Described, given: Mapping[str, Any]) -> Iterator[str]:
    """All but the check, for a person."""
    yield f"{about.name}: {about.description}" if about.description else about.name
    if about.package is not None:
        version = f"{about.package} {about.version}" if about.version is not None else "not installed"
        yield f"package  {version} · {about.install}"
    for word, said in (("keeps", about.keeps), ("delivery", about.delivers)):
        shown = [f"{key}: {value}" for key, value in said.items() if value]
        if shown:
            yield f"{word:8} {' · '.join(shown)}"
    if about.limits:
        yield "limits   " + ", ".join(f"{key} = {value!r}" for key, value in about.limits.items())
    if about.options is None:
        yield "options  any; it declares none"
    elif not about.options:
        yield "options  none"
    for each in about.options or ():
        default = "" if each.default in (None, (), "") else f" Default: {each.default}."
        yield f"  {each.name:14} {each.help}{default}"
        if each.name in given:
            yield f"  {'':14} now: {given[each.name]!r}"
