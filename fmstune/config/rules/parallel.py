"""Check settings of FSDP and DeepSpeed, which transformers and accelerate check late, or not at all."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmstune.config.check.suggest import closest
from fmstune.config.rules.deepspeed import deepspeed_problems
from fmstune.config.rules.json_object import table_or_file
from fmstune.config.schema.tables import RunConfig
from fmstune.text import listed, shown
from fmstune.transformers_compat import ENUM_FILES, FSDP_OPTION, library_source

Problem = tuple[str, str]
"""The dotted key and the message of a problem."""


STATE_DICT_TYPES = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
"""How FSDP writes a checkpoint: in one file, or a part by each process."""


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
    second = fsdp and str(fsdp_setting(config, "version", 2)) == "2"
    if second and str(fsdp_setting(config, "auto_wrap_policy", "")).upper() == "SIZE_BASED_WRAP":
        yield (
            "training.fsdp_config",
            'training.fsdp_config.auto_wrap_policy = "SIZE_BASED_WRAP" would shard the list of layers as '
            "one, which FSDP 2 cannot do; leave it out.",
        )
    if fsdp and config.prompt_tuning.enabled:
        yield (
            "training.fsdp",
            "training.fsdp does not work with prompt tuning: PEFT cannot save a sharded prompt; leave it "
            "out, or use --lora.",
        )
    if second and training.get("optim") == "adafactor":
        yield (
            "training.optim",
            "training.optim = 'adafactor' does not work with training.fsdp: it cannot shard its state; leave "
            "it out.",
        )
    if deepspeed is not None:
        yield from (("training.deepspeed", what) for what in deepspeed_problems(config))


def _words(fsdp: str) -> Iterator[Problem]:
    known = fsdp_words()
    for word in [word for word in fsdp.split() if word not in known][:1]:  # one suffices
        close = closest(word, known, {})
        meant = f" Did you mean {close}?" if close else f" Available: {listed(known)}."
        yield (
            "training.fsdp",
            f"training.fsdp = {shown(fsdp)}: {shown(word)} is unknown; true is enough.{meant}",
        )


def _fsdp_config(given: Any, base: Path) -> Iterator[Problem]:
    key = "training.fsdp_config"
    table, problem = table_or_file(key, given, base)
    if problem:
        yield key, problem
    for name in table:
        plain = str(name).removeprefix("fsdp_")
        if plain not in fsdp_keys():
            close = closest(plain, fsdp_keys(), {})
            meant = f" Did you mean {close}?" if close else f" Available: {listed(sorted(fsdp_keys()))}."
            yield key, f"{key} has no setting {shown(name)}.{meant}"
        elif plain == "state_dict_type" and str(table[name]).upper() not in STATE_DICT_TYPES:
            close = closest(str(table[name]).upper(), STATE_DICT_TYPES, {})
            meant = f" Did you mean {close}?" if close else f" Available: {listed(STATE_DICT_TYPES)}."
            yield key, f"{key}.state_dict_type = {shown(table[name])} is unknown.{meant}"


def fsdp_setting(config: RunConfig, name: str, default: Any) -> Any:
    """A value in `training.fsdp_config`, which may be a file, and may name it with the prefix `fsdp_`."""
    given = config.training.get("fsdp_config")
    table = {} if given is None else table_or_file("training.fsdp_config", given, config.base_dir)[0]
    return table.get(name, table.get(f"fsdp_{name}", default))


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
