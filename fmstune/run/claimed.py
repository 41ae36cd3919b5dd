"""A run's directory and what holds in it, for a run and for a dry run alike: found, and nothing is made."""

from __future__ import annotations

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.launch.environment import is_main_process, require_whole_launch
from fmstune.run.directory import RunDirectory, claim
from fmstune.run.resume import changed_settings, require_fitting, resumed


def claimed(
    config: RunConfig, out: RunConsole, resume: str | None, *, overwrite: bool
) -> tuple[RunConfig, RunDirectory]:
    """The run's directory, and the configuration that holds there: that of a checkpoint decides a part of
    it. Says what differs from what is asked for."""
    require_whole_launch()
    directory = claim(config, resume, overwrite=overwrite, main=is_main_process())
    if directory.finished:
        out.say("done", f"the run in {directory.path} is finished already; there is nothing left to do")
        if changed := changed_settings(directory.path, config):
            out.warn(f"not applied: {changed}. To train on with it: --resume {directory.path}")
    if directory.checkpoint is not None:
        require_fitting(directory.checkpoint, config)
        now = resumed(directory.checkpoint, config)
        config = now.config
        if now.changed:
            out.warn(f"changed since the run was started: {now.changed}")
        if now.held:
            out.warn(
                f"not applied, since the checkpoint holds the value before: {now.held}. To train with it, "
                f"begin a run of its own with --model {directory.checkpoint}"
            )
    return config, directory
