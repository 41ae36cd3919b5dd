"""A configuration of another tool, or the shell script that starts it: its settings by dotted key, and which
tool it is for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fmstune.config.load.toml_files import read_text
from fmstune.errors import ConfigError
from fmstune.text import shown_path

Tool = Literal["axolotl", "LLaMA-Factory", "LLaMA-Factory v1", "torchtune", "mlx-lm", "ms-swift", "TRL", ""]

COMPONENT = "_component_"
"""torchtune's name for the class or function of a table."""
_TABLES = (
    "special_tokens",
    "lora_parameters",
    "optimizer",
    "lr_scheduler",
    "model",
    "tokenizer",
    "checkpointer",
    "metric_logger",
    "peft_config",
    "quant_config",
)
"""Tables whose settings are read one by one; others are one setting."""
_MARKS: dict[Tool, tuple[str, ...]] = {
    "axolotl": ("base_model", "micro_batch_size", "sequence_len", "sample_packing"),
    "LLaMA-Factory": ("finetuning_type", "cutoff_len", "stage", "dataset_dir", "lora_rank", "neat_packing"),
    "LLaMA-Factory v1": ("peft_config", "kernel_config", "quant_config", "dist_config", "sample_backend"),
    "mlx-lm": ("lora_parameters", "iters", "fine_tune_type", "mask_prompt", "steps_per_report"),
    "ms-swift": ("tuner_type", "train_type", "rlhf_type", "split_dataset_ratio", "model_author"),
    "TRL": ("dataset_name", "use_peft", "lora_r", "lora_task_type", "dataset_train_split"),
}
"""Settings that only this tool has among these."""
_COMMANDS: dict[str, Tool] = {
    "swift": "ms-swift",
    "llamafactory-cli": "LLaMA-Factory",
    "mlx_lm": "mlx-lm",
    "trl": "TRL",
}
"""The tools by a word of their command."""
_YAML = (".yaml", ".yml", ".json")
_FEW_FLAGS = 2
_OPERATORS = ("|", "&", ";", ">", "<")
"""Of the shell, after which another command or a file follows."""
_NUMBER = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_ASSIGNMENT = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)=[\"']?([\w./:+-]+)[\"']?[ \t]*$", re.M)
"""A line of a script that sets a variable to a plain value."""
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")
_OPEN = re.compile(r"\$[{(]")
"""A reference, or a command of a shell, in a value."""
_DEPTH = 10
"""How many references may follow each other; more are a circle."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """The settings of another tool's file, by dotted key in the file's order, without unset ones.

    `unresolved` are settings that refer to what the file does not hold, such as `${oc.env:HOME}`.
    """

    tool: Tool
    settings: Mapping[str, Any]
    folder: Path
    unresolved: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting, by its dotted key or the last part of it."""
        if name in self.settings:
            return self.settings[name]
        found = (value for key, value in self.settings.items() if key.rpartition(".")[2] == name)
        return next(found, default)


def read_foreign(path: Path) -> Foreign:
    """Read a YAML or JSON file, or a shell script. Raises `ConfigError`."""
    name, text = shown_path(path), read_text(path)
    if path.suffix.lower() == ".toml":
        raise ConfigError(f"{name} is TOML, which needs no translation: `fmstune train {name}`.")
    if path.suffix.lower() not in _YAML:
        return _of_script(text, name, path.parent)
    import yaml  # comes with huggingface_hub

    try:
        found = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: this is not valid YAML: {error.problem}.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: invalid JSON: {error.msg}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: it cannot be read: {error}.") from None
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{name}: it must contain the settings of another tool, such as base_model: …")
    settings = {key: _value(value, found) for key, value in _settings(found)}
    return _resolved(settings, path.parent)


def _resolved(settings: Mapping[str, Any], folder: Path, tool: Tool | None = None) -> Foreign:
    unresolved = {key: value for key, value in settings.items() if _OPEN.search(str(value))}
    known = {key: value for key, value in settings.items() if key not in unresolved}
    return Foreign(tool or _tool_of(settings), known, folder, unresolved)


def _of_script(text: str, name: str, folder: Path) -> Foreign:
    """The flags of the first command in a shell script that has some."""
    text = re.sub(r"\$\([^()]*\)", lambda found: found[0].replace(" ", ""), re.sub(r"\\\r?\n", " ", text))
    for command in text.splitlines():
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quote over several lines
            continue
        if sum(word.startswith("--") for word in words) >= _FEW_FLAGS:
            break
    else:
        raise ConfigError(
            f"{name}: it has no command with flags such as --model; give one, or a YAML or JSON file."
        )
    first = next(at for at, word in enumerate(words) if word.startswith("--"))
    settings: dict[str, Any] = {}
    key = ""
    for word in words[first:]:
        if word.lstrip("12").startswith(_OPERATORS):
            break
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            settings[key] = [value] if equals else []
        else:
            settings[key].append(word)
    called = [re.split(r"[./]", word) for word in words[:first]]
    tool = next((_COMMANDS[part] for parts in called for part in parts if part in _COMMANDS), None)
    if tool in ("ms-swift", "TRL") and len(words[:first]) > 1:
        settings["command"] = [words[first - 1]]
    known = dict(_ASSIGNMENT.findall(text))
    values = {key: _of_words(each, known) for key, each in settings.items()}
    return _resolved(values, folder, tool)


def _of_words(words: list[str], known: Mapping[str, str]) -> Any:
    """The value of a flag, as YAML reads its words, with the values of variables that the script sets."""
    import yaml

    values = []
    for word in words:
        word = str(_value(_VARIABLE.sub(r"${\1}", word), known))
        try:
            value = yaml.safe_load(word)
        except yaml.YAMLError:
            value = word
        values.append(_value(word if value is None else value, {}))
    return True if not values else values[0] if len(values) == 1 else values


def _settings(table: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping) and not above and str(name) in _TABLES:
            yield from _settings(value, f"{name}.")
        else:
            yield f"{above}{name}", value


def _value(value: Any, whole: Mapping[Any, Any], depth: int = 0) -> Any:
    """A value as the tools read it: YAML takes 2e-5 for text, and torchtune's refer to others."""
    if isinstance(value, Mapping):
        return {str(key): _value(item, whole, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item, whole, depth) for item in value]
    if not isinstance(value, (str, int, float, bool)):  # a date, bytes
        return str(value)
    if not isinstance(value, str):
        return value
    if _NUMBER.fullmatch(value):
        return float(value)
    if whole_reference := _REFERENCE.fullmatch(value):
        return _referred(whole_reference, whole, depth)
    return _REFERENCE.sub(lambda match: str(_referred(match, whole, depth)), value)


def _referred(reference: re.Match[str], whole: Mapping[Any, Any], depth: int) -> Any:
    """The value that is referred to, which may itself refer to others; the reference where there is none."""
    found: Any = whole
    for part in reference[1].split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, (str, int, float)) or depth >= _DEPTH:
        return reference[0]
    return _value(found, whole, depth + 1)


def _tool_of(settings: Mapping[str, Any]) -> Tool:
    names = {key.partition(".")[0] for key in settings}
    if any(key.endswith(COMPONENT) for key in settings) or any(
        isinstance(value, Mapping) and COMPONENT in value for value in settings.values()
    ):
        return "torchtune"
    scores = {tool: len(names.intersection(marks)) for tool, marks in _MARKS.items()}
    best = max(scores, key=lambda tool: scores[tool])
    return best if scores[best] else ""
