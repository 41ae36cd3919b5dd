"""Named chat templates for models that have none, written from the formats that models publish.

Each equals its family's own, token by token, for a tokenizer with the family's tokens. If the mark that
ends an answer is not a token of the tokenizer, its end of text follows: a model only stops at tokens.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_NO_TOOLS = """\
{%- if tools %}{{ raise_exception('it has no words for tools') }}{% endif -%}
{%- for message in messages if message.get('tool_calls') or message['role'] == 'tool' -%}
{{ raise_exception('it has no words for calls of tools') }}
{%- endfor -%}
"""

_STOP = "{%- set stop = STOP -%}\n"
_ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}
"""The marks that end an answer in templates that do not use the tokenizer's end of text."""

_HERMES = """\
{%- if tools -%}
{{ '<|im_start|>system\\n' }}
{{- messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' }}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided \
with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor -%}
{{ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\
\\n</tool_call><|im_end|>\\n' }}
{%- if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif -%}
{%- endif -%}
"""

_SYSTEM_FIRST = """\
{%- if messages[0]['role'] in ('system', 'developer') -%}
{%- set system = messages[0]['content'] -%}
{%- set messages = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}
{%- endif -%}
{%- for message in messages if message['role'] not in ('user', 'assistant') -%}
{{ raise_exception('its system message comes first') }}
{%- endfor -%}
"""

_CHATML = """\
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{ '<|im_start|>user' if loop.first or loop.previtem['role'] != 'tool' }}
{{- '\\n<tool_response>\\n' + (message['content'] or '') + '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.last or loop.nextitem['role'] != 'tool' }}
{%- else -%}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- for call in message.get('tool_calls') or [] -%}
{{ '\\n' if message['content'] or not loop.first }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>' }}{{ stop if message['role'] == 'assistant' }}{{ '\\n' }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] or '') | trim }}
{{- '<|eot_id|>' }}{{ stop if message['role'] == 'assistant' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt }}"""

_LLAMA2 = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ bos_token }}{{ '[INST] ' }}
{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system }}
{{- (message['content'] or '') | trim + ' [/INST]' }}
{%- else -%}
{{ ' ' + (message['content'] or '') | trim + ' ' }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}"""

_MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ '[INST] ' }}{{ system + '\\n\\n' if loop.first and system }}{{ (message['content'] or '') + ' [/INST]' }}
{%- else -%}
{{ ' ' + (message['content'] or '') | trim }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
{{- system + '\\n\\n' if loop.first and system }}{{ (message['content'] or '') | trim + '<end_of_turn>' }}
{{- stop if message['role'] == 'assistant' }}{{ '\\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\\n' if add_generation_prompt }}"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + (message['content'] or '') }}{{ eos_token }}{{ '\\n' }}
{%- endfor -%}
{{ '<|assistant|>\\n' if add_generation_prompt }}"""

_ALPACA = """\
{{- system or 'Below is an instruction that describes a task. Write a response that appropriately \
completes the request.' }}{{ '\\n\\n' }}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ '### Instruction:\\n' + (message['content'] or '') + '\\n\\n' }}
{%- else -%}
{{ '### Response:\\n' + (message['content'] or '') }}{{ eos_token }}{{ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{{ '### Response:\\n' if add_generation_prompt }}"""

_PLAIN = """\
{{- system + '\\n\\n' if system }}
{%- for message in messages -%}
{{ 'Assistant: ' if message['role'] == 'assistant' else 'User: ' }}{{ message['content'] or '' }}
{{- eos_token if message['role'] == 'assistant' }}{{ '\\n' }}
{%- endfor -%}
{{ 'Assistant:' if add_generation_prompt }}"""

NAMED: dict[str, str] = {
    "alpaca": _NO_TOOLS + _SYSTEM_FIRST + _ALPACA,
    "chatml": _STOP + _HERMES + _CHATML,
    "gemma": _NO_TOOLS + _SYSTEM_FIRST + _STOP + _GEMMA,
    "llama2": _NO_TOOLS + _SYSTEM_FIRST + _LLAMA2,
    "llama3": _NO_TOOLS + _STOP + _LLAMA3,
    "mistral": _NO_TOOLS + _SYSTEM_FIRST + _MISTRAL,
    "plain": _NO_TOOLS + _SYSTEM_FIRST + _PLAIN,
    "zephyr": _NO_TOOLS + _ZEPHYR,
}
"""The templates of `model.chat_template`, by the names in `fmstune.config.schema.tables.CHAT_TEMPLATES`."""


def named_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template by name. It starts with the token that this tokenizer adds to every text, if any: the
    tokenizer leaves that to chat templates."""
    known = _ENDS.get(name) in tokenizer.get_vocab()
    template = NAMED[name].replace("STOP", "''" if known else "eos_token or ''")
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return template if not begins or "bos_token" in template else "{{- bos_token -}}" + template
