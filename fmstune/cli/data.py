"""`fmstune data`: the training data as the model will see it, before training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_setting
from fmstune.cli.trackers import Config, Debug, Json
from fmstune.config.methods.known import METHODS, in_help
from fmstune.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fmstune.data.prepare import PreparedData
    from fmstune.data.preview import Bin, RowView

_BAR = 40
_FLAGS = {
    "DATA": "data.train",
    "--model": "model.path",
    "--template": "data.template",
    "--skip-bad-rows": "data.skip_bad_rows",
    "--strict-chat": "data.strict_chat",
    "--method": "run.method",
}


def data(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Data, as for `fmstune train --data`. Default: that of fmstune.toml.", metavar="[DATA]..."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model whose tokenizer and chat template are used.", metavar="M")
    ] = None,
    rows: Annotated[int, typer.Option(help="The number of rows to show.", metavar="N", min=0)] = 3,
    template: Annotated[
        str | None,
        typer.Option(
            help="The text of a row, such as '### Q: {question}\\n### A: {answer}'.", metavar="TEXT"
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool | None, typer.Option("--skip-bad-rows", help="Leave out damaged rows, and list them.")
    ] = None,
    strict_chat: Annotated[
        bool | None,
        typer.Option("--strict-chat", help="Refuse chats that must be changed to fit the chat template."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"The method that the data is for ({in_help()}).", metavar="NAME")
    ] = None,
    as_json: Json = False,
    config: Config = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="As for `fmstune train`.", metavar="KEY=VALUE", autocompletion=complete_setting
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the data as the model will see it: which text is trained, how long rows are, which are damaged.

    Trained text is in colour on a terminal, and between ⟦ and ⟧ elsewhere. Writes no files.
    """
    from fmstune.requirements import require_supported
    from fmstune.run.resolve import load_config

    require_supported(complete=True)
    given = (tuple(sources) if sources else None, model, template, skip_bad_rows, strict_chat, method)
    # Training on a stream requires a number of steps, which does not matter here.
    flags: list[tuple[str, Any, str]] = [("training.max_steps", 1, "fmstune data")]
    flags += [(key, value, flag) for (flag, key), value in zip(_FLAGS.items(), given, strict=True)]
    resolved = load_config(config, flags, sets or [], [], None, trains=False)

    from fmstune.launch.environment import quiet_libraries

    quiet_libraries()
    from fmstune.hub import pinned

    resolved = pinned(resolved, lambda text: typer.echo(f"warning  {text}", err=True))
    from fmstune.data.configured import configured_data
    from fmstune.data.preview import histogram, padding_share, view_rows
    from fmstune.data.tokens.lengths import sequence_lengths
    from fmstune.models.load import load_tokenizer
    from fmstune.models.special_tokens import use_tokens
    from fmstune.models.tokenizer_file import unlike_its_file

    tokenizer = load_tokenizer(resolved.model)
    use_tokens(resolved, tokenizer)
    if split := unlike_its_file(tokenizer, resolved.model.path):
        typer.echo(f"warning  {split}", err=True)
    prepared = configured_data(resolved, tokenizer)
    views = view_rows(prepared.train, tokenizer, rows, prepared.places)
    lengths: list[int] = []
    if not prepared.summary.streaming:
        lengths = sequence_lengths(prepared.train, resolved.max_length).ravel().tolist()
    bins = histogram(lengths)
    batch = int(resolved.training.get("per_device_train_batch_size", 8))
    padding = padding_share(lengths, batch, resolved.seed) if lengths else None
    if as_json:
        import json

        record = {
            "summary": prepared.summary.as_params(),
            "padding_share": padding,
            "lengths": [dataclasses.asdict(each) for each in bins],
            "rows": [dataclasses.asdict(view) for view in views],
            "bad_rows": prepared.bad.first,
        }
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False, default=str))
        return
    besides = METHODS[resolved.run.method].besides
    padded = f"{padding:.0%} of batches of {batch}" if padding is not None else ""
    _print(prepared, views, bins, padded, besides)


def _print(
    prepared: PreparedData, views: Sequence[RowView], bins: Sequence[Bin], padding: str, besides: str
) -> None:
    from rich.console import Console

    # The command's answer goes to standard output, in colour if that is a terminal.
    console = Console(soft_wrap=True, highlight=False)
    for view in views:
        console.print(
            f"{view.name} · {counted(view.tokens, 'token')}, {view.trained:,} trained", style="bold"
        )
        console.print(_marked(view, colour=console.is_terminal and not console.no_color))
        console.print()
    most = max((each.rows for each in bins), default=1)
    for each in bins:
        bar = "█" * max(1 if each.rows else 0, round(each.rows / most * _BAR))
        console.print(f"{each.shortest:>6}–{each.longest:<6} {each.rows:>8}  {bar}", markup=False)
    console.print(f"data     {prepared.summary.line()}", markup=False)
    if besides:
        console.print(f"learnt   {besides}", markup=False)
    for line in prepared.summary.unused_lines():
        console.print(f"unused   {line}", markup=False)
    if padding:
        console.print(f"padding  {padding} of rows drawn at random, if batches are padded", markup=False)
    for line in prepared.bad.lines():
        console.print(f"skipped  {line}", markup=False)


def _marked(view: RowView, *, colour: bool) -> Any:
    from rich.text import Text

    text = Text()
    for piece in view.pieces:
        if colour:
            text.append(piece.text, style="green" if piece.trained else "dim")
        else:
            text.append(f"⟦{piece.text}⟧" if piece.trained else piece.text)
    return text
