"""The tracker `wandb`: Weights & Biases, online, offline or disabled.

W&B's own ways of configuration stay in force: an option that is not given here is W&B's to find, in
`WANDB_*`, its settings files or `~/.netrc`. What is said of the SDK was seen with wandb 0.31.0.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.secrets.forms import REDACTED
from fmstune.secrets.names import is_secret_name
from fmstune.secrets.redaction import hide
from fmstune.trackers.base import Tracker
from fmstune.trackers.continued import MARK, is_of_another, mark, note
from fmstune.trackers.records import (
    Check,
    Limits,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerRun,
    merged,
)
from fmstune.trackers.wandb_account import WandbUnusable, ask_server, find_api_key, reason, server_address
from fmstune.trackers.wandb_files import (
    OfflineRun,
    begin_offline,
    continued_by_another,
    end_offline,
    remove_cut_off,
    require_writable,
    to_sync,
)

if TYPE_CHECKING:
    import wandb

MODES = ("online", "offline", "disabled")
EXIT_CODES: Mapping[Status, int] = {"finished": 0, "failed": 1, "interrupted": 255}
"""W&B shows 0 as finished, others as failed; 255 is what its SDK itself reports for Ctrl-C."""

_MOST_NAME = 128  # the service refuses a run with a longer one, when it is opened
_AXES = ("train/global_step", "train/epoch")
_LOST = ("filestream: fatal error", "runupserter: failed to upload")
_INIT_TIMEOUT = 30.0


@dataclass(frozen=True)
class WandbOptions:
    """Options of the tracker `wandb`. One that is not given is left to W&B."""

    mode: str | None = field(
        default=None,
        metadata={"help": "online, offline or disabled; else WANDB_MODE, else online."},
    )
    project: str | None = field(
        default=None,
        metadata={"help": 'The project; else WANDB_PROJECT, else "fmstune".'},
    )
    entity: str | None = field(
        default=None,
        metadata={"help": "The user or team that owns the run; else WANDB_ENTITY, else yours."},
    )
    name: str | None = field(
        default=None,
        metadata={"help": "The run's display name; else WANDB_NAME, else the run's own."},
    )
    group: str | None = field(default=None, metadata={"help": "The group that the run belongs to."})
    tags: tuple[str, ...] = field(default=(), metadata={"help": "Tags, of 1 to 64 characters each."})
    notes: str | None = field(default=None, metadata={"help": "A longer description of the run."})
    dir: str | None = field(
        default=None,
        metadata={"help": "Where the folder wandb/ is put; else WANDB_DIR, else the current folder."},
    )


class WandbTracker(Tracker):
    """Feeds one W&B run; its step is the event's number in the journal, its x-axis the global step.

    W&B drops a row whose step is not above the last one that it holds. Event numbers always rise,
    so that an event which comes twice is kept once, and `train/global_step` may fall back, as it
    does after a resume.
    """

    registered_name = "wandb"
    description = "Weights & Biases"
    package = "wandb"
    install_hint = "pip install wandb"
    Config = WandbOptions
    # Found by throwing values at wandb 0.31.0, and reading its offline files: a larger integer than fits 64
    # bits may become `inf`; the reserved names are dropped or overwritten without a word; a table is a file.
    limits = Limits(
        text_metrics=True,
        integer_bits=64,
        reserved_metrics=frozenset({"_step", "_timestamp", "_runtime", "_wandb", *_AXES}),
        reserved_params=frozenset({"_wandb", MARK}),
        joins=True,
        one_series=True,
        table_chars="A-Za-z0-9_. -",
        max_table=64,
    )
    # Rows wait in the process wandb-core: up to 15 s until they are sent, up to 15 s or 32 KiB
    # until they are on disk. It ends with the shipper, and what it held is gone.
    durable_on = "close"
    takes_late = False  # a row whose step is below the last one's is dropped
    config: WandbOptions

    def __init__(self, name: str | None = None, tracker_config: Any = None) -> None:
        super().__init__(name, tracker_config)
        self._run: wandb.Run | None = None
        self._first_step = 0
        self._resumed = False
        self._notes: list[str] = []
        self._offline: OfflineRun | None = None

    def open(self, start: RunStart) -> TrackerRun:
        """Open or resume the W&B run.

        `start.redelivery` means that an earlier delivery was cut off and comes again: offline, the
        folder which that one left is removed, so that the run is not there twice. A run that is
        resumed without it gets a second folder of the same id, which `wandb sync` merges.
        """
        import wandb

        settings = self._settings()
        if self._run is not None:  # opened by `open_alone`
            self._run.name = self._fitted(self.config.name or settings.run_name or start.name)
            return self._opened_run(self._run)
        if settings._offline and not settings._noop:
            start = self._offline_start(start, Path(settings.wandb_dir))
        elif not settings._noop:
            find_api_key(settings)  # without any, `wandb.init` would ask at a terminal
        # Only here can the login's "Loaded credentials" be silenced and a call of git be avoided.
        wandb.setup(wandb.Settings(silent=True, disable_git=True))
        run = self._init(start, settings)
        # Of a resumed run, `run.step` is 0 until something is logged; `starting_step` is right.
        self._first_step = 0 if run.disabled else run.starting_step
        self._resumed = start.tracker_run_id is not None
        if run.offline and not run.disabled:
            self._offline = begin_offline(run, start, Path(settings.wandb_dir))
        elif start.run_id is not None and not run.disabled:
            run = self._claimed(run, start, settings)
        self._run = run
        # As transformers' own WandbCallback has them.
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        return self._opened_run(run)

    def _init(self, start: RunStart, settings: wandb.Settings) -> wandb.Run:
        import wandb

        # The service has this config before any row. But it would hide the mark of a run that is there.
        new = start.tracker_run_id is None and settings.run_id is None
        marked = start.run_id is not None and (new or settings._offline)
        return wandb.init(
            **self._init_options(start, settings),
            id=start.tracker_run_id,
            config={MARK: mark(start)} if marked else None,
            resume="allow" if start.tracker_run_id else None,
            reinit="create_new",  # never the run that a user's own script has open
            settings=wandb.Settings(**_quiet_settings(start, settings)),
        )

    def _claimed(self, run: wandb.Run, start: RunStart, settings: wandb.Settings) -> wandb.Run:
        """The W&B run, when the rows which it holds are this run's or came before it; else another.

        W&B drops a row whose step it holds, whoever logged it. Two runs that were resumed from one checkpoint
        in directories of their own both continue its W&B run, under the same numbers: the second one gets a
        W&B run of its own.
        """
        found: Any = run.config.get(MARK)
        owner = found.get("run_id") if isinstance(found, Mapping) else None
        if owner is None and start.tracker_run_id:  # an earlier version left no mark
            owner = start.run_id
        self._resumed = owner == start.run_id and not is_of_another(found, start)
        if self._resumed:
            if found != mark(start):  # from now on, another process of this run writes it
                self._note_owner(run, start)
            return run
        if self._first_step <= start.after + 1 and not is_of_another(found, start):
            self._note_owner(run, start)
            return run
        run.finish()
        if start.tracker_run_id is None or settings.run_id is not None:
            raise TrackerError(
                f"The W&B run {run.id} holds other points; unset WANDB_RUN_ID and WANDB_RESUME."
            )
        self._first_step = 0
        return self._init(self._of_its_own(start), settings)

    @staticmethod
    def _note_owner(run: wandb.Run, start: RunStart) -> None:
        config: Any = run.config  # its methods are not typed
        config.update({MARK: mark(start)}, allow_val_change=True)

    def holds(self, last: int) -> bool:
        return self._offline is None or self._offline.is_there()

    def _offline_start(self, start: RunStart, folder: Path) -> RunStart:
        require_writable(folder)
        if start.tracker_run_id is None or start.run_id is None:
            return start
        if start.redelivery:
            remove_cut_off(folder, start)
        return self._of_its_own(start) if continued_by_another(folder, start) else start

    def _of_its_own(self, start: RunStart) -> RunStart:
        self._notes.append(note(start))
        return dataclasses.replace(start, tracker_run_id=None)

    def _opened_run(self, run: wandb.Run) -> TrackerRun:
        if run.disabled:
            return TrackerRun(run.id, note=_disabled())
        notes, url = self._notes, None
        if run.offline:  # which prints a warning when it is asked for its URL
            notes = [*notes, f"offline, send it with `wandb sync {to_sync(run)}`"]
        else:
            url = run.url
        # `delivered_through` stays unknown: W&B sends rows every 15 s and params every 6 s, so that
        # the last row's number does not tell that the params before it have arrived. Rows that W&B
        # holds are left out by `track_point`; params that come again change nothing.
        return TrackerRun(run.id, url, note=" · ".join(dict.fromkeys(notes)) or None)

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        super().track(metric, name, stage, step=step)
        self.track_point(MetricPoint({name: metric}, stage, step, seq=self.seq))

    def track_point(self, point: MetricPoint) -> None:
        self._log(point.values, point)

    def track_table(self, table: Table) -> None:
        import wandb

        columns = list(table.columns)
        rows = [[row.get(column) for column in columns] for row in table.rows]
        self._log({table.name: wandb.Table(columns, rows, allow_mixed_types=True)}, table)

    def _log(self, values: Mapping[str, Any], point: MetricPoint | Table) -> None:
        run = self._opened()
        if self._resumed and point.seq is not None and point.seq < self._first_step:
            return  # W&B holds it, and would drop it with a warning for each
        prefix = f"{point.stage}/" if point.stage else ""
        row = {f"{prefix}{name}": value for name, value in values.items()}
        where = {
            "train/global_step": point.step,
            "train/epoch": point.epoch,
            "_timestamp": point.time,  # W&B puts its own only where there is none
        }
        row |= {name: value for name, value in where.items() if value is not None}
        # With a step and no `commit`, W&B would hold the row back until the next one.
        run.log(row, step=point.seq, commit=True)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        config: Any = self._opened().config  # its methods are not typed
        given = dict(params) if name is None else {name: merged(config.get(name) or {}, params)}
        config.update(given, allow_val_change=True)

    def train_ended(self, status: Status) -> None:
        self._opened().summary.update({"fmstune/status": status})

    def close(self, status: Status, error: str | None = None) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        run.summary.update({"fmstune/status": status} | ({"fmstune/error": error} if error else {}))
        run.finish(exit_code=EXIT_CODES[status])
        if run.disabled:
            return
        log = Path(run.settings.log_internal)
        _wait_for_core()
        if run.offline:
            end_offline(run)
        elif lost := _lost_upload(log):
            raise TrackerError(f"W&B did not take the whole run: {lost}.")

    def check(self, timeout: float) -> Check:
        try:
            settings = self._settings()
            if settings._noop:
                return Check("ok", _disabled())
            if settings._offline:
                require_writable(Path(settings.wandb_dir))
                detail = f"offline, in {settings.wandb_dir}, to be sent later with `wandb sync`"
                return Check("ok", detail, server=settings.wandb_dir)
            key = find_api_key(settings)
        except WandbUnusable as failed:
            return failed.check
        server = server_address(settings)
        if key is None:
            return Check("ok", "uses an identity token, which only a run can verify", server=server)
        return ask_server(settings, key, server, timeout)

    # -- the rest -----------------------------------------------------------------------------

    def _opened(self) -> wandb.Run:
        if self._run is None:
            self.open_alone()
        assert self._run is not None
        return self._run

    def _settings(self) -> wandb.Settings:
        """What W&B would run with: its files, `WANDB_*`, then our options. Reads only.

        The SDK's own session is not used: it keeps the first environment it saw, and credentials.
        """
        import wandb
        from wandb.errors import UsageError

        options = self.config
        if options.mode is not None and options.mode not in MODES:
            raise WandbUnusable("bad_option", f"mode is {options.mode!r}", f"use {', '.join(MODES)}")
        given = {
            # transformers' own variable, which the SDK does not know and its users mean.
            "mode": options.mode or ("disabled" if _disabled_by_variable() else None),
            "project": options.project,
            "entity": options.entity,
            "run_tags": options.tags or None,
            "root_dir": str(Path(options.dir).expanduser().absolute()) if options.dir else None,
        }
        settings = wandb.Settings(silent=True)
        folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
        settings.settings_system = str(Path(folder, "settings").expanduser())
        try:
            where = "W&B's settings file"
            settings.update_from_system_settings()
            for where in sorted(os.environ):  # one by one: the SDK's error does not name the variable
                settings.update_from_env_vars({where: os.environ[where]})
            where = f"trackers.{self.name}"
            settings.update_from_dict(given)
        except (ValueError, UsageError) as error:
            shown = f" = {_shown(where, os.environ[where])}" if where in os.environ else ""
            raise WandbUnusable(
                "bad_option", f"{where}{shown}: {reason(error)}", f"correct {where}"
            ) from None
        if settings.entity is not None and not re.fullmatch(r"[\w.-]+", settings.entity):
            raise WandbUnusable("bad_option", f"entity {settings.entity!r} is no user or team name")
        return settings

    def _fitted(self, name: str) -> str:
        if len(name) <= _MOST_NAME:
            return name
        self._notes.append(f"its name there is cut to {_MOST_NAME} characters")
        return name[:_MOST_NAME]

    def _init_options(self, start: RunStart, settings: wandb.Settings) -> dict[str, Any]:
        options = self.config
        given = {
            "mode": "disabled" if settings._noop else options.mode,
            "project": settings.project or "fmstune",
            "entity": options.entity,
            "name": self._fitted(options.name or settings.run_name or start.name),
            "group": options.group,
            "tags": options.tags or None,
            "notes": options.notes,
            "dir": settings.root_dir if options.dir else None,
        }
        return {key: value for key, value in given.items() if value is not None}


def _quiet_settings(start: RunStart, settings: wandb.Settings) -> dict[str, Any]:
    """The run takes what it is given and finds out nothing: by default, wandb 0.31 adds the command
    line, the script's path and source, the git remote and diff, and the installed packages."""
    quiet: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "x_disable_meta": True,  # not x_disable_machine_info, which ends the system metrics as well
        "x_save_requirements": False,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "label_disable": True,  # it would read the main script
        "program": "fmstune",
        # W&B's "Stop" button would interrupt this process, which is not the training.
        "stop_fn": lambda: None,
        "finish_timeout_raises": True,  # should WANDB_FINISH_TIMEOUT be set: no silent loss
    }
    if "init_timeout" not in settings.model_fields_set:
        quiet["init_timeout"] = _INIT_TIMEOUT
    if start.trainer_pid is None:
        quiet["x_disable_stats"] = True  # they would be those of this process
    else:
        quiet["x_stats_pid"] = start.trainer_pid
    return quiet


def _wait_for_core() -> None:
    """Wait until wandb-core has written all and ended, unless a script's own run still needs it.

    `finish` returns up to 50 ms before the end of an offline file is written: of 40 runs of 400 rows
    read at once, one lacked its last rows. The SDK waits for nothing but the end of the process.
    """
    import wandb
    from wandb.sdk import wandb_setup

    if wandb_setup.singleton().most_recent_active_run is not None:
        return
    try:
        wandb.teardown()
    except SystemExit as error:  # so the SDK passes on an exit code of wandb-core
        raise TrackerError(f"W&B's process wandb-core failed with exit code {error.code}.") from None


def _lost_upload(log: Path) -> str | None:
    """The error that ended the upload, from the log of wandb-core; `None` if all was taken.

    After a 401 or 403 in mid-run, `finish` returns at once and without a word though nothing was
    sent; this log is the only place that tells.
    """
    if not log.exists():
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    fatal = next((line for line in lines if any(words in line for words in _LOST)), None)
    if fatal is None:
        return None
    status = re.search(r"(?:upload: |returned error )(\d{3})", fatal)
    return f"its upload ended with {f'HTTP {status[1]}' if status else 'an error'}, see {log}"


def _shown(variable: str, value: str) -> str:
    """The value of a variable in a message, without what is a secret in it."""
    return REDACTED if is_secret_name(variable) else ascii(hide(value)[:80])


def _disabled_by_variable() -> bool:
    return os.environ.get("WANDB_DISABLED", "").upper() in ("1", "ON", "YES", "TRUE")


def _disabled() -> str:
    by = " by WANDB_DISABLED" if _disabled_by_variable() else ""
    return f"disabled{by}: nothing is sent to W&B and nothing is kept for it"
