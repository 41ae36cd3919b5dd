"""The tracker interface: all that the author of a new tracker needs to know.

A tracker turns what a run reports (metrics, params, a final status) into calls of one SDK. It may
raise, hang or die: it runs in a process of its own, and whatever it fails to deliver stays in the
run's journal. So a tracker never catches its SDK's errors, never retries and never logs about them.

Nothing in this module imports an SDK, transformers or another part of fmstune.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
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
    """A place that runs are tracked in; a bare `Tracker` is the tracker `none` and does nothing.

    A new tracker needs `track` and, for params, `set_params`. Everything else has a working default.
    Set `Config` to a dataclass to have the options typed, checked and listed; without one, the
    tracker takes any options as the mapping `self.config`.
    """

    registered_name: ClassVar[str] = "none"
    description: ClassVar[str] = "no tracking"
    package: ClassVar[str | None] = None
    """The import name of the SDK; `None` if none is needed."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """The names under which the SDK is installed, where these are others than `package`."""
    install_hint: ClassVar[str | None] = None
    """The command that installs the SDK."""
    Config: ClassVar[type[Any] | None] = None
    limits: ClassVar[Limits] = Limits()
    idempotent: ClassVar[bool] = False
    """Whether an event that is delivered a second time changes nothing in the service."""
    repeated_steps: Literal["replaced", "kept"] = "kept"
    """What becomes of the old values when a resumed run logs steps again: the service replaces them, or
    keeps them beside the new ones."""
    places: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """The options, and the variables of the environment (in capitals), that say where runs go, none of them a
    secret. Those of a group stand for one another, and the first one that is given holds. A run that is
    synced in another shell continues at the place where it began."""
    continues: ClassVar[bool] = True
    """Whether a resumed run continues in the service's earlier run, rather than in a new one."""
    takes_late: bool = True
    """Whether metrics can be handed over after later ones; a service that cannot drops them in silence."""
    takes_params: ClassVar[Literal["merged", "given"]] = "merged"
    """What `set_params` is called with: everything known of the namespace so far, merged deeply, with the
    last value of each key, so that a service which replaces a namespace loses nothing; or only what
    was given in that call, for a tracker that keeps every call."""
    media: ClassVar[frozenset[MediaKind]] = frozenset()
    """Which of texts, images and histograms `track_media` takes. The others are in the run's journal only,
    and the report says so."""
    takes_artifacts: bool = False
    """Whether `track_artifact` takes files. They are in the run's directory only where it does not."""
    refers_to_files: bool = False
    """Whether what `track_artifact` has taken stays where it is, and the service only says where: the files
    are not removed then."""
    keeps_tables: ClassVar[bool] = True
    """Whether tables are kept in some form."""
    durable_on: ClassVar[Literal["call", "close"]] = "call"
    """When what was handed over is safe from a kill of this process: after each call, or after
    `close` alone. For the latter, a delivery that was cut off is done again from its start."""

    own_callback: TrainerCallback | None = None
    """What `get_hf_callback` has given, when the tracker is used alone."""

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        """Keep the configuration. Opens nothing, imports no SDK.

        `tracker_config` is an instance of `Config`, a mapping of its fields, or `None` for the
        defaults. Raises `TrackerOptionError` for an unknown option.
        """
        self.name = name or self.registered_name
        self.config: Any = self._configured(tracker_config)
        # The number, in the run's journal, of the event that is being delivered; a tracker may store
        # it to recognise an event that comes a second time. None when the tracker is used alone.
        self.seq: int | None = None
        # The optimizer step now, for what is tracked without a step of its own.
        self.step: int | None = None
        # When that event happened, in Unix seconds. None when the tracker is used alone.
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
        """The callback that feeds this tracker from any `transformers.Trainer`, in one run. It is the same
        one until its `close`.

        What the tracker raises is logged and never reaches the training, unless `strict`.
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

        Several calls for a namespace add up, also when the run is opened again (see `takes_params`).
        Raises `ValueError` when `params` is not a mapping.
        """
        if params is not None and not isinstance(params, Mapping):
            raise ValueError(f"{self.name}.set_params needs a mapping, got {type(params).__name__}")

    @property
    def adapted(self) -> tuple[str, ...]:
        """What the tracker itself had to change of what it was given, or to leave out, a sentence each."""
        return ()

    @property
    def takes_whole_points(self) -> bool:
        """Whether it has a `track_point` of its own, rather than one call of `track` for each value."""
        return type(self).track_point is not Tracker.track_point

    @property
    def hears_of_resumes(self) -> bool:
        """Whether it has a `resumed` of its own."""
        return type(self).resumed is not Tracker.resumed

    # -- hooks with working defaults ----------------------------------------------------------

    def open(self, start: RunStart) -> TrackerRun:
        """Open the run, or the one of `start.tracker_run_id` again, and say what it is.

        A tracker that `open_alone` has opened continues that run, under the name given now.
        """
        return TrackerRun(id=start.tracker_run_id)

    def open_alone(self) -> None:
        """Open a run for a call that comes before `open`: the tracker is used by itself, in a script. The run
        is closed when the process ends, if nobody does it before."""
        from fmstune.trackers.alone import close_at_exit

        self.open(RunStart(name="run", directory="."))
        close_at_exit(self)

    def track_point(self, point: MetricPoint) -> None:
        """Track the metrics that were logged together; by default, one call of `track` for each."""
        for name, value in point.values.items():
            self.track(value, name, point.stage, step=point.step)

    def track_table(self, table: Table) -> None:
        """Track a table; by default as params, in a namespace of its own: `eval/samples/step 40`."""
        where = [table.stage, table.name, None if table.step is None else f"step {table.step}"]
        name = "/".join(part for part in where if part)
        if table.repeats:
            name += f" ({table.repeats + 1})"
        self.set_params({str(number): dict(row) for number, row in enumerate(table.rows, 1)}, name)

    def resumed(self, step: int) -> None:
        """The run continues from this step, for a service that has to be told: what was tracked of later
        steps is tracked once more."""

    def track_media(self, media: Media) -> None:
        """Track a text, an image or a histogram, of the kinds in `media`."""

    def track_artifact(self, artifact: Artifact) -> None:
        """Track files, such as the tuned model."""

    def flush(self) -> None:
        """Return when everything handed over so far is safe with the service.

        For SDKs that send in the background; what calls this counts the events as delivered.
        """

    def holds(self, last: int) -> bool:
        """Whether the service still holds what was handed over, as far as that can be seen in no time:
        somebody may remove its storage, replace it, or restore an older state of it. `last` is the number of
        the last event with metrics, params or a table that this run was given, by any process; 0 for none.

        Asked after `open`, after each `flush` and after `close`. On `False`, all is delivered once more.
        """
        return True

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        """Whether the storage still has the run of `start.tracker_run_id`, which was closed, with the event
        `last`: found without opening it, and without a service. `None` when that can't be seen.

        Asked by `trackers sync` of what is complete. On `False`, all is delivered once more.
        """
        return None

    def appear(self) -> None:
        """For a tracker that is used alone: a person should find the run from now on, with the metrics that
        it has, whatever becomes of the process. Called when a training begins, and for each new metric."""

    def train_ended(self, status: Status) -> None:
        """For a tracker that is used alone: a training has ended, and the run stays open for what may follow,
        such as an evaluation. A person should find the run now, with this status."""
        self.flush()

    def close(self, status: Status, error: str | None = None) -> None:
        """End the run with its status; `error` is the one line of what made it fail.

        Returns when everything handed over is safely with the service.
        """

    def check(self, timeout: float) -> Check:
        """Find out, within `timeout` seconds, whether a run could be tracked now.

        Changes nothing: it creates no run, writes no credential and never asks. That the SDK is
        installed and can be imported has been seen before this is called.
        """
        return Check("ok", "ready")


def vendors_callback(asked: Any) -> Any:
    """The vendor's callback that a tracker of any shape brings; `None` when it brings none, as one whose
    `get_hf_callback` returns `None` or what the base class returns.

    Raises `TrackerError` for what is no callback, and whatever the tracker raises.
    """
    own = getattr(type(asked), "get_hf_callback", None)
    if own is None or own is Tracker.get_hf_callback:  # which would import transformers
        return None
    found = asked.get_hf_callback()
    if found is None or found is getattr(asked, "own_callback", None):
        return None
    if not any(callable(getattr(found, name, None)) for name in dir(found) if name.startswith("on_")):
        raise TrackerError(f"get_hf_callback returned {type(found).__name__}, which is no TrainerCallback")
    return found


def installed_version(package: str | None, distributions: tuple[str, ...] = ()) -> str | None:
    """The version of the distribution that holds `package`, found without importing it: `None` when it
    is not installed, and an empty text when no package is needed. `distributions` are the names that it may
    have, when it is not called as the package."""
    import importlib.metadata
    import importlib.util

    if package is None:
        return ""
    if importlib.util.find_spec(package) is None:
        return None
    for name in distributions or (package,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"
