"""`fmstune generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmstune.cli.completion import complete_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fmstune.models.load import LoadedModel
    from fmstune.models.locate import Place


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, checkpoint, adapter, model or GGUF file, or a name on the hub.",
            metavar="RUN_OR_MODEL",
            autocompletion=complete_run,
        ),
    ],
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            help="A prompt; may be given several times; - reads standard input.",
            metavar="P",
        ),
    ],
    max_new_tokens: Annotated[
        int, typer.Option(help="The maximum length of an answer, in tokens.", min=1, metavar="N")
    ] = 200,
    temperature: Annotated[
        float, typer.Option(help="The sampling temperature; 0 takes the likeliest token.", min=0, metavar="T")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="The seed of the sampling.", min=0, max=2**32 - 1, metavar="S")
    ] = 42,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without a chat template.")
    ] = False,
    tools: Annotated[
        Path | None,
        typer.Option(help="A JSON file with the schemas of tools that the model may call.", metavar="FILE"),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message before each prompt.", metavar="TEXT")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help="Values for variables of the chat template: a JSON object.",
            metavar="JSON",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    base: Annotated[
        str | None,
        typer.Option(help="An adapter's base model, if it has moved.", metavar="MODEL"),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the Python code that comes with a model on the hub."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Generate a model's answers to prompts, as a first check of a tuned model."""
    import json
    from dataclasses import replace

    from fmstune.cli.terminal import screen
    from fmstune.config.schema.tables import ModelConfig, RunConfig
    from fmstune.console import RunConsole
    from fmstune.errors import ConfigError, ModelError
    from fmstune.hub import pinned
    from fmstune.launch.environment import quiet_libraries
    from fmstune.models.locate import locate, use
    from fmstune.requirements import require_supported
    from fmstune.system.threads import set_threads

    require_supported(complete=True)
    console = RunConsole(screen())
    place = locate(model)
    if prompts.count("-") > 1:
        raise ConfigError("--prompt - reads all of standard input, so it can be given only once.")
    if place.is_reward_model:
        raise ModelError(f"{place.path} is a reward model: it scores text, and cannot generate any.")
    texts = [_standard_input() if prompt == "-" else prompt for prompt in prompts]
    schemas = _tools(tools) if tools is not None else None
    variables = _variables(chat_template_kwargs) if chat_template_kwargs is not None else None
    quiet_libraries()
    set_threads()
    config = ModelConfig(path=place.path, trust_remote_code=trust_remote_code, chat_template_kwargs=variables)
    config = pinned(RunConfig(model=config), console.warn).model
    from fmstune.models.generate import Prompt, generate_texts, rendered, require_room
    from fmstune.models.load import load_for_use
    from fmstune.models.probe import require_causal

    def load(place: Place) -> tuple[LoadedModel, PreTrainedTokenizerBase]:
        if place.checkpoint:
            console.say("model", f"{model} did not finish; using its newest checkpoint, {place.path}")
        return load_for_use(replace(config, path=place.path) if place.checkpoint else config, base=base)

    used, tokenizer = use(model, place, load)
    for note in used.notes:
        console.warn(note)
    loaded = used.model
    require_causal(loaded, model)
    chat = bool(tokenizer.chat_template) and not raw
    if chat and _learnt_texts(Path(model)):
        console.warn(f"{model} learnt texts without a chat template; use --raw to prompt it so")
    asked = {"--tools": schemas, "--system": system, "--chat-template-kwargs": variables}
    if (needs := next((option for option, value in asked.items() if value), None)) and not chat:
        raise ModelError(f"{needs} needs a chat template to write it into the prompt; leave it out.")
    given = [rendered(tokenizer, text, schemas, system) if chat else Prompt(text) for text in texts]
    for remark in dict.fromkeys(remark for prompt in given for remark in prompt.remarks):
        console.warn(remark)
    read = [prompt.text for prompt in given]
    require_room(loaded, tokenizer, read, special=not chat)
    answers = generate_texts(
        loaded, tokenizer, read, max_new_tokens, special=not chat, temperature=temperature, seed=seed
    )
    answers = [answer.strip() if chat else answer for answer in answers]
    if as_json:
        rows = [{"prompt": text, "answer": answer} for text, answer in zip(texts, answers, strict=True)]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for text, answer in zip(texts, answers, strict=True):
        if len(texts) > 1:
            console.say("prompt", next(iter(text.strip().splitlines()), ""))
        print(answer, flush=True)


def _learnt_texts(named: Path) -> bool:
    """Whether this is a run, or a checkpoint of one, whose rows were not written in the chat template."""
    from fmstune.config.paths.runs import holds_run
    from fmstune.models.checkpoints import is_checkpoint
    from fmstune.report.commands import learns_texts
    from fmstune.report.summary import read_summary

    run = named.parent if is_checkpoint(named) else named
    return holds_run(run) and learns_texts(run, read_summary(run)[1])


def _tools(path: Path) -> list[dict[str, Any]]:
    from fmstune.data.rows.tools import read_tools
    from fmstune.errors import ConfigError, DataError

    try:
        return read_tools(path.read_text(encoding="utf-8"), "--tools")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tools: {path} cannot be read: {error}.") from None
    except DataError:
        raise ConfigError(f"--tools: {path} does not contain a list of JSON schemas.") from None


def _variables(text: str) -> dict[str, Any]:
    import json

    from fmstune.errors import ConfigError

    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--chat-template-kwargs is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigError(
            """--chat-template-kwargs takes a JSON object, such as '{"enable_thinking": false}'."""
        )
    return found


def _standard_input() -> str:
    from fmstune.errors import ConfigError

    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        raise ConfigError("--prompt -: standard input is not valid UTF-8.") from None
    if not text.strip():
        raise ConfigError("--prompt -: standard input is empty.")
    return text
