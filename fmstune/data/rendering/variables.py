"""The variables of a chat template besides the conversation, such as `enable_thinking`.

They are set in the template's source, so that all that renders it, also from a saved tokenizer, has the same
values; who passes others to `apply_chat_template` still gets those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from jinja2 import meta, nodes

from fmstune.errors import DataError
from fmstune.transformers_compat import template_environment

_GIVEN = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "raise_exception", "strftime_now",
}  # fmt: skip
"""What `apply_chat_template` itself passes."""


def variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads and its caller may set: not those that it sets itself, unless it
    tests whether they are defined, or gives them a default."""
    tree = template_environment(template).parse(template)
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx != "load"}
    of_macros = {name.name for name in names if name.ctx == "param"}
    asked = {
        found.node.name
        for found in tree.find_all((nodes.Test, nodes.Filter))
        if found.name in ("defined", "undefined", "default", "d") and isinstance(found.node, nodes.Name)
    }
    return frozenset(meta.find_undeclared_variables(tree) - (own - asked) - of_macros - _GIVEN)


def with_variables(template: str, values: Mapping[str, Any]) -> str:
    """The template with values for its variables. Raises `DataError` for a value that Jinja has no literal
    for."""
    lines = [
        f"{{% set {name} = {name} if {name} is defined and {name} is not none else {_literal(value)} %}}\n"
        for name, value in values.items()
    ]
    # Jinja leaves out a newline after a block, so that the template still begins a line.
    return template if template.startswith(head := "".join(lines)) else head + template


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
    raise DataError(f"a chat template's variable cannot be {value!r}")
