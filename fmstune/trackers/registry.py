"""The registry of trackers: name → class, resolved on use.

Names come from four sources: fmstune's own table, `register_tracker`, the entry points that installed
packages declare in the group `fmstune.trackers`, and dotted paths (`package.module:Class`) written
in place of a name. Nothing is imported until a tracker is used, and a tracker that cannot be
imported is an entry marked broken, never an error for the others.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmstune.trackers.base import Tracker, installed_version, vendors_callback
from fmstune.trackers.built_in import BUILT_IN as BUILT_IN
from fmstune.trackers.hf.integrations import INTEGRATIONS, PREFIX, integration_names
from fmstune.trackers.records import TrackerError, TrackerOptionError

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
    """The tracker is known, but its module cannot be imported or does not contain a tracker."""

    exit_code = 3


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

    Raises `ValueError` when another tracker has the name: registering one never hides another.
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"a tracker's name is a non-empty string, not {name!r}")
    if not (isinstance(tracker, type) and callable(getattr(tracker, "track", None))):
        raise ValueError(f"the tracker {name!r} has to be a class with a method `track`, not {tracker!r}")
    taken = BUILT_IN[name].where if name in BUILT_IN else _registered.get(name)
    if taken is not None and taken is not tracker:
        raise ValueError(f"the tracker name {name!r} is taken by {taken}; choose another")
    _registered[name] = tracker


def known_names() -> list[str]:
    """All names that `--tracker` accepts, fmstune's own first."""
    return list(dict.fromkeys([*BUILT_IN, *_registered, *_entry_points()]))


def reference(name: str) -> str:
    """The location of the class called `name`, as `module:Class`, importable in another process.

    A class defined in a script (`__main__`) is written as `/path/of/script.py:Class`.
    Raises `UnknownTracker`, and `BrokenTracker` for a class of a notebook.
    """
    if name in _registered:
        tracker = _registered[name]
        if tracker.__module__ == "__main__":
            return _in_script(tracker.__qualname__, name)
        return f"{tracker.__module__}:{tracker.__qualname__}"
    if name in BUILT_IN:
        return BUILT_IN[name].where
    if name.startswith(PREFIX):
        if (integration := name.removeprefix(PREFIX)) in INTEGRATIONS:
            return f"fmstune.trackers.hf_tracker:{integration}"
        raise UnknownTracker(name, integration_names())
    entry_points = _entry_points()
    if name in entry_points:
        return entry_points[name].value
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
    except (Exception, SystemExit) as error:
        raise BrokenTracker(
            f"the tracker {name!r} cannot be loaded from {where}: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and callable(getattr(found, "track", None))):
        raise BrokenTracker(
            f"the tracker {name!r} cannot be used: {where} is not a class with a method `track`."
        )
    if not _takes_metrics(found):
        raise BrokenTracker(
            f"the tracker {name!r} cannot be used: {where} would drop all metrics; define one of "
            f"{', '.join(f'`{method}`' for method in _METRICS)} in it."
        )
    return found


_METRICS = ("track", "track_point", "track_points")


def _takes_metrics(tracker: Any) -> bool:
    """Whether a class does anything with metrics: those that it inherits from `Tracker` do nothing. With one
    of its own to ignore them, or with a vendor's callback, that is what it was written for."""
    if tracker is Tracker or not issubclass(tracker, Tracker):
        return True
    methods = (*_METRICS, "get_hf_callback")
    return any(getattr(tracker, method) is not getattr(Tracker, method) for method in methods)


def get_tracker(name: str, **options: Any) -> Tracker:
    """Return a tracker ready for use in any script: `get_tracker("aim", repo=".").get_hf_callback()`.

    Raises `UnknownTracker`, `BrokenTracker` or `TrackerOptionError`.
    """
    from fmstune.config.check.typed import check_field
    from fmstune.errors import ConfigError

    found = tracker_class(name)
    declared = getattr(found, "Config", None)
    fields = {} if declared is None else {field.name: field for field in dataclasses.fields(declared)}
    options = {
        key: os.fspath(each) if isinstance(each, os.PathLike) else each for key, each in options.items()
    }
    try:
        for key in options.keys() & fields:  # the tracker itself rejects the others
            check_field(options[key], fields[key], where="get_tracker", key=f"trackers.{name}.{key}")
    except ConfigError as error:
        raise TrackerOptionError(str(error)) from None
    return found(name, options or None)


def list_trackers() -> list[TrackerEntry]:
    """Return every tracker that can be named here, and whether it is ready to run."""
    entries = [_built_in(name) for name in BUILT_IN]
    entries += [_entry(name, tracker, "registered here") for name, tracker in _registered.items()]
    plug_ins: list[TrackerEntry | tuple[str, str, str]] = []
    for name, entry_point in _entry_points().items():
        distribution = entry_point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else entry_point.value
        if any(entry.name == name for entry in entries):
            plug_ins.append(
                TrackerEntry(name, "broken", origin, "its name is taken by another tracker",
                             remedy=f"name it {entry_point.value} instead")
            )  # fmt: skip
        else:
            plug_ins.append((name, entry_point.value, origin))
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
        getattr(tracker, "description", "") if issubclass(tracker, Tracker) else "",
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
        return vendors_callback(tracker(name=name, tracker_config={})) is not None
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
    """Load a plug-in in its own process: it may import anything, hang, or end its process."""
    import json
    import subprocess

    command = [sys.executable, "-m", "fmstune.trackers.registry", name, where, origin]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        return TrackerEntry(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        why = f"its import took longer than {_PROBE_SECONDS:.0f} s"
    except (ValueError, IndexError, TypeError):
        why = f"its import ended the process (exit code {done.returncode})"
    return TrackerEntry(name, "broken", origin, why, remedy=f"pip install --upgrade {origin.split()[0]}")


def _probe_main(name: str, where: str, origin: str) -> None:
    import json

    try:
        entry = _entry(name, load_reference(where, name), origin)
    except BrokenTracker as error:
        cause = error.__cause__ or error
        entry = TrackerEntry(
            name, "broken", origin, f"{type(cause).__name__}: {cause}",
            remedy=f"pip install --upgrade {origin.split()[0]}",
        )  # fmt: skip
    print()
    print(json.dumps({field: getattr(entry, field) for field in TrackerEntry.__slots__}))


def _entry_points() -> dict[str, EntryPoint]:
    import importlib.metadata  # 20 ms, which `fmstune --help` avoids

    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


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


if __name__ == "__main__":
    _probe_main(*sys.argv[1:4])
