"""The variables of a chat template besides the conversation, such as `enable_thinking`.

Those of a run are set in the template's source, so that all that renders it, also from a saved tokenizer, has
the same values; who passes others to `apply_chat_template`, as for a row that has its own, still gets those.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import meta, nodes

from fmstune.errors import DataError
from fmstune.transformers_compat import template_environment

_GIVEN = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "raise_exception", "strftime_now",
}  # fmt: skip
"""What `apply_chat_template` passes itself, or takes as an argument."""
_ASKING = ("defined", "undefined", "default", "d")
"""Jinja's tests and filters for variables that may be undefined."""


def variables_of(template: str | Mapping[str, str]) -> frozenset[str]:
    """The variables that a template, or one of several, reads and its caller may set: not those that it sets
    itself, unless it reads them before, or tests whether they are defined, or gives them a default."""
    if not isinstance(template, str):
        return frozenset().union(*map(variables_of, template.values()))
    tree = template_environment(template).parse(template)
    free: dict[str, bool] = {}
    for name, use in _uses(tree, frozenset()):
        free[name] = use == "asked" or free.get(name, use == "load")
    return frozenset(name for name in meta.find_undeclared_variables(tree) - _GIVEN if free.get(name))


def why_not_set(name: str) -> str:
    """Why a caller cannot set a variable that is none of a template's, as a clause."""
    if name in _GIVEN:
        return "transformers has another use for this name"
    return "the chat template does not read it"


def _uses(node: nodes.Node, own: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The names in a template that are not parameters of a macro (`own`), in the order of their evaluation,
    each with its use: load, store, or asked, if it may be undefined."""
    if isinstance(node, nodes.Name):
        if node.name not in own:
            yield node.name, node.ctx
        return
    asks = isinstance(node, (nodes.Test, nodes.Filter)) and node.name in _ASKING and node.node
    if isinstance(asks, nodes.Name) and asks.name not in own:
        yield asks.name, "asked"
    if isinstance(node, (nodes.Macro, nodes.CallBlock)):
        for default in node.defaults:
            yield from _uses(default, own)
        if isinstance(node, nodes.CallBlock):
            yield from _uses(node.call, own)
        own |= {parameter.name for parameter in node.args}
        for each in node.body:
            yield from _uses(each, own)
        return
    # Jinja has targets before the values that they get.
    late = [node.target] if isinstance(node, nodes.Assign) else []
    early = [node.iter] if isinstance(node, nodes.For) else []
    others = (
        child for child in node.iter_child_nodes() if not any(child is each for each in (*early, *late))
    )
    for each in [*early, *others, *late]:
        yield from _uses(each, own)


def with_variables(template: str, values: Mapping[str, Any]) -> str:
    """The template with values for its variables. Raises `DataError` as `in_source`."""
    return template if template.startswith(head := in_source(values)) else head + template


def in_source(values: Mapping[str, Any]) -> str:
    """The beginning of a template's source that sets these variables. Raises `DataError` for a value that
    Jinja has no literal for, and that transformers would write as the name of its type."""
    lines = [
        f"{{% set {name} = {name} if {name} is defined and {name} is not none else {_literal(value)} %}}\n"
        for name, value in values.items()
    ]
    # Jinja leaves out a newline after a block, so that the template still begins a line.
    return "".join(lines)


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_literal(str(name))}: {_literal(each)}' for name, each in value.items())}}}"
    if isinstance(value, (datetime.date, datetime.time)):
        raise DataError(f'{value} is a date or time; write it as a text, in quotation marks: "{value}"')
    raise DataError(f"a chat template's variable cannot be {value!r}")
