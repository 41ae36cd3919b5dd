"""Chat templates by their names, for models that have none; written from the formats that models publish.

A model stops where it has seen texts stop: where a format's end of turn is not the tokenizer's own end of
text, that follows it after each answer.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_NO_TOOLS = """\
{%- if tools %}{{ raise_exception('it has no words for tools') }}{% endif -%}
{%- for message in messages if message.get('tool_calls') or message['role'] == 'tool' -%}
{{ raise_exception('it has no words for calls of tools') }}
{%- endfor -%}
"""

_STOP = "{%- set stop = '' if not eos_token or eos_token == 'MARK' else eos_token -%}\n"

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
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' }}
{{- stop if message['role'] == 'assistant' }}{{ '\\n' }}
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
    "chatml": _NO_TOOLS + _STOP.replace("MARK", "<|im_end|>") + _CHATML,
    "gemma": _NO_TOOLS + _SYSTEM_FIRST + _STOP.replace("MARK", "<end_of_turn>") + _GEMMA,
    "llama2": _NO_TOOLS + _SYSTEM_FIRST + _LLAMA2,
    "llama3": _NO_TOOLS + _STOP.replace("MARK", "<|eot_id|>") + _LLAMA3,
    "mistral": _NO_TOOLS + _SYSTEM_FIRST + _MISTRAL,
    "plain": _NO_TOOLS + _SYSTEM_FIRST + _PLAIN,
    "zephyr": _NO_TOOLS + _ZEPHYR,
}
"""The templates of `model.chat_template`, by the names in `fmstune.config.schema.CHAT_TEMPLATES`."""


def named_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template by its name. It begins with the token that this tokenizer begins every text with, if any:
    the tokenizer leaves that to chat templates."""
    template = NAMED[name]
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return template if not begins or "bos_token" in template else "{{- bos_token -}}" + template
