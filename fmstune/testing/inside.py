"""Examinations of a tracker's class that run in a separate process, with the folder as current directory.

Each returns its findings in a form that JSON can hold: a sentence for each deviation from the interface.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.trackers.base import Tracker
from fmstune.trackers.compat import OldShapeTracker
from fmstune.trackers.records import Check, MetricPoint, RunStart, TrackerOptionError
from fmstune.trackers.registry import build_tracker, load_reference
from fmstune.trackers.shapes import GUARANTEES, options_class

_UNKNOWN = "no_such_option_of_a_tracker"
_CHECK_SECONDS = 5.0


def declared(folder: Path, reference: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The tracker's guarantees."""
    tracker = build_tracker(reference, "t", options)
    said = {name: getattr(tracker, name) for name in GUARANTEES}
    # As `fmstune trackers show` decides it.
    own_tables = type(tracker).track_table is not Tracker.track_table
    tables = ("tables" if own_tables else "params") if tracker.keeps_tables else None
    return {
        **said,
        "single_precision": tracker.limits.single_precision,
        "tables": tables,
        "media": sorted(tracker.media),
        "artifacts": tracker.takes_artifacts,
    }


def interface(folder: Path, reference: str, options: Mapping[str, Any]) -> list[str]:
    """Deviations of the class, and of its behaviour before a run is opened, from the interface."""
    os.chdir(folder)
    before = _files(folder)
    said = [*_of_class(load_reference(reference, "t"))]
    tracker = build_tracker(reference, "t", options)
    if tracker.name != "t":
        said.append(f"Its name is {tracker.name!r}, but it was given 't'; pass the name on.")
    if _files(folder) != before:
        said.append(
            f"It creates {_first(_files(folder) - before)} before a run is opened; do that in `open`."
        )
    return [*said, *_of_refusals(tracker)]


def check(folder: Path, reference: str, options: Mapping[str, Any]) -> list[str]:
    """Deviations of `check` from the interface."""
    os.chdir(folder)
    tracker = build_tracker(reference, "t", options)
    before, began = _files(folder), time.monotonic()
    result = tracker.check(_CHECK_SECONDS)
    took = time.monotonic() - began
    if not (isinstance(result, Check) and result.is_valid):
        return [f"check returned {result!r}; it must return a Check with a known state."]
    said = []
    if not result.ok:
        said.append(f"check reports {result.state}: {result.detail} {result.remedy}".rstrip())
    if made := _files(folder) - before:
        said.append(f"check creates {_first(made)}; it must not change anything.")
    if took > 2 * _CHECK_SECONDS:
        said.append(f"check took {took:.0f} s, but its timeout was {_CHECK_SECONDS:.0f} s.")
    return said


def two_at_once(
    folder: Path, reference: str, _: Mapping[str, Any], both: list[tuple[str, dict[str, Any]]]
) -> list[str]:
    """Interleave the runs of two trackers, each with its own folder and options."""
    begun: list[Tracker] = []
    folders = [each for each, _ in both]
    for number, (each, options) in enumerate(both, 1):
        with _inside(Path(each)):
            tracker = build_tracker(reference, f"t{number}", options)
            tracker.open(RunStart(f"run-{number}", each, run_id=f"conformance-two-{number}"))
            begun.append(tracker)
    for step in range(1, 5):
        for number, (each, tracker) in enumerate(zip(folders, begun, strict=True), 1):
            with _inside(Path(each)):
                tracker.seq = tracker.step = step
                tracker.event_time = time.time()
                point = {"loss": float(10 * number + step)}
                tracker.track_point(MetricPoint(point, "train", step, None, tracker.event_time, step, {}))
                tracker.flush()
    for number, (each, tracker) in enumerate(zip(folders, begun, strict=True), 1):
        with _inside(Path(each)):
            tracker.seq = 5
            tracker.close("finished")
            if tracker.name != f"t{number}":
                return [f"Of two trackers in one process, the first is now called {tracker.name!r}."]
    return []


def _of_class(found: Any) -> Iterator[str]:
    options = options_class(found)
    if options is None:
        return
    for option in dataclasses.fields(options):
        if not option.metadata.get("help"):
            yield f'The option {option.name} has no help: field(metadata={{"help": "…"}}).'
    try:
        found("t", {_UNKNOWN: 1})
    except TrackerOptionError:
        return
    except Exception as error:
        yield f"An unknown option raises {type(error).__name__}, not TrackerOptionError."
        return
    yield "It accepts an unknown option; let the base class's __init__ check `tracker_config`."


def _of_refusals(tracker: Tracker) -> Iterator[str]:
    old = isinstance(tracker, OldShapeTracker)  # our adapter, which does the checks
    wanted: dict[str, Callable[[], object]] = {
        "track(None, 'loss')": lambda: tracker.track(None, "loss"),
        "track(1.0, None)": lambda: tracker.track(1.0, None),  # type: ignore[arg-type]
        "set_params(['a'])": lambda: tracker.set_params(["a"]),  # type: ignore[arg-type]
    }
    for what, call in {} if old else wanted.items():
        try:
            call()
        except ValueError:
            continue
        except Exception as error:
            yield f"{what} raises {type(error).__name__}, not ValueError; call the base class's method first."
        else:
            yield f"{what} does not raise ValueError; call the base class's method first."
    try:
        tracker.set_params(None)
    except Exception as error:
        yield f"set_params(None) must be a no-op, but raises {type(error).__name__}."


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _first(names: set[str]) -> str:
    return min(names, default="nothing")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
