"""Suggest what to write instead of a value of the wrong type, if its meaning can be guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomli

from fmstune.config.check.suggest import closest
from fmstune.config.check.words import in_words, kind_of, shown_for
from fmstune.secrets.names import is_secret_name

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NOTHING = ("none", "null", "nil")
_CHOICES_FOR = {True: ("yes", "always"), False: ("no", "none", "never")}

# Names of the same choices in other tools.
_CHOICE_ALIASES = {
    **dict.fromkeys(("4", "int4", "nf4", "fp4"), "4bit"),
    **dict.fromkeys(("8", "int8"), "8bit"),
    "bf16": "bfloat16",
    **dict.fromkeys(("fp16", "half"), "float16"),
    **dict.fromkeys(("fp32", "float", "single"), "float32"),
    **dict.fromkeys(("adam", "adamw", "adamw_hf", "torch.optim.adamw"), "adamw_torch"),
    **dict.fromkeys(("bitsandbytes.optim.pagedadamw8bit", "pagedadamw8bit"), "paged_adamw_8bit"),
    **dict.fromkeys(("bitsandbytes.optim.adamw8bit", "adamw8bit"), "adamw_8bit"),
    "lion": "lion_32bit",
    "ao_adamw_4bit": "adamw_torch_4bit",
    "ao_adamw_8bit": "adamw_torch_8bit",
    "ao_adamw_fp8": "adamw_torch_fp8",
    **dict.fromkeys(("cos", "cosine_decay"), "cosine"),
    **dict.fromkeys(("pt", "pretrain", "pretraining", "instruct", "causal"), "sft"),
    "ipo": "dpo",
    **dict.fromkeys(("assistant", "completion", "completions", "answers"), "responses"),
    **dict.fromkeys(("rm", "reward_model"), "reward"),
}
_CHOICE_NEEDS = {"ipo": ' with training.loss_type = "ipo"'}
_LORA = {"lora": "true", "dora": "true, with lora.dora = true", "full": "false"}
_LORA["qlora"] = 'true, with model.quantization = "4bit"'
_LONGEST = 40  # anything longer was not meant as a number or a name
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


def meant(value: Any, choices: Sequence[str]) -> str:
    """` Did you mean never?`, for a value that is not one of the choices; empty if none is close."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, (str, int, float)) or len(text := shown_for("", value).strip("'\"")) > _LONGEST:
        return ""
    alias = _CHOICE_ALIASES.get(text.lower())
    known = text if text in choices else alias if alias in choices else None
    close = known or closest(text, choices, {})
    for says, words in ((True, _TRUE), (False, (*_FALSE, *_NOTHING))):
        if close is None and text.lower() in words:
            close = next((word for word in _CHOICES_FOR[says] if word in choices), None)
    more = _CHOICE_NEEDS.get(text.lower(), "") if close == alias else ""
    return f" Did you mean {close}{more}?" if close else ""


def advice(value: Any, annotation: str, where: str, key: str) -> str:
    """How to write a value that is nearly right: a sentence after a space, or an empty string."""
    wanted = in_words(annotation)
    if isinstance(value, str):
        return _for_text(value.strip(), wanted, where, key)
    if isinstance(value, (list, tuple)):
        fits = len(value) == 1 and "a list" not in wanted and kind_of(value[0]) in wanted
        return " Write it without [ ]." if fits else ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        # `true` is hardly the name of a model: quotes would only hide that something else was meant.
        quotable = wanted == "a string" and not isinstance(value, (bool, Mapping)) and value is not None
        return _quoted(value, where, key) if quotable else ""
    if "true or false" in wanted and value in (0, 1):
        return f" Write {'true' if value else 'false'}."
    if "an integer" in wanted and float(value).is_integer():
        return f" Write {int(value)}."
    return _quoted(value, where, key) if wanted == "a string" else ""


def _for_text(text: str, wanted: str, where: str, key: str) -> str:
    if "true or false" in wanted and text.lower() in (*_TRUE, *_FALSE):
        return f" Write {'true' if text.lower() in _TRUE else 'false'}."
    if key == "lora.enabled" and text.lower() in _LORA:
        return f" Write {_LORA[text.lower()]}."
    if "true or false" in wanted and text.lower() == "unsloth":  # its activation checkpointing
        return " Write true."
    if text.lower() in (*_NOTHING, "auto"):
        return " Leave it out for the default."
    numeric = "number" in wanted or "integer" in wanted
    if numeric and len(text) < _LONGEST and (number := _number(text, "a number" in wanted)):
        return " Write it without quotes." if number == text else f" Write {number}."
    if "a list of" in wanted:
        return _as_list(text, where, key)
    return " Write a table as {name = value}." if wanted.startswith("a table") else ""


def _number(text: str, broken: bool) -> str | None:
    """The number that a string probably means, in TOML's notation; a fraction only if `broken`."""
    plain = text.replace("\N{MINUS SIGN}", "-")
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    elif broken and re.fullmatch(r"[+-]?0?,\d+", plain):
        plain = plain.replace(",", ".")
    percent = broken and plain.endswith("%")
    plain = plain[:-1].rstrip() if percent else plain
    if not _NUMBER.fullmatch(plain):
        return None
    if plain == text and _is_toml(text) and (broken or re.fullmatch(r"[+-]?\d+", text)):
        return text
    number = float(plain) / (100 if percent else 1)
    if number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    return repr(number) if broken else None


def _as_list(text: str, where: str, key: str) -> str:
    bracketed = text.startswith("[") and text.endswith("]")
    inside = text[1:-1] if bracketed else text
    # A string with commas and spaces is a sentence, unless it is in brackets.
    parts = inside.split(",") if bracketed or " " not in inside else [inside]
    names = [part.strip().strip("'") for part in parts]
    plain = len(text) < 2 * _LONGEST and text.isprintable() and not set(inside) & {'"', "\\", "'"}
    if not plain or is_secret_name(key) or not all(names):
        return " Put it in [ ]."
    quoted = ", ".join(f'"{name}"' for name in names)
    return f" Write '{key}=[{quoted}]'." if where == "--set" else f" Write [{quoted}]."


def _quoted(value: Any, where: str, key: str) -> str:
    if where != "--set":
        return " Put it in quotes."
    # The shell removes the outer quotes.
    return f""" Write '{key}="{"…" if is_secret_name(key) else shown_for(key, value)}"'."""


def _is_toml(text: str) -> bool:
    try:
        tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        return False
    return True
