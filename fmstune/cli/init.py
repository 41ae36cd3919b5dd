"""`fmstune init`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_method, complete_setting, complete_tracker
from fmstune.config.methods.known import in_help
from fmstune.layout import CONFIG_FILE

if TYPE_CHECKING:
    from fmstune.console import RunConsole


def init(
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A configuration of axolotl, LLaMA-Factory, torchtune, mlx-lm, ms-swift or TRL (YAML, JSON, "
            "or the script that starts it) to translate. Other flags replace its settings.",
            metavar="FILE",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model: a directory, a hub name, or `demo`.", metavar="M")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="The training data; may be given several times.", metavar="D"),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            help="The evaluation data. Default: the data's validation split, or a part of the training data.",
            metavar="D",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The text of a row, such as '### Q: {question}\\n### A: {answer}'.", metavar="TEXT"
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out damaged rows, and list them.")
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"The training method ({in_help()}). Default: the one that fits the data.",
            metavar="NAME",
            autocompletion=complete_method,
        ),
    ] = None,
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="Train a LoRA adapter, or all weights.")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="A tracker for the runs; may be given several times.",
            metavar="T",
            autocompletion=complete_tracker,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help='Any setting, such as data.columns={question="title", answer="body"}.',
            metavar="KEY=VALUE",
            autocompletion=complete_setting,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", metavar="FILE")] = Path(
        CONFIG_FILE
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept all proposals without asking.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write a commented fmstune.toml for a model and data, or from another tool's configuration.

    Reads the first rows of the data, and proposes settings that fit them. On a terminal, asks for what the
    flags leave open; elsewhere, takes the proposals.
    """
    from fmstune.cli.terminal import screen
    from fmstune.config.load.values import dotted, parse_sets
    from fmstune.console import RunConsole
    from fmstune.errors import ConfigError
    from fmstune.requirements import require_supported
    from fmstune.run.proposal import Proposal, as_toml, found_data, inspect_rows, validation_sets, wants_lora
    from fmstune.run.resolve import check_name
    from fmstune.text import shown

    require_supported()
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} already exists; use another --output, or --overwrite.")
    sets = [*(set_ or ()), *(["data.skip_bad_rows=true"] if skip_bad_rows else ())]
    if template is not None:
        sets.append(f"data.template={json.dumps(template)}")
    if from_ is not None:
        flags: dict[str, tuple[str, Any]] = {
            "model.path": ("--model", model),
            "data.train": ("--data", [{"path": path} for path in data or ()]),
            "data.eval": ("--eval-data", [{"path": path} for path in eval_data or ()]),
            "run.method": ("--method", method),
            "lora.enabled": ("--lora" if lora else "--full", lora),
            "tracking.trackers": ("--tracker", tracker),
            **{dotted(parts): ("--set", value) for parts, value in parse_sets(sets)},
        }
        _translate(from_, {key: flag for key, flag in flags.items() if flag[1] not in (None, [])}, output)
        return
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    found = found_data()
    if model is None:
        if not asks and (data or found):
            raise ConfigError(
                f"no model is given for {shown(data[0] if data else found)}; add --model MODEL."
            )
        model = _asked("model (a directory, a hub name, or demo)", "demo", asks)
    if not data:
        proposed = found or ("demo" if model == "demo" else None)
        if proposed is None and not asks:
            raise ConfigError("no training data is given, and none was found here; add --data FILE.")
        data = shlex.split(
            _asked("training data (files, or hub names)", proposed and shlex.quote(proposed), asks)
        )
    out = RunConsole(screen())
    facts = inspect_rows(data, method, sets)
    out.say("data", facts.line())
    lora = wants_lora(model) if lora is None and not asks else lora
    if lora is None:
        lora = typer.confirm("train a LoRA adapter, instead of all weights?", wants_lora(model), err=True)
    if tracker is None:
        named = _asked("trackers (such as aim or wandb; none)", "none", asks)
        tracker = [name for name in named.replace(",", " ").split() if name != "none"]
    for name in tracker:
        check_name(name)
    held_out = eval_data or validation_sets(data)
    proposal = Proposal(model, data, held_out, facts.method, lora, tracker, facts, sets)
    text = as_toml(proposal)
    _require_right(text)
    _write(output, text, out)


def _write(output: Path, text: str, out: RunConsole) -> None:
    from fmstune.access import reason
    from fmstune.errors import RunError
    from fmstune.system.files import whole_file

    try:
        with whole_file(output) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output} cannot be written: {reason(error, output)}.") from error
    given = "" if output == Path(CONFIG_FILE) else f" {output}"
    out.say("next", f"fmstune train{given} --dry-run")
    out.say("", f"fmstune train{given}")
    typer.echo(str(output))


def _translate(path: Path, flags: Mapping[str, tuple[str, Any]], output: Path) -> None:
    """Write the translation of another tool's configuration."""
    from fmstune.cli.terminal import screen
    from fmstune.config.load.layers import keys_of_all_methods
    from fmstune.config.translate.foreign import read_foreign
    from fmstune.config.translate.translation import checked, shown_value, translate
    from fmstune.console import RunConsole
    from fmstune.secrets.redaction import know_secrets, secret_texts
    from fmstune.text import counted, shown_path

    theirs = read_foreign(path)
    know_secrets(secret_texts(dict(theirs.settings)))
    translation = translate(theirs, keys_of_all_methods())
    for key, (flag, value) in flags.items():
        translation.here[key], translation.source[key] = value, flag
    text = checked(translation, output.name, lambda text, over: _require_right(text, output.name, over))
    out = RunConsole(screen())
    tool = theirs.tool or "an unknown tool"
    count = counted(len(theirs.settings) + len(theirs.unresolved), "setting")
    out.say("from", f"{shown_path(path)}, a configuration of {tool}: {count}")
    for note in translation.notes:
        out.warn(note)
    for key, value, why in translation.left:
        out.warn(f"not translated: {key} = {shown_value(value)}: {why}")
    if translation.needless:
        out.say("rest", f"nothing is to be set for {', '.join(translation.needless)}")
    _write(output, text, out)


def _asked(what: str, proposed: str | None, asks: bool) -> str:
    if not asks:
        return proposed or ""
    answer: str = typer.prompt(what, proposed, err=True)
    return answer.strip()


def _require_right(text: str, name: str = CONFIG_FILE, over: Mapping[str, Any] | None = None) -> None:
    """Raise `ConfigError` for a file of this name that `fmstune train` would refuse. Settings in `over`
    replace those of the file."""
    import tempfile

    from fmstune.config.load.layers import FROM_PYTHON
    from fmstune.run.resolve import load_config as load

    flags = [(key, value, FROM_PYTHON) for key, value in (over or {}).items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        load(path, flags, [], [], None, trains=False)
