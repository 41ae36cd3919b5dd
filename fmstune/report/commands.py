"""The next commands after a run, ready to paste: prompt its model, resume it, open its trackers."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fmstune.data.summary import learns_chats
from fmstune.delivery.report import DeliveryReport
from fmstune.layout import CONFIG_NAME
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.report.show import RunView
from fmstune.report.summary import RunDetail
from fmstune.report.words import printable

_ASKS = "What can you do?"


def resume_command(directory: Path) -> str | None:
    """The command that resumes an unfinished run, with all its settings; `None` if it has no checkpoint. It
    starts as many processes as fmstune or torchrun started here."""
    if newest_checkpoint(directory) is None or not (directory / CONFIG_NAME).exists():
        return None
    count = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    several = ["--nproc", count] if count != "1" else []
    return _command("train", _place(directory / CONFIG_NAME), *several, "--resume")


def next_commands(run: RunView, question: str | None = None) -> list[str]:
    """The next commands for a run: to use its model if it has finished, otherwise to finish it."""
    directory, settings = _place(run.directory), run.detail.settings
    if run.status != "finished":
        again = resume_command(run.directory)
        return [*([again] if again else []), _command("runs", "show", directory)]
    found = []
    if run.line.model is not None and run.line.method != "reward":  # which does not generate text
        raw = ["--raw"] if learns_texts(run.directory, run.detail) else []
        found.append(_command("generate", directory, *raw, "--prompt", question or _ASKS))
    if _enabled(settings.get("lora")):
        found.append(_command("merge", directory, f"{directory}-merged"))
    return [*found, _command("runs", "show", directory)]


def learns_texts(directory: Path, run: RunDetail) -> bool:
    """Whether a run's model has a chat template, which none of its training rows was written in."""
    shape = run.params.get("data", {}).get("shape")
    return isinstance(shape, str) and not learns_chats(shape) and (directory / "chat_template.jinja").exists()


def open_command(delivery: DeliveryReport) -> str | None:
    """The command that opens a tracker's run, if neither its URL nor its note does."""
    place = delivery.url or ""
    if not place or place.startswith(("http://", "https://")):
        return None
    if delivery.tracker == "aim":
        return shlex.join(["aim", "up", "--repo", place])
    return None


def _enabled(table: object) -> bool:
    return isinstance(table, dict) and table.get("enabled") is True


def _command(*arguments: str) -> str:
    return " ".join(map(_quoted, ("fmstune", *arguments)))


def _quoted(argument: str) -> str:
    """Quote an argument for a shell, on one line: control characters are escaped as in bash and zsh."""
    if printable(argument) == argument:
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"


def _place(directory: Path) -> str:
    """A directory as an argument that does not look like an option."""
    text = str(directory)
    return f"./{text}" if text.startswith("-") else text
