"""The tracker interface: all that the author of a new tracker needs to know.

A tracker turns what a run reports (metrics, params, a final status) into calls of one SDK. It may
raise, hang or die: it runs in a process of its own, and whatever it fails to deliver stays in the
run's journal. So a tracker never catches its SDK's errors, never retries and never logs about them.

Nothing in this module imports an SDK, transformers or another part of fmstune.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from transformers import TrainerCallback

Status = Literal["finished", "failed", "interrupted"]
"""How a run ended: to its end, with an exception, or stopped from outside (a signal, a kill)."""

MOST_SHOWN = 2000
"""Characters that are shown and kept of a tracker's URL or note."""

CheckState = Literal[
    "ok",
    "not_installed",
    "broken",
    "bad_option",
    "no_credentials",
    "rejected_credentials",
    "no_permission",
    "unreachable",
    "crashed",
]


class TrackerError(Exception):
    """A tracker cannot be used as asked. The message is one sentence with the remedy."""

    exit_code = 2


class TrackerOptionError(TrackerError):
    """An option of a tracker is unknown or has a wrong value."""


@dataclass(frozen=True, slots=True)
class Check:
    """What `Tracker.check` found.

    `detail` says in one sentence what was seen, `remedy` what the user can do about it.
    `latency` is the seconds one round trip to `server` took.
    """

    state: CheckState
    detail: str
    remedy: str = ""
    server: str = ""
    account: str = ""
    latency: float | None = None

    @property
    def ok(self) -> bool:
        """True when a run could be tracked right now."""
        return self.state == "ok"

    @property
    def outage(self) -> bool:
        """True when nothing is misconfigured: the service just does not answer now, or its SDK crashed."""
        return self.state in ("unreachable", "crashed")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tracker's service can hold. The shared normaliser adapts to it, and says what it changed.

    Names (of metrics, params and columns): `name_chars` is a regular expression's character class of the
    characters allowed, `max_name` a length in characters (`None`: no limit); with `ignores_case`, names
    that differ only in case are one to the service. It uses the metrics (`stage/name`, or the name where
    there is no stage) and the namespaces of `reserved_metrics` and `reserved_params` itself.
    `table_chars` and `max_table` are for names of tables.

    Values: `max_value` is the length of a text, `integer_bits` the size of a signed integer,
    `nan` tells whether metrics may be NaN or infinite, `text_metrics` whether a metric may be something
    else than a number, `nested` whether params may be nested, `params_change` whether a param can be given
    another value, `nul` whether a text may contain the character NUL. Lone surrogates, which no UTF-8 can
    hold, never reach a tracker, nor do empty names.
    """

    name_chars: str | None = None
    max_name: int | None = None
    max_value: int | None = None
    nested: bool = True
    nan: bool = True
    text_metrics: bool = False
    integer_bits: int | None = None
    nul: bool = True
    ignores_case: bool = False
    params_change: bool = True
    reserved_metrics: frozenset[str] = frozenset()
    reserved_params: frozenset[str] = frozenset()
    table_chars: str | None = None
    max_table: int | None = None


@dataclass(frozen=True, slots=True)
class RunStart:
    """What a tracker learns of the run when it is opened.

    `tracker_run_id` is the id that this tracker gave the run earlier (`None`: a new run), so that a
    resumed run and a late delivery go on in the same run. `redelivery` tells that events which this
    run may already hold are about to come again, in order. `trainer_pid` is the process id of the
    training process while it lives.

    `run_id` is the run's own id, unique to it and the same for each delivery of it. To recognise an
    event that comes a second time, store the pair of `run_id` and the event's number (`Tracker.seq`).
    The name does not tell runs apart: `--overwrite` gives it to the next run. Nor does the tracker's
    own run id: a run resumed in another directory continues the tracker run of the first, and is a run
    of its own, whose events are numbered from `after` + 1. `None`: the tracker is used alone.
    """

    name: str
    directory: str
    tracker_run_id: str | None = None
    redelivery: bool = False
    trainer_pid: int | None = None
    run_id: str | None = None
    after: int = 0


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """The run as the tracker knows it: its id there, and where a person can look at it.

    `delivered_through` is the `seq` of the last event of *this* run (`RunStart.run_id`) that the service
    itself says it holds, for the services that can tell; events up to it are not sent again. `note` is
    for the user, in a few words: what is left to do, or what this tracker does not keep.
    """

    id: str | None = None
    url: str | None = None
    delivered_through: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        # Both are printed, and stand in each ledger: a tracker of somebody else's may give a megabyte.
        object.__setattr__(self, "url", _shortened(self.url))
        object.__setattr__(self, "note", _shortened(self.note))


def _shortened(text: str | None) -> str | None:
    if not isinstance(text, str) or len(text) <= MOST_SHOWN:
        return text
    return f"{text[:MOST_SHOWN]}… ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """The metrics that were logged together.

    `seq` is the number of the event in the run's journal, `time` the Unix time in seconds at which
    it was logged, `step` the optimizer step and `epoch` the fraction of the training data seen.
    `repeats` has the names that were tracked in this stage and at this step before, and how often; steps
    that a resumed run logs again count from zero. `None` when nobody has counted: the tracker is used alone.
    """

    values: Mapping[str, Any]
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    time: float | None = None
    seq: int | None = None
    repeats: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that belong together, such as the samples of an evaluation. Each row maps column names to texts,
    numbers, booleans or `None`; a row may lack columns. The rest is as in `MetricPoint`; `repeats` counts the
    earlier tables of the same name, stage and step."""

    name: str
    rows: tuple[Mapping[str, Any], ...]
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    time: float | None = None
    seq: int | None = None
    repeats: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all rows, in the order in which they are met."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))


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
    install_hint: ClassVar[str | None] = None
    """The command that installs the SDK."""
    Config: ClassVar[type[Any] | None] = None
    limits: ClassVar[Limits] = Limits()
    idempotent: ClassVar[bool] = False
    """Whether an event that is delivered a second time changes nothing in the service."""
    repeated_steps: ClassVar[Literal["replaced", "kept"]] = "kept"
    """What becomes of the old values when a resumed run logs steps again: the service replaces them, or
    keeps them beside the new ones."""
    takes_late: ClassVar[bool] = True
    """Whether metrics can be handed over after later ones; a service that cannot drops them in silence."""
    takes_params: ClassVar[Literal["merged", "given"]] = "merged"
    """What `set_params` is called with: everything known of the namespace so far, merged deeply, with the
    last value of each key, so that a service which replaces a namespace loses nothing; or only what
    was given in that call, for a tracker that keeps every call."""
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
        from fmstune.trackers.hf_callback import own_callback

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

    def flush(self) -> None:
        """Return when everything handed over so far is safe with the service.

        For SDKs that send in the background; what calls this counts the events as delivered.
        """

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


def merged(held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings of params as one, deeply; where both have a value, that of `given` holds."""
    both = dict(held)
    for key, value in given.items():
        before = both.get(key)
        both[key] = (
            merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def utf8(text: str) -> str:
    r"""The text with each lone surrogate, which UTF-8 cannot hold, as the escape that JSON has for it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def installed_version(package: str | None) -> str | None:
    """The version of the distribution that holds `package`, found without importing it: `None` when it
    is not installed, and an empty text when no package is needed."""
    import importlib.metadata
    import importlib.util

    if package is None:
        return ""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
