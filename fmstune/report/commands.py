"""The next commands after a run, ready to paste: they ask its model, resume it, and open what tracked it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fmstune.delivery.report import DeliveryReport
from fmstune.layout import CONFIG_NAME
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.report.show import RunView
from fmstune.report.words import printable

_ASKS = "What can you do?"


def resuming(directory: Path) -> str | None:
    """What resumes a run that did not finish, with all its settings; `None` where there is nothing to resume
    from. Of several processes that fmstune or torchrun has started here it starts as many."""
    if newest_checkpoint(directory) is None or not (directory / CONFIG_NAME).exists():
        return None
    count = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    several = ["--nproc", count] if count != "1" else []
    return _command("train", _place(directory / CONFIG_NAME), *several, "--resume")


def following(run: RunView, question: str | None = None) -> list[str]:
    """What people do next with a run: with its model when it has finished, and else to finish it."""
    directory, settings = _place(run.directory), run.detail.settings
    if run.status != "finished":
        again = resuming(run.directory)
        return [*([again] if again else []), _command("runs", "show", directory)]
    found = []
    if run.line.method != "reward":  # which writes no text
        found.append(_command("generate", directory, "--prompt", question or _ASKS))
    if _enabled(settings.get("lora")):
        found.append(_command("merge", directory, f"{directory}-merged"))
    return [*found, _command("runs", "show", directory)]


def opening(delivery: DeliveryReport) -> str | None:
    """What opens a tracker's run, where neither its URL nor its note says that."""
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
    """For a shell, and on one line: what a terminal would obey is written as bash and zsh read it."""
    if printable(argument) == argument:
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"


def _place(directory: Path) -> str:
    """A directory as an argument, which no option looks like."""
    text = str(directory)
    return f"./{text}" if text.startswith("-") else text
