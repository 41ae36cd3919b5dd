"""The tracker `wandb`: Weights & Biases, online, offline or disabled.

W&B's own configuration still applies: it looks up an option that is not given here in
`WANDB_*`, its settings files or `~/.netrc`. The SDK's behaviour was observed with wandb 0.31.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.trackers.continued import MARK, is_of_another, mark, note
from fmstune.trackers.records import (
    Artifact,
    Check,
    Limits,
    Media,
    MetricPoint,
    RunStart,
    Status,
    Table,
    TrackerError,
    TrackerRun,
    merged,
)
from fmstune.trackers.unusable import require_writable
from fmstune.trackers.wandb.account import WandbUnusable, ask_server, find_api_key, server_address
from fmstune.trackers.wandb.active import closed, hide_from_init, shown_to_sdk
from fmstune.trackers.wandb.files import (
    OfflineRun,
    begin_offline,
    continued_by_another,
    is_stored,
    lost_upload,
    remove_cut_off,
    to_sync,
    wait_for_core,
)
from fmstune.trackers.wandb.media import wandb_artifact, wandb_object
from fmstune.trackers.wandb.settings import (
    WandbOptions,
    disabled,
    fitted,
    found_settings,
    init_options,
    quiet_settings,
)
from fmstune.trackers.whole_points import WholePointTracker

if TYPE_CHECKING:
    import wandb

EXIT_CODES: Mapping[Status, int] = {"finished": 0, "failed": 1, "interrupted": 255}
"""W&B shows 0 as finished, others as failed; 255 is what its SDK itself reports for Ctrl-C."""

_AXES = ("train/global_step", "train/epoch")


class WandbTracker(WholePointTracker):
    """Feed one W&B run. Its step is the event's number in the journal, its x-axis the global step.

    W&B drops a row whose step is not above the last one that it holds. Event numbers always rise, so that
    an event that is delivered twice is stored once, and `train/global_step` may decrease, as it does after
    a resume.
    """

    registered_name = "wandb"
    description = "Weights & Biases"
    package = "wandb"
    install_hint = "pip install wandb"
    Config = WandbOptions
    takes_artifacts = True
    places = (
        ("WANDB_BASE_URL",),
        ("entity", "WANDB_ENTITY"),
        ("project", "WANDB_PROJECT"),
        ("mode", "WANDB_MODE", "WANDB_DISABLED"),
        ("dir", "WANDB_DIR"),
    )
    media = frozenset({"text", "image", "histogram"})
    # Found by fuzzing wandb 0.31.0 and reading its offline files: an integer beyond 64 bits may become `inf`;
    # reserved names are dropped or overwritten without a warning; a table is a file.
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
    # Rows wait in the process wandb-core: up to 15 s until they are sent, up to 15 s or 32 KiB until they
    # are on disk. It ends with the shipper, and its buffer is lost.
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

    @property
    def adapted(self) -> tuple[str, ...]:
        offline = self._offline
        if offline is None or not offline.lacks_earlier:
            return ()
        where = f"{offline.folder} no longer has the folders with its earlier events"
        return (f"{where}; the new one is without them",)

    def open(self, start: RunStart) -> TrackerRun:
        """Open or resume the W&B run.

        `start.redelivery` means that an interrupted delivery is repeated. Offline, the folder that it left is
        removed, so that the run does not exist twice. A run that is resumed otherwise gets a second folder
        with the same id, which `wandb sync` merges.
        """
        import wandb

        settings = found_settings(self.config, self.name)
        if self._run is not None:  # opened by `open_alone`
            self._run.name = fitted(self.config.name or settings.run_name or start.name, self._notes)
            return self._opened_run(self._run)
        if settings._offline and not settings._noop:
            start = self._offline_start(start, Path(settings.wandb_dir))
        elif not settings._noop:
            find_api_key(settings)  # without one, `wandb.init` would prompt at a terminal
        # The only place to silence the login's "Loaded credentials" and to avoid a call of git.
        wandb.setup(wandb.Settings(silent=True, disable_git=True))
        if settings.run_id is not None or settings.resume:  # the environment selects the run
            start = dataclasses.replace(start, new_run_id=None)
        run = self._init(start, settings)
        # In a resumed run, `run.step` is 0 until something is logged; `starting_step` is right.
        self._first_step = 0 if run.disabled else run.starting_step
        self._resumed = start.tracker_run_id is not None
        if run.offline and not run.disabled:
            self._offline = begin_offline(run, start, Path(settings.wandb_dir))
        elif start.run_id is not None and not run.disabled:
            run = self._claimed(run, start, settings)
        self._run = run
        # As in transformers' own WandbCallback.
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        hide_from_init(run)
        return self._opened_run(run)

    def _init(self, start: RunStart, settings: wandb.Settings) -> wandb.Run:
        import wandb

        # The service gets this config before any row. But it would hide the mark of an existing run.
        new = start.tracker_run_id is None and settings.run_id is None
        marked = start.run_id is not None and (new or settings._offline)
        wanted = start.tracker_run_id or start.new_run_id
        return wandb.init(
            **init_options(self.config, settings, start, self._notes),
            id=wanted,
            config={MARK: mark(start)} if marked else None,
            resume="allow" if wanted else None,
            reinit="create_new",  # never the run that a user's own script has open
            settings=wandb.Settings(**quiet_settings(start, settings)),
        )

    def _claimed(self, run: wandb.Run, start: RunStart, settings: wandb.Settings) -> wandb.Run:
        """Return the W&B run if its rows are this run's or precede it; else another one.

        W&B drops a row whose step it holds, whoever logged it. Two runs that were resumed from one checkpoint
        in different directories both continue its W&B run, under the same numbers: the second one gets its
        own W&B run.
        """
        found: Any = run.config.get(MARK)
        owner = found.get("run_id") if isinstance(found, Mapping) else None
        if owner is None and start.tracker_run_id:  # an earlier version left no mark
            owner = start.run_id
        # A process that was killed while opening a new run has left no rows in it.
        taken = start.tracker_run_id is None and start.new_run_id is not None and self._first_step > 0
        self._resumed = owner == start.run_id and not is_of_another(found, start) and not taken
        if self._resumed:
            if found != mark(start):  # from now on, another process of this run writes it
                self._note_owner(run, start)
            return run
        if self._first_step <= start.after + 1 and not is_of_another(found, start) and not taken:
            self._note_owner(run, start)
            return run
        run.finish()
        if settings.run_id is not None or (start.tracker_run_id is None and start.new_run_id is None):
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

    def is_stored(self, start: RunStart, last: int) -> bool | None:
        settings = found_settings(self.config, self.name)
        if not settings._offline or settings._noop or start.tracker_run_id is None:
            return None
        return is_stored(Path(settings.wandb_dir), start, last)

    def _offline_start(self, start: RunStart, folder: Path) -> RunStart:
        require_writable(folder, WandbUnusable)
        if start.run_id is None:
            return start
        if start.redelivery or start.tracker_run_id is None:
            remove_cut_off(folder, start)
        if start.tracker_run_id is None:
            return start
        return self._of_its_own(start) if continued_by_another(folder, start) else start

    def _of_its_own(self, start: RunStart) -> RunStart:
        self._notes.append(note(start))
        return dataclasses.replace(start, tracker_run_id=None, new_run_id=None)

    def _opened_run(self, run: wandb.Run) -> TrackerRun:
        if run.disabled:
            return TrackerRun(run.id, note=disabled())
        notes, url = self._notes, None
        if run.offline:  # whose URL prints a warning when read
            notes = [*notes, f"offline, send it with `{to_sync(run)}`"]
        else:
            url = run.url
        # `delivered_through` stays unknown: W&B sends rows every 15 s and params every 6 s, so the last row's
        # number does not show that earlier params have arrived. `track_point` skips rows that W&B holds;
        # sending params again changes nothing.
        return TrackerRun(run.id, url, note=" · ".join(dict.fromkeys(notes)) or None)

    def track_point(self, point: MetricPoint) -> None:
        values, stage = self._fitted_or_own(point)
        self._log(values, point if stage == point.stage else point._replace(stage=stage))

    def track_table(self, table: Table) -> None:
        import wandb

        columns = list(table.columns)
        rows = [[row.get(column) for column in columns] for row in table.rows]
        with shown_to_sdk(self._opened()):
            self._log({table.name: wandb.Table(columns, rows, allow_mixed_types=True)}, table)

    def track_media(self, media: Media) -> None:
        with shown_to_sdk(self._opened()):
            self._log({media.name: wandb_object(media)}, media)

    def track_artifact(self, artifact: Artifact) -> None:
        run = self._opened()
        with shown_to_sdk(run):
            # `wandb sync` reads the files later, when the run's folder may have been moved.
            folder = None if self._offline is None else self._offline.artifacts
            run.log_artifact(wandb_artifact(artifact, run.id, folder))

    def _log(self, values: Mapping[str, Any], point: MetricPoint | Table | Media) -> None:
        run = self._opened()
        if self._resumed and point.seq is not None and point.seq < self._first_step:
            return  # W&B holds it, and would drop it with a warning each
        prefix = f"{point.stage}/" if point.stage else ""
        row = {f"{prefix}{name}": value for name, value in values.items()}
        where = {
            "train/global_step": point.step,
            "train/epoch": point.epoch,
            "_timestamp": point.time,  # W&B sets its own only if there is none
        }
        row |= {name: value for name, value in where.items() if value is not None}
        # With a step and no `commit`, W&B would hold the row back until the next one.
        run.log(row, step=point.seq, commit=True)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)
        if params is None:
            return
        config: Any = self._opened().config  # its methods are not typed
        namespace, given = self._fitted_params(params, name)
        if name is not None:
            given = {namespace: merged(config.get(namespace) or {}, given)}
        config.update(given, allow_val_change=True)

    def train_ended(self, status: Status) -> None:
        self._opened().summary.update({"fmstune/status": status})

    def close(self, status: Status, error: str | None = None) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        closed(run)
        run.summary.update({"fmstune/status": status} | ({"fmstune/error": error} if error else {}))
        run.finish(exit_code=EXIT_CODES[status])
        if run.disabled:
            return
        log = Path(run.settings.log_internal)
        wait_for_core()
        if run.offline and self._offline is not None:
            self._offline.end()
        elif lost := lost_upload(log):
            raise TrackerError(f"W&B did not take the whole run: {lost}.")

    def check(self, timeout: float) -> Check:
        try:
            settings = found_settings(self.config, self.name)
            if settings._noop:
                return Check("ok", disabled())
            if settings._offline:
                require_writable(Path(settings.wandb_dir), WandbUnusable)
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
        if self._offline is not None:
            self._offline.note(self.seq)
        return self._run
