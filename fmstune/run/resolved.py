"""Determine a run's directory and the configuration that applies there, without creating anything."""

from __future__ import annotations

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.launch.environment import is_main_process, require_whole_launch
from fmstune.run.directory import RunDirectory, claim
from fmstune.run.resume import changed_settings, require_fitting, resumed


def resolved_run(
    config: RunConfig, out: RunConsole, resume: str | None, *, overwrite: bool
) -> tuple[RunConfig, RunDirectory]:
    """Return the configuration and the run's directory. A checkpoint to resume from determines part of the
    configuration; differences from the given settings are reported."""
    require_whole_launch()
    directory = claim(config, resume, overwrite=overwrite, main=is_main_process())
    if directory.finished:
        out.say("done", f"the run in {directory.path} is already finished; there is nothing left to do")
        if changed := changed_settings(directory.path, config):
            out.warn(f"not applied: {changed}. To train further with it, use --resume {directory.path}")
    if directory.checkpoint is not None:
        require_fitting(directory.checkpoint, config)
        now = resumed(directory.checkpoint, config)
        config = now.config
        if now.changed:
            out.warn(f"changed since the run was started: {now.changed}")
        if now.held:
            out.warn(
                f"not applied, since the checkpoint determines the value: {now.held}. To train with it, "
                f"start a new run with --model {directory.checkpoint}"
            )
    return config, directory
