"""The records that pass between fmstune and a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

Status = Literal["finished", "failed", "interrupted"]
"""How a run ended: completed, with an exception, or stopped from outside (a signal, a kill)."""

MOST_SHOWN = 2000
"""The most characters shown and stored of a tracker's URL or note."""

CheckState = Literal[
    "ok",
    "not_installed",
    "unsupported",
    "broken",
    "bad_option",
    "no_credentials",
    "rejected_credentials",
    "no_permission",
    "unreachable",
    "crashed",
]


class TrackerError(Exception):
    """A tracker cannot be used as requested. The message is one sentence with the remedy."""

    exit_code = 2


class TrackerOptionError(TrackerError):
    """An option of a tracker is unknown or has a wrong value."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of `Tracker.check`.

    `detail` is one sentence about what was found, `remedy` what the user can do about it.
    `latency` is the time of one round trip to `server`, in seconds.
    """

    state: CheckState
    detail: str
    remedy: str = ""
    server: str = ""
    account: str = ""
    latency: float | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the fields have the types that are declared; a tracker's author may have missed one."""
        texts = (self.detail, self.remedy, self.server, self.account)
        timed = self.latency is None or isinstance(self.latency, (int, float))
        return timed and self.state in get_args(CheckState) and all(isinstance(text, str) for text in texts)

    @property
    def ok(self) -> bool:
        """True when a run could be tracked right now."""
        return self.state == "ok"

    @property
    def outage(self) -> bool:
        """True when nothing is misconfigured: the service does not answer, or its SDK crashed."""
        return self.state in ("unreachable", "crashed")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tracker's service can store. The shared normaliser adapts values to it and reports each change.

    Names (of metrics, params and columns): `name_chars` is a regular expression's character class of the
    allowed characters, `max_name` a length in characters (`None`: no limit). With `ignores_case`, names
    that differ only in case are the same to the service. The service itself uses the metrics (`stage/name`,
    or the name if there is no stage) in `reserved_metrics` and the namespaces in `reserved_params`.
    `table_chars` and `max_table` apply to names of tables. With `joins`, stage and name become one name
    (`stage/name`), so that the metric `b/c` of the stage `a` would be `c` of `a/b`; `prefixes` maps stages
    that are joined otherwise. With `one_series`, a metric and a table of the same name would collide. With
    `paths`, names are relative paths without empty or dotted parts. With `strips_params`, the service
    strips white space from both ends of the names of params and of their namespaces. It strips the
    characters `strips` from both ends of other names, and drops anything whose name starts with `drops`.

    Values: `max_value` is the length of a string, `integer_bits` the size of a signed integer,
    `single_precision` whether metrics are stored with 24 bits and up to 3.4e38,
    `nan` and `infinite` whether metrics may be NaN or infinite, `text_metrics` whether a metric may be
    something other than a number, `nested` whether params may be nested, `text_params` whether all params
    become strings, `params_change` whether a param can be overwritten, `nul` whether a string may contain
    the NUL character, `captions` whether an image may have one. Lone surrogates, which UTF-8 cannot encode,
    never reach a tracker, nor do empty names.
    """

    name_chars: str | None = None
    max_name: int | None = None
    max_value: int | None = None
    nested: bool = True
    nan: bool = True
    infinite: bool = True
    single_precision: bool = False
    text_metrics: bool = False
    integer_bits: int | None = None
    nul: bool = True
    captions: bool = True
    ignores_case: bool = False
    params_change: bool = True
    reserved_metrics: frozenset[str] = frozenset()
    reserved_params: frozenset[str] = frozenset()
    text_params: bool = False
    paths: bool = False
    strips_params: bool = False
    strips: str = ""
    drops: str = ""
    joins: bool = False
    prefixes: Mapping[str, str] = field(default_factory=dict)
    one_series: bool = False
    table_chars: str | None = None
    max_table: int | None = None

    def prefix(self, stage: str | None) -> str:
        """The prefix of a metric's name, where the service has one name for stage and metric."""
        return "" if stage is None else self.prefixes.get(stage, f"{stage}/")


@dataclass(frozen=True, slots=True)
class RunStart:
    """What a tracker receives when it opens a run.

    `tracker_run_id` is the id that this tracker gave the run earlier (`None`: a new run), so that a
    resumed run and a late delivery continue the same run. `redelivery`: events that this run may already
    hold will be delivered again, in order. `trainer_pid` is the process id of the training process while it
    lives. `new_run_id` is for a tracker that can choose the id of a new run: 24 hexadecimal digits, the same
    for each attempt. If the process is killed after it created the run and before that was recorded, the
    next one opens the existing run, not a second one.

    `name`, `group`, `tags` and `notes` are the user's labels for the run (`run.group`, …). A tracker maps
    them to its service's terms, unless its own options set these.

    `run_id` is the run's own id, unique to it and the same for each delivery of it. To recognise an
    event that is delivered twice, store the pair of `run_id` and the event's number (`Tracker.seq`).
    The name does not identify a run: `--overwrite` gives it to the next run. Nor does the tracker's
    own run id: a run resumed in another directory continues the tracker run of the first, but is its own
    run, whose events are numbered from `after` + 1. `None`: the tracker is used standalone.

    `sessions` are the ids of the processes that wrote the run's journal, in order, the current one last. If
    a service holds data of a session that is not listed, it was fed from a later state of the run's folder,
    which was then restored from a backup, or from a copy of it: the same event numbers stand for other
    events. A tracker that recognises events by their numbers then opens another run (`TrackerRun.id`).
    """

    name: str
    directory: str
    tracker_run_id: str | None = None
    redelivery: bool = False
    trainer_pid: int | None = None
    run_id: str | None = None
    after: int = 0
    sessions: tuple[str, ...] = ()
    new_run_id: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """The run as the tracker knows it: its id there, and where to view it.

    An id other than the requested one (`RunStart.tracker_run_id`) means that this run is still empty: the
    whole journal is delivered to it.

    `delivered_through` is the `seq` of the last event of *this* run (`RunStart.run_id`) that the service
    itself reports as stored, for services that know; events up to it are not sent again. `note` is a short
    message for the user: what is left to do, or what this tracker does not store.
    """

    id: str | None = None
    url: str | None = None
    delivered_through: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        # Both are printed and written to each ledger, and a third-party tracker may return a megabyte.
        object.__setattr__(self, "url", _shortened(self.url))
        object.__setattr__(self, "note", _shortened(self.note))


def run_of(opened: Any, start: RunStart) -> TrackerRun:
    """The run that a tracker's `open` has returned; without one, it is the run that was requested. Raises
    `TrackerError` for anything else."""
    if opened is None:
        return TrackerRun(id=start.tracker_run_id)
    if not isinstance(opened, TrackerRun):
        raise TrackerError(
            f"its `open` returned {type(opened).__name__}; return a TrackerRun, such as TrackerRun(id=…)"
        )
    return opened


def _shortened(text: str | None) -> str | None:
    if not isinstance(text, str) or len(text) <= MOST_SHOWN:
        return text
    # Imported on use: `fmstune trackers list` needs none of its patterns, which take time to compile.
    from fmstune.secrets.redaction import beginning

    return f"{beginning(text, MOST_SHOWN)}… ({len(text)} characters)"


class MetricPoint(NamedTuple):
    """The metrics that were logged together; a tuple, as there may be millions.

    `seq` is the number of the event in the run's journal, `time` the Unix time in seconds when
    it was logged, `step` the optimizer step and `epoch` the fraction of the training data seen.
    `repeats` maps the names already tracked in this stage at this step to how often; steps that a resumed
    run logs again count from zero. `None` when nothing counted them: the tracker is used standalone.
    """

    values: Mapping[str, Any]
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    time: float | None = None
    seq: int | None = None
    repeats: Mapping[str, int] | None = None


MediaKind = Literal["text", "image", "histogram"]
"""What can be tracked besides numbers and tables, where a tracker can show it (`Tracker.media`)."""


@dataclass(frozen=True, slots=True)
class Media:
    """A text, an image or a histogram. `text` is the text, or an image's caption; `file` the image (PNG,
    JPEG, GIF or WebP), which a tracker copies and never changes; `counts` are those of the histogram's bins,
    which are equally wide, from `low` to `high`. The other fields are as in `Table`."""

    kind: MediaKind
    name: str
    text: str = ""
    file: Path | None = None
    counts: tuple[int | float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    stage: str | None = None
    step: int | None = None
    epoch: float | None = None
    time: float | None = None
    seq: int | None = None
    repeats: int | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files that a run delivers: those in `folder`, which a tracker copies and does not change, by their
    names relative to it. `type` is their kind: `model`, `adapter`, or any name that the user chose."""

    name: str
    type: str
    folder: Path
    files: tuple[str, ...] = ()
    size: int = 0
    step: int | None = None
    time: float | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that belong together, such as the samples of an evaluation. Each row maps column names to strings,
    numbers, booleans or `None`; a row may lack columns. The other fields are as in `MetricPoint`; `repeats`
    counts the earlier tables of the same name, stage and step."""

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
        """The columns of all rows, in the order of their first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))

    def filled(self) -> list[dict[str, Any]]:
        """The rows with all columns; what a row lacks is `None`."""
        columns = self.columns
        return [{column: row.get(column) for column in columns} for row in self.rows]


class Receiver(Protocol):
    """What a callback needs of the tracker that it feeds; `Tracker` documents the methods."""

    name: str
    step: int | None
    limits: ClassVar[Limits]
    own_callback: Any

    @property
    def takes_whole_points(self) -> bool: ...

    @property
    def adapted(self) -> tuple[str, ...]: ...

    def open(self, start: RunStart) -> TrackerRun: ...

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None: ...

    def track_point(self, point: MetricPoint) -> None: ...

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None: ...

    def appear(self) -> None: ...

    def flush(self) -> None: ...

    def train_ended(self, status: Status) -> None: ...

    def close(self, status: Status, error: str | None = None) -> None: ...


def merged(held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings of params deeply; where both have a value, `given` wins."""
    both = dict(held)
    for key, value in given.items():
        before = both.get(key)
        both[key] = (
            merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def utf8(text: str) -> str:
    r"""The text with each lone surrogate, which UTF-8 cannot encode, as its JSON escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
