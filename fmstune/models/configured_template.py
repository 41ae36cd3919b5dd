"""The chat template that a configuration asks for, with its values for the template's variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from fmstune.config.schema.tables import ModelConfig
from fmstune.data.rendering.variables import variables_of, why_not_set, with_variables
from fmstune.errors import DataError, ModelError
from fmstune.models.chat_templates import NAMED, named_template
from fmstune.transformers_compat import render_chats


def set_template(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model's tokenizer the configured chat template and values. Raises `ModelError`."""
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template, tokenizer)
    else:
        _require_jinja(config, tokenizer)
    if config.chat_template_kwargs:
        tokenizer.chat_template = _with_kwargs(config, tokenizer.chat_template)


def _read_template(path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in a file, or the one of that name if there is no such file."""
    if path in NAMED and not Path(path).is_file():
        return named_template(path, tokenizer)
    try:
        template = Path(path).read_text(encoding="utf-8")
        # With the library's own environment, which supports more than Jinja's, like `{% generation %}`.
        render_chats([], template)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template = {path!r} cannot be read: {error}.") from error
    except TemplateSyntaxError as error:
        raise ModelError(
            f"model.chat_template = {path!r} is not a Jinja template: line {error.lineno}: {error.message}"
        ) from error
    return template


def _require_jinja(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` for a model whose own chat template cannot be compiled."""
    own = tokenizer.chat_template or {}
    for template in own.values() if isinstance(own, dict) else [own]:
        try:
            render_chats([], template)
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template of {config.path} is not a Jinja template: line {error.lineno}: "
                f"{error.message}; set another one (model.chat_template = chatml, or a Jinja file)."
            ) from error


def _with_kwargs(config: ModelConfig, own: Any) -> Any:
    """A model's chat templates with the configured values. Raises `ModelError` for variables that they do
    not have."""
    given, where = config.chat_template_kwargs or {}, "model.chat_template_kwargs"
    templates = own if isinstance(own, dict) else {"": own} if own else {}
    known = variables_of(templates)
    if not templates:
        raise ModelError(f"{where}: {config.path} has no chat template; set one with model.chat_template.")
    if wrong := [name for name in given if name not in known]:
        has = f"it has {', '.join(sorted(known))}" if known else "it has no variables"
        raise ModelError(f"{where}: {wrong[0]!r} cannot be set: {why_not_set(wrong[0])}; {has}.")
    try:
        made = {name: with_variables(template, given) for name, template in templates.items()}
    except DataError as error:
        raise ModelError(f"{where}: {error}.") from error
    return made if isinstance(own, dict) else made[""]
