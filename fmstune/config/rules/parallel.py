"""Check settings of FSDP and DeepSpeed, which transformers and accelerate check late, or not at all."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmstune.config.check.suggest import closest, similar_file
from fmstune.config.schema.tables import RunConfig
from fmstune.text import listed, shown, shown_path
from fmstune.transformers_compat import ENUM_FILES, FSDP_OPTION, library_source

_ZERO, _GATHER = "zero_optimization", "stage3_gather_16bit_weights_on_model_save"

Problem = tuple[str, str]
"""The dotted key and the message of a problem."""


def parallel_problems(config: RunConfig) -> Iterator[Problem]:
    """Problems with the distribution of the model over processes."""
    training = config.training
    fsdp, deepspeed = training.get("fsdp"), training.get("deepspeed")
    if fsdp and deepspeed:
        yield "training.deepspeed", "set training.fsdp or training.deepspeed, not both."
    if isinstance(fsdp, str):
        yield from _words(fsdp)
    if training.get("fsdp_config") is not None:
        if not fsdp:
            yield (
                "training.fsdp_config",
                "training.fsdp_config has no effect without training.fsdp = true: set that too.",
            )
        yield from _fsdp_config(training["fsdp_config"], config.base_dir)
    if deepspeed:
        yield from (("training.deepspeed", what) for what in _deepspeed(deepspeed, config.base_dir))


def _words(fsdp: str) -> Iterator[Problem]:
    known = fsdp_words()
    for word in [word for word in fsdp.split() if word not in known][:1]:  # one suffices
        close = closest(word, known, {})
        meant = f" Did you mean {close}?" if close else f" Available: {listed(known)}."
        yield "training.fsdp", f"training.fsdp = {shown(fsdp)}: {word} is unknown; true is enough.{meant}"


def _fsdp_config(given: Any, base: Path) -> Iterator[Problem]:
    key = "training.fsdp_config"
    table, problem = (given, None) if isinstance(given, Mapping) else _object(key, str(given), base)
    if problem:
        yield key, problem
    for name in table:
        plain = str(name).removeprefix("fsdp_")
        if plain not in fsdp_keys():
            close = closest(plain, fsdp_keys(), {})
            meant = f" Did you mean {close}?" if close else f" Available: {listed(sorted(fsdp_keys()))}."
            yield key, f"{key} has no setting {shown(name)}.{meant}"


def _deepspeed(given: Any, base: Path) -> Iterator[str]:
    key = "training.deepspeed"
    table, problem = (given, None) if isinstance(given, Mapping) else _object(key, str(given), base)
    if problem:
        yield problem
    if _stage(table).get(_GATHER) is False:
        yield f"{key}: {_GATHER} = false would leave the run without a model; leave it out."


def with_gathered_weights(deepspeed: Any, base: Path) -> Any:
    """The settings of `training.deepspeed`; at ZeRO's stage 3 the weights are gathered when a model is saved.
    DeepSpeed's default is not to, and a run would end without a model."""
    table = deepspeed if isinstance(deepspeed, Mapping) else _object("", str(deepspeed), base)[0]
    if _stage(table).get("stage") != 3:
        return deepspeed
    return {**table, _ZERO: {_GATHER: True, **_stage(table)}}


def _stage(table: Mapping[str, Any]) -> Mapping[str, Any]:
    found = table.get(_ZERO)
    return found if isinstance(found, Mapping) else {}


def _object(key: str, written: str, base: Path) -> tuple[Mapping[str, Any], str | None]:
    """The object in a JSON file, or what is wrong with the file."""
    path = base / written
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}, f"{key} = {shown(written)}: there is no such file.{similar_file(Path(written), base)}"
    except OSError as error:
        return {}, f"{key} = {shown(written)} cannot be read: {error.strerror or error}."
    except (ValueError, RecursionError) as error:
        at = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        why = getattr(error, "msg", None) or "it is not UTF-8 text"
        return {}, f"{key}: {shown_path(path)}{at}: invalid JSON: {why}."
    if not isinstance(found, dict):
        return {}, f"{key}: {shown_path(path)} must contain one object: {{...}}."
    return found, None


@functools.cache
def fsdp_words() -> tuple[str, ...]:
    """The options in `training.fsdp`, if it is a string."""
    body = re.search(rf"class {FSDP_OPTION}\(.*?\n\n\n", library_source("transformers", ENUM_FILES[0]), re.S)
    return tuple(re.findall(r'= "(\w+)"', body.group())) if body else ()


@functools.cache
def fsdp_keys() -> frozenset[str]:
    """The settings that the installed transformers reads from `fsdp_config`, according to its source."""
    source = library_source("transformers", "training_args.py") + library_source("transformers", "trainer.py")
    used = re.findall(r"(?<!xla_)fsdp_config(?:\.get|\.setdefault|\.pop)?[\[(]\s*[\"'](\w+)[\"']", source)
    return frozenset([*used, *re.findall(r"[\"'](\w+)[\"'] in (?:self\.|args\.)*fsdp_config", source)])
