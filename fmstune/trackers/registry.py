"""The registry of trackers: name → class, resolved on use.

Names come from four sources: fmstune's own table, `register_tracker`, the entry points that installed
packages declare in the group `fmstune.trackers`, and dotted paths (`package.module:Class`) written
in place of a name. Nothing is imported until a tracker is used, and a tracker that cannot be
imported is an entry marked broken, never an error for the others.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmstune.errors import is_stop
from fmstune.trackers.base import Tracker, installed_version
from fmstune.trackers.built_in import BUILT_IN as BUILT_IN
from fmstune.trackers.compat import built, own_callback_of
from fmstune.trackers.hf.integrations import INTEGRATIONS, PREFIX, integration_names
from fmstune.trackers.plug_in_process import NoAnswer, ask
from fmstune.trackers.records import TrackerError
from fmstune.trackers.shapes import description_of, flaw_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "fmstune.trackers"

_PROBE_SECONDS = 20.0
_registered: dict[str, type[Tracker]] = {}


class UnknownTracker(TrackerError):
    """No tracker has this name; `known` are the existing names."""

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        self.known = known
        super().__init__(
            f"there is no tracker {name!r}; there are {', '.join(known)}, and any class written as "
            "package.module:Class."
        )


class BrokenTracker(TrackerError):
    """The tracker is known, but its module cannot be imported or does not contain a tracker.

    `flaw` is what is wrong with its class, including the remedy, if that is the reason."""

    exit_code = 3

    def __init__(self, message: str, flaw: str = "") -> None:
        self.flaw = flaw
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class TrackerEntry:
    """One line of `fmstune trackers list`."""

    name: str
    state: Literal["ready", "not installed", "unsupported", "broken"]
    origin: str
    description: str = ""
    version: str = ""
    in_process: bool = False
    remedy: str = ""


def register_tracker(name: str, tracker: type[Tracker]) -> None:
    """Make `tracker` known as `name` in this process, and in the shipper processes it starts.

    A class that is defined again replaces its earlier definition. Raises `ValueError` when another tracker
    has the name: registering one never hides another.
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"a tracker's name is a non-empty string, not {name!r}")
    if ":" in name:
        raise ValueError(
            f"a tracker's name has no colon, unlike {name!r}: hf:NAME and module:Class are other trackers"
        )
    if (flaw := flaw_of(tracker)) is not None:
        called = getattr(tracker, "__qualname__", repr(tracker))
        raise ValueError(f"the tracker {name!r} cannot be used: {called} {flaw}")
    own = f"{tracker.__module__}:{tracker.__qualname__}"
    taken: Any = BUILT_IN[name].where if name in BUILT_IN else _registered.get(name)
    if taken is None:
        taken = next((_origin(each) for each in _entry_points().get(name, ()) if _where(each) != own), None)
    again = isinstance(taken, type) and f"{taken.__module__}:{taken.__qualname__}" == own  # a cell, say
    if taken is not None and taken is not tracker and not again:
        raise ValueError(f"the tracker name {name!r} is taken by {taken}; choose another")
    _registered[name] = tracker


def known_names() -> list[str]:
    """All names that `--tracker` accepts, fmstune's own first."""
    return list(dict.fromkeys([*BUILT_IN, *_registered, *_entry_points()]))


def is_own(name: str) -> bool:
    """Whether the tracker is one of fmstune's, whose import neither hangs nor prints."""
    return name in BUILT_IN or name.startswith(PREFIX)


def reference(name: str) -> str:
    """The location of the class called `name`, as `module:Class`, importable in another process.

    A class defined in a script (`__main__`) is written as `/path/of/script.py:Class`.
    Raises `UnknownTracker`, and `BrokenTracker` for a class of a notebook.
    """
    if name in _registered:
        tracker = _registered[name]
        if "<locals>" in tracker.__qualname__:
            raise BrokenTracker(
                f"the tracker {name!r} is defined inside a function, where its own process cannot import it: "
                "define it at the top level of a module."
            )
        if tracker.__module__ == "__main__":
            return _in_script(tracker.__qualname__, name)
        return f"{tracker.__module__}:{tracker.__qualname__}"
    if name in BUILT_IN:
        return BUILT_IN[name].where
    if name.startswith(PREFIX):
        if (integration := name.removeprefix(PREFIX)) in INTEGRATIONS:
            return f"fmstune.trackers.hf_tracker:{integration}"
        raise UnknownTracker(name, integration_names())
    if (places := _entry_points().get(name)) is not None:
        if len(places) > 1:
            several = " and ".join(f"{_origin(point)} ({_where(point)})" for point in places)
            raise BrokenTracker(
                f"the tracker name {name!r} is that of several packages: {several}. Name the class itself."
            )
        return _where(places[0])
    if name.startswith("__main__:"):
        return _in_script(name.partition(":")[2], name)
    if ":" in name:
        return name
    raise UnknownTracker(name, known_names())


def _in_script(attribute: str, name: str) -> str:
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if script.suffix != ".py" or not script.is_file():
        raise BrokenTracker(
            f"the tracker {name!r} is not defined in a Python file, but in a notebook, say: its own process "
            "cannot import it. Move it into a module, and name it as module:Class."
        )
    return f"{script.resolve()}:{attribute}"


def tracker_class(name: str) -> type[Tracker]:
    """The class called `name`. Raises `UnknownTracker` or `BrokenTracker`."""
    if name in _registered:
        return _registered[name]
    return load_reference(reference(name), name)


def load_reference(where: str, name: str) -> type[Tracker]:
    """Import the class that `reference` located. Raises `BrokenTracker`."""
    module_name, _, attribute = where.rpartition(":")
    try:
        module = (
            _load_script(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    # A plug-in may do anything at import, sys.exit included; any failure here is the plug-in's.
    except BaseException as error:
        if is_stop(error):
            raise
        raise BrokenTracker(
            f"the tracker {name!r} cannot be loaded from {where}: {type(error).__name__}: {error}"
        ) from error
    if (flaw := flaw_of(found)) is not None:
        raise BrokenTracker(f"the tracker {name!r} cannot be used: {where} {flaw}.", f"{where} {flaw}")
    tracker: type[Tracker] = found
    return tracker


def build_tracker(reference: str, name: str, options: Mapping[str, Any]) -> Tracker:
    """The tracker of `reference` with its options, behind the current interface whatever its shape.

    Raises `BrokenTracker` or `TrackerOptionError`, and whatever the tracker's own `__init__` raises.
    """
    return built(load_reference(reference, name), name, options)


def get_tracker(name: str, /, **options: Any) -> Tracker:
    """Return a tracker ready for use in any script: `get_tracker("aim", repo=".").get_hf_callback()`.

    Raises `UnknownTracker`, `BrokenTracker` or `TrackerOptionError`.
    """
    if not isinstance(name, str):
        raise UnknownTracker(name, known_names())
    found = tracker_class(name)
    plain = {key: os.fspath(each) if isinstance(each, os.PathLike) else each for key, each in options.items()}
    return built(found, name, plain or None, where="get_tracker: ")


def list_trackers() -> list[TrackerEntry]:
    """Return every tracker that can be named here, and whether it is ready to run."""
    entries = [_built_in(name) for name in BUILT_IN]
    entries += [_entry(name, tracker, "registered here") for name, tracker in _registered.items()]
    plug_ins: list[TrackerEntry | tuple[str, str, str]] = []
    for name, points in _entry_points().items():
        taken = len(points) > 1 or name.startswith(PREFIX) or any(entry.name == name for entry in entries)
        for point in points:
            where, origin = _where(point), _origin(point)
            plug_ins.append(
                TrackerEntry(name, "broken", origin, "its name is taken by another tracker",
                             remedy=f"name it {where} instead") if taken else (name, where, origin)
            )  # fmt: skip
    return entries + _probed(plug_ins)


def _built_in(name: str) -> TrackerEntry:
    known = BUILT_IN[name]
    version = installed_version(known.package, known.distributions)
    if version is None:  # the class knows how to install it
        return _entry(name, tracker_class(name), "fmstune")
    if needed := known.unmet(version):
        return TrackerEntry(
            name, "unsupported", "fmstune", known.description, version, remedy=f"pip install '{needed}'"
        )
    return TrackerEntry(name, "ready", "fmstune", known.description, version)


def _entry(name: str, tracker: type[Tracker], origin: str) -> TrackerEntry:
    # A tracker of an older shape lacks the attributes of `Tracker`.
    package, hint = getattr(tracker, "package", None), getattr(tracker, "install_hint", None)
    version = installed_version(package, getattr(tracker, "distributions", ()))
    return TrackerEntry(
        name,
        "not installed" if version is None else "ready",
        origin,
        description_of(tracker),
        version or "",
        _provides_callback(tracker, name),
        (hint or f"pip install {package}") if version is None else "",
    )


def _provides_callback(tracker: Any, name: str) -> bool:
    """Whether a tracker must run in the training process, if that is known without its options."""
    own = getattr(tracker, "get_hf_callback", None)
    if own is None or own is Tracker.get_hf_callback:
        return False
    try:
        return own_callback_of(built(tracker, name, {})) is not None
    except (Exception, SystemExit):  # the plug-in's: it may need options
        return True


def _probed(plug_ins: list[TrackerEntry | tuple[str, str, str]]) -> list[TrackerEntry]:
    """The entries of plug-ins. Those that must be loaded first are probed all at once, as each takes the
    time of an import."""
    if not plug_ins:
        return []
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        found = [each if isinstance(each, TrackerEntry) else pool.submit(_probe, *each) for each in plug_ins]
        return [each if isinstance(each, TrackerEntry) else each.result() for each in found]


def _probe(name: str, where: str, origin: str) -> TrackerEntry:
    """Load a plug-in in its own process."""
    try:
        question = f"{__name__}:{loaded_entry.__name__}"
        return TrackerEntry(**ask(question, name, where, origin, seconds=_PROBE_SECONDS))
    except NoAnswer as error:
        return TrackerEntry(name, "broken", origin, f"its import {error}", remedy=_upgrade(origin))


def loaded_entry(name: str, where: str, origin: str) -> dict[str, Any]:
    """The entry of a plug-in that is imported here, as `ask` returns it."""
    try:
        entry = _entry(name, load_reference(where, name), origin)
    except BrokenTracker as error:
        cause = error.__cause__ or error
        why = error.flaw or f"{type(cause).__name__}: {cause}"
        entry = TrackerEntry(name, "broken", origin, why, remedy=_upgrade(origin))
    return {field: getattr(entry, field) for field in TrackerEntry.__slots__}


def _upgrade(origin: str) -> str:
    return f"pip install --upgrade {origin.split()[0]}"


def _entry_points() -> dict[str, list[EntryPoint]]:
    """The entry points of each name: several if packages disagree about it."""
    import importlib.metadata  # 20 ms, which `fmstune --help` avoids

    found: dict[str, list[EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        named = found.setdefault(point.name, [])
        if all(_where(point) != _where(other) for other in named):
            named.append(point)
    return found


def _where(point: EntryPoint) -> str:
    """The location of an entry point, without the extras that it may name."""
    return point.value.partition("[")[0].strip()


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _load_script(path: str) -> Any:
    import importlib.util

    main = sys.modules.get("__main__")
    if path == str(Path(getattr(main, "__file__", None) or "").resolve()):
        return main  # running it again would register a second, different class
    # multiprocessing gives the main module this name in a spawned child, so that the usual
    # `if __name__ == "__main__":` keeps the script from running again.
    spec = importlib.util.spec_from_file_location("__mp_main__", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)
    return module
