"""The chat templates that TRL ships, each with a tokenizer that uses it and its end-of-answer token."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import trl
from transformers import PreTrainedTokenizerBase

from fmstune.config.schema.tables import ModelConfig
from fmstune.models.load import load_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training")))
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm": "<|user|>",
    "gptoss": "<|return|>",
    "idefics": "<end_of_utterance>",
    "lfm": "<|im_end|>",
    "llama": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
"""What each family's models end an answer with, listed by hand; the longest matching name applies."""
ENDS_OF_CALLS = {
    "gptoss": "<|call|>",
    "glm4moe": "<|observation|>",
    "diffusion_gemma": "<|tool_response>",
    "gemma4": "<|tool_response>",
    "gemma4_v3": "<|tool_response>",
    "gemma4_v4": "<|tool_response>",
    "gemma4_v5": "<|tool_response>",
}


def end_of(template: str, *, call: bool = False) -> str:
    """The token that ends an answer, or an answer that calls a tool."""
    if call and template in ENDS_OF_CALLS:
        return ENDS_OF_CALLS[template]
    return ENDS[max((name for name in ENDS if template.startswith(name)), key=len)]


@functools.cache
def tokenizer_with(template: str, *, marks: bool = True) -> PreTrainedTokenizerBase:
    """The demo's byte-level tokenizer with a template of TRL's. With `marks`, everything that the template
    has in angle brackets is a special token, as in the family's own tokenizer."""
    found = load_tokenizer(ModelConfig(path="demo"))
    source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    if marks:
        tokens = sorted(set(re.findall(r"<\|[^<>\s|]+\|>|<｜[^<>\s]+｜>|<[a-z]+_of_[a-z]+>", source)))
        found.add_special_tokens({"additional_special_tokens": [*tokens, end_of(template)]})
        found.add_special_tokens({"eos_token": "</s>" if "llava" in template else "<eos>"})
    found.add_special_tokens({"bos_token": "<bos>"})
    if template.startswith("deepseek"):
        found.add_special_tokens({"eos_token": end_of(template)})
    if template.startswith("llava"):
        found.add_special_tokens({"eos_token": "</s>"})
    found.chat_template = source
    return found
