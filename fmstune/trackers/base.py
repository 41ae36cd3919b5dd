"""The tracker interface: all that the author of a new tracker needs to know.

A tracker turns what a run reports (metrics, params, a final status) into calls of one SDK. It may
raise, hang or die: it runs in its own process, and whatever it fails to deliver stays in the
run's journal. So a tracker never catches its SDK's errors, never retries and never logs about them.

Nothing in this module imports an SDK, transformers or another part of fmstune.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmstune.trackers.records import (
    Artifact,
    Check,
    CheckState,
    Limits,
    Media,
    MediaKind,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerOptionError,
    TrackerRun,
)

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = [
    "Artifact",
    "Check",
    "CheckState",
    "Limits",
    "Media",
    "MediaKind",
    "MetricPoint",
    "RunStart",
    "Status",
    "Table",
    "Tracker",
    "TrackerError",
    "TrackerOptionError",
    "TrackerRun",
    "installed_version",
    "vendors_callback",
]


class Tracker:
    """A back end that runs are tracked in. A bare `Tracker` is the tracker `none` and does nothing.

    A new tracker needs `track` and, for params, `set_params`. Everything else has a working default.
    Set `Config` to a dataclass to get typed, checked and listed options; without one, the
    tracker accepts any option, in the mapping `self.config`.
    """

    registered_name: ClassVar[str] = "none"
    description: ClassVar[str] = "no tracking"
    package: ClassVar[str | None] = None
    """The import name of the SDK; `None` if none is needed."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """The names under which the SDK is installed, where they differ from `package`."""
    install_hint: ClassVar[str | None] = None
    """The command that installs the SDK."""
    Config: ClassVar[type[Any] | None] = None
    limits: ClassVar[Limits] = Limits()
    idempotent: ClassVar[bool] = False
    """Whether delivering an event a second time leaves the service unchanged."""
    repeated_steps: Literal["replaced", "kept"] = "kept"
    """What happens to the old values when a resumed run logs steps again: the service replaces them, or
    keeps them beside the new ones."""
    places: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """The options and environment variables (in capitals) that decide where runs are stored; none is a
    secret. Those of a group are alternatives, and the first one that is set wins. A run that is synced
    from another shell continues in the location where it started."""
    continues: ClassVar[bool] = True
    """Whether a resumed run continues the service's earlier run instead of starting a new one."""
    takes_late: bool = True
    """Whether the service accepts a metric after one of a later step; others drop it silently."""
    takes_params: ClassVar[Literal["merged", "given"]] = "merged"
    """What `set_params` receives: either everything known of the namespace so far, merged deeply, with the
    last value of each key, so that a service that replaces a namespace loses nothing; or only what this
    call was given, for a tracker that keeps every call."""
    media: ClassVar[frozenset[MediaKind]] = frozenset()
    """Which of texts, images and histograms `track_media` accepts. The others stay in the run's journal, and
    the report lists them."""
    takes_artifacts: bool = False
    """Whether `track_artifact` accepts files. If not, they stay in the run's directory only."""
    refers_to_files: bool = False
    """Whether the service only records the path of what `track_artifact` received, so that the files must
    not be removed."""
    keeps_tables: ClassVar[bool] = True
    """Whether the service stores tables in some form."""
    durable_on: ClassVar[Literal["call", "close"]] = "call"
    """When delivered events survive a kill of this process: after each call, or only after `close`. With
    the latter, an interrupted delivery is repeated from its start."""

    given: int = 0
    """How many values of the last point `track` has taken: if it fails on the next one, only the rest is
    delivered again."""
    own_callback: TrainerCallback | None = None
    """What `get_hf_callback` returned, when the tracker is used standalone."""

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        """Store the configuration. Opens nothing and imports no SDK.

        `tracker_config` is an instance of `Config`, a mapping of its fields, or `None` for the
        defaults. Raises `TrackerOptionError` for an unknown option.
        """
        self.name = name or self.registered_name
        self.config: Any = self._configured(tracker_config)
        # The number, in the run's journal, of the event that is being delivered; a tracker may store it to
        # recognise an event that is delivered twice. None when the tracker is used standalone.
        self.seq: int | None = None
        # The current optimizer step, for what is tracked without a step.
        self.step: int | None = None
        # When that event happened, in Unix seconds. None when the tracker is used standalone.
        self.event_time: float | None = None

    @classmethod
    def _configured(cls, given: Any) -> Any:
        if cls.Config is None:
            return dict(given or {})
        if isinstance(given, cls.Config):
            return given
        known = [field.name for field in dataclasses.fields(cls.Config)]
        for key in given or {}:
            if key not in known:
                raise TrackerOptionError(
                    f"{cls.registered_name} has no option {key!r}; it has {', '.join(known)}."
                )
        return cls.Config(**(given or {}))

    # -- the interface ------------------------------------------------------------------------

    def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
        """The callback that feeds this tracker from any `transformers.Trainer`, in one run. Until `close`,
        every call returns the same one.

        Exceptions of the tracker are logged and never reach the training, unless `strict`.
        """
        from fmstune.trackers.hf.callback import own_callback

        return own_callback(self, strict=strict)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        """Track one metric of a stage (`train`, `eval`, …) at an optimizer step.

        Raises `ValueError` when the metric or its name is `None`.
        """
        if metric is None or name is None:
            raise ValueError(f"{self.name}.track needs a metric and its name, got {metric!r}, {name!r}")

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        """Attach run parameters under the namespace `name`. `None` does nothing.

        Several calls for a namespace are merged, also when the run is reopened (see `takes_params`).
        Raises `ValueError` when `params` is not a mapping.
        """
        if params is not None and not isinstance(params, Mapping):
            raise ValueError(f"{self.name}.set_params needs a mapping, got {type(params).__name__}")

    @property
    def adapted(self) -> tuple[str, ...]:
        """What the tracker itself had to change or leave out, one sentence each."""
        return ()

    @property
    def takes_whole_points(self) -> bool:
        """Whether it overrides `track_point`, or `track_points` alone, instead of `track` for each value."""
        kind = type(self)
        if kind.track_point is not Tracker.track_point:
            return True
        return kind.track is Tracker.track and kind.track_points is not Tracker.track_points

    @property
    def buffers(self) -> bool:
        """Whether it overrides `flush`: what it is given is safe only once that returns."""
        return type(self).flush is not Tracker.flush

    @property
    def hears_of_resumes(self) -> bool:
        """Whether it overrides `resumed`."""
        return type(self).resumed is not Tracker.resumed

    # -- hooks with working defaults ----------------------------------------------------------

    def open(self, start: RunStart) -> TrackerRun:
        """Open a new run, or reopen `start.tracker_run_id`, and return it.

        A tracker that `open_alone` has opened continues that run, under the new name.
        """
        return TrackerRun(id=start.tracker_run_id)

    def open_alone(self) -> None:
        """Open a run for a call that precedes `open`: the tracker is used standalone, in a script. The run is
        closed when the process ends, unless it was closed before."""
        from fmstune.trackers.standalone import close_at_exit

        self.open(RunStart(name="run", directory="."))
        close_at_exit(self)

    def track_point(self, point: MetricPoint) -> None:
        """Track the metrics that were logged together; by default, one call of `track` each, or one of
        `track_points` if that is all that the tracker has."""
        kind = type(self)
        if kind.track is Tracker.track and kind.track_points is not Tracker.track_points:
            self.track_points(iter((point,)))
        else:
            self._track_each(point)

    def _track_each(self, point: MetricPoint) -> None:
        self.given = 0
        for name, value in point.values.items():
            self.track(value, name, point.stage, step=point.step)
            self.given += 1

    def track_points(self, points: Iterator[MetricPoint]) -> None:
        """Track consecutive points; by default, one call of `track_point` each.

        If this raises, `seq` is the number of the point that failed: those before it have been tracked. If it
        returns before the last point, the one that it took last is tracked again.
        """
        track = self._track_each if type(self).track_point is Tracker.track_point else self.track_point
        for point in points:
            self.seq, self.step, self.event_time = point.seq, point.step, point.time
            track(point)

    def track_table(self, table: Table) -> None:
        """Track a table; by default as params, in its own namespace: `eval/samples/step 40`."""
        where = [table.stage, table.name, None if table.step is None else f"step {table.step}"]
        name = "/".join(part for part in where if part)
        if table.repeats:
            name += f" ({table.repeats + 1})"
        self.set_params({str(number): dict(row) for number, row in enumerate(table.rows, 1)}, name)

    def resumed(self, step: int) -> None:
        """The run resumes at this step, for a service that must know: later steps that were already tracked
        are tracked again."""

    def track_media(self, media: Media) -> None:
        """Track a text, an image or a histogram; `media` lists the supported kinds. Raises `TrackerError` for
        another one."""
        self._refuse(f"{media.kind}s")

    def track_artifact(self, artifact: Artifact) -> None:
        """Track files, such as the tuned model. Raises `TrackerError` unless `takes_artifacts`."""
        self._refuse("artifacts")

    def _refuse(self, what: str) -> None:
        if type(self) is not Tracker:
            raise TrackerError(f"{self.name} stores no {what}")

    def flush(self) -> None:
        """Return once the service has stored everything delivered so far.

        For SDKs that send in the background. The caller then counts the events as delivered.
        """

    def holds(self, last: int) -> bool:
        """Whether the service still holds what was delivered, as far as a cheap check can tell: its storage
        may have been removed, replaced or restored to an older state. `last` is the number of the last event
        with metrics, params or a table that any process delivered to this run; 0 for none.

        Called after `open`, after each `flush` and after `close`. On `False`, everything is delivered again.
        """
        return True

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        """Whether the storage still has the closed run `start.tracker_run_id` with the event `last`, checked
        without opening the run and without a service. `None` when that cannot be determined.

        `trackers sync` calls it for complete runs. On `False`, everything is delivered again.
        """
        return None

    def appear(self) -> None:
        """Make the run visible, with the metrics that it has, whatever happens to the process. For a
        standalone tracker; called when a training starts and for each new metric."""

    def train_ended(self, status: Status) -> None:
        """Show the run with this status: a training has ended, and the run stays open for what may follow,
        such as an evaluation. For a standalone tracker."""
        self.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        """End the run with its status; `error` is one line about why it failed.

        Returns once the service has stored everything.
        """

    def check(self, timeout: float) -> Check:
        """Determine, within `timeout` seconds, whether a run could be tracked now.

        Changes nothing: it creates no run, writes no credential and never prompts. The caller has already
        checked that the SDK is installed and can be imported.
        """
        return Check("ok", "ready")


def vendors_callback(asked: Any) -> Any:
    """The vendor's callback that a tracker of any shape provides. `None` when it provides none, like one
    whose `get_hf_callback` returns `None` or what the base class returns.

    Raises `TrackerError` for anything but a callback, and whatever the tracker raises.
    """
    own = getattr(type(asked), "get_hf_callback", None)
    if own is None or own is Tracker.get_hf_callback:  # which would import transformers
        return None
    found = asked.get_hf_callback()
    if found is None or found is getattr(asked, "own_callback", None):
        return None
    if isinstance(found, type):
        raise TrackerError(f"get_hf_callback returned the class {found.__name__}; return an instance of it")
    if not any(callable(getattr(found, name, None)) for name in dir(found) if name.startswith("on_")):
        raise TrackerError(f"get_hf_callback returned {type(found).__name__}, which is not a TrainerCallback")
    return found


def installed_version(package: str | None, distributions: tuple[str, ...] = ()) -> str | None:
    """The version of the distribution that provides `package`, determined without importing it: `None` when
    it is not installed, an empty string when no package is needed. `distributions` are the names that it may
    have when it is not named like the package."""
    import importlib.metadata
    import importlib.util

    if package is None:
        return ""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:  # the package that it is part of
        return None
    if spec is None:
        return None
    for name in distributions or (package,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"
