"""What a tracker stores of a run, how delivery to it works, and its options, as declared by its class."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from fmstune.trackers.base import Tracker, installed_version
from fmstune.trackers.plug_in_process import NoAnswer, ask
from fmstune.trackers.registry import BrokenTracker, load_reference
from fmstune.trackers.shapes import description_of, options_class

KEEPS = ("metrics", "params", "tables", "media", "artifacts")
_VARIABLE = re.compile(r"\b(?:else|or) ([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)")
"""An option's help text lists the variables that replace it: `else WANDB_MODE, else online`."""
DELIVERS = ("duplicates", "repeated steps", "late events", "durable")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a tracker. `variables` are the environment variables that apply when it is not set, in
    order of precedence."""

    name: str
    default: Any
    help: str
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Described:
    """A tracker as `fmstune trackers show` prints it; `install` is the command for its package, `resumed`
    what happens when a run is resumed."""

    name: str
    description: str
    package: str | None
    version: str | None
    install: str | None
    options: tuple[Option, ...] | None
    keeps: dict[str, str]
    delivers: dict[str, str]
    limits: dict[str, Any]
    resumed: str = ""


def described(name: str, tracker: type[Any]) -> Described:
    """What the class called `name` declares. A class of an older shape has the interface's defaults."""
    whole = tracker if issubclass(tracker, Tracker) else Tracker
    declared = options_class(tracker)
    options = None if declared is None else tuple(map(_option, dataclasses.fields(declared)))
    package = getattr(tracker, "package", None)
    version = installed_version(package, getattr(tracker, "distributions", ()))
    install = getattr(tracker, "install_hint", None) or (f"pip install {package}" if package else None)
    limits = getattr(tracker, "limits", whole.limits)
    usual = {each.name: getattr(Tracker.limits, each.name) for each in dataclasses.fields(limits)}
    special = {key: getattr(limits, key) for key, value in usual.items() if getattr(limits, key) != value}
    description = description_of(tracker)
    return Described(
        name, description, package, version, install, options, _keeps(tracker), _delivers(tracker),
        {key: sorted(value) if isinstance(value, frozenset) else value for key, value in special.items()},
        _resumed(tracker),
    )  # fmt: skip


def described_apart(name: str, where: str, seconds: float) -> Described:
    """What the plug-in `name` at `where` declares, asked in a process of its own. Raises `BrokenTracker`."""
    try:
        found = ask(f"{__name__}:{declared_there.__name__}", name, where, seconds=seconds)
    except NoAnswer as error:
        module = where.rpartition(":")[0]
        raise BrokenTracker(
            f"the tracker {name!r} cannot be used: the import of {module} {error}. Fix the module, or give "
            "it longer: --timeout SECONDS."
        ) from None
    if "broken" in found:
        raise BrokenTracker(found["broken"])
    options = found["options"]
    if options is not None:
        options = tuple(Option(**{**each, "variables": tuple(each["variables"])}) for each in options)
    return Described(**{**found, "options": options})


def declared_there(name: str, where: str) -> dict[str, Any]:
    """The description of a plug-in that is imported here, as `ask` returns it."""
    try:
        return dataclasses.asdict(described(name, load_reference(where, name)))
    except BrokenTracker as error:
        return {"broken": str(error)}


def _option(field: dataclasses.Field[Any]) -> Option:
    default = None if field.default is dataclasses.MISSING else field.default
    help = str(field.metadata.get("help", ""))
    return Option(field.name, default, help, tuple(_VARIABLE.findall(help)))


def _keeps(tracker: type[Any]) -> dict[str, str]:
    if tracker is Tracker:
        return dict.fromkeys(KEEPS, "no")
    limits = getattr(tracker, "limits", Tracker.limits)
    metrics = "numbers in single precision" if limits.single_precision else "numbers"
    metrics += " and texts" if limits.text_metrics else ""
    if not (limits.nan and limits.infinite):
        metrics += ", not infinite ones" if limits.nan else ", finite ones only"
    params = "nested" if limits.nested else "flat"
    params += ", as text" if limits.text_params else ""
    params += "" if limits.params_change else ", the first value of each"
    own = getattr(tracker, "track_table", None) not in (None, Tracker.track_table)
    tables = ("as tables" if own else "as params") if getattr(tracker, "keeps_tables", True) else "no"
    media = ", ".join(f"{kind}s" for kind in sorted(getattr(tracker, "media", ()))) or "no"
    artifacts = "yes" if getattr(tracker, "takes_artifacts", False) else "no"
    return dict(zip(KEEPS, (metrics, params, tables, media, artifacts), strict=True))


def _resumed(tracker: type[Any]) -> str:
    if tracker is Tracker:
        return ""
    if not getattr(tracker, "continues", Tracker.continues):
        return "starts another run there, which gets only new events"
    return f"continues the run there; repeated steps {_delivers(tracker)['repeated steps']}"


def _delivers(tracker: type[Any]) -> dict[str, str]:
    if tracker is Tracker:
        return dict.fromkeys(DELIVERS, "")

    def declares(name: str) -> Any:
        return getattr(tracker, name, getattr(Tracker, name))

    words = (
        "none" if declares("idempotent") else "possible after a kill",
        {"replaced": "replace the old values", "kept": "are kept as well"}[declares("repeated_steps")],
        "are accepted" if declares("takes_late") else "delay later ones",
        "after each call" if declares("durable_on") == "call" else "when the run is closed",
    )
    return dict(zip(DELIVERS, words, strict=True))
