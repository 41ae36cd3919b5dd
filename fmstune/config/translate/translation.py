"""Translate a configuration of another tool, and write it as TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmstune.config.check.elsewhere import advice_about
from fmstune.config.check.suggest import ALIASES
from fmstune.config.schema.data import DataSource, written_sources
from fmstune.config.schema.managed import OWNED_TRAINING
from fmstune.config.schema.tables import DEMO, TABLES
from fmstune.config.translate.data_rules import DATA_RULES, named_sources
from fmstune.config.translate.defaults import defaults_of
from fmstune.config.translate.differences import differences
from fmstune.config.translate.foreign import Foreign
from fmstune.config.translate.machine_rules import MACHINE_RULES
from fmstune.config.translate.model_rules import MODEL_RULES
from fmstune.config.translate.rule import Here, Left
from fmstune.config.translate.tracker_rules import TRACKER_RULES
from fmstune.config.translate.training_rules import TRAINING_RULES
from fmstune.errors import ConfigError
from fmstune.secrets.forms import url_secrets
from fmstune.secrets.names import is_secret_name
from fmstune.secrets.redaction import REDACTED
from fmstune.text import shortened

_NEEDLESS = ("Leave it out", "Each run shows")
"""How advice begins that leaves nothing to do."""
_SECRET = "A secret belongs in the environment, or in the login of its service."
_UNRESOLVED = "It refers to what this file does not hold: write the value."
_LIST_KEYS = ("tracking.trackers",)
_NEEDED = {"model.path": "model", "data.train": "training data"}
_PLACES = {"model.path": DEMO, "data.train": DEMO, "data.eval": DEMO, "training.deepspeed": None}
"""Settings that name a place, which may be on another machine, and what to check the others with."""
_RULES = {**MODEL_RULES, **MACHINE_RULES, **TRAINING_RULES, **TRACKER_RULES, **DATA_RULES}
_MOST_VALUE = 60
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ORDER = (
    "model",
    "data",
    "run",
    "training",
    *(table for table in TABLES if table not in ("model", "data", "run")),
)


@dataclass(slots=True)
class Translation:
    """A translated configuration.

    `here` are fmstune's settings by dotted key, `source` says for each where it comes from. `left` are the
    settings without a translation, with their value and what to do instead; `needless` are names of settings
    that nothing here depends on. `notes` are other differences.
    """

    here: Here = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, source: str) -> None:
        """Set one of fmstune's settings, unless another one of theirs has set it otherwise."""
        before = self.source.get(key)
        if before is not None and key in _LIST_KEYS:
            value = [*dict.fromkeys([*self.here[key], *value])]
        elif before is not None and self.here[key] != value:
            self.left.append((source, value, f"{key} is set by {before}."))
            return
        self.here[key] = value
        self.source[key] = f"{before}, {source}" if before else source

    def refuse(self, key: str, why: str) -> None:
        """Take back a setting that fmstune refuses."""
        value, source = self.here.pop(key), self.source.pop(key)
        self.left.append((source, value, why))


def translate(theirs: Foreign, known: Iterable[str]) -> Translation:
    """Translate the settings. `known` are the dotted keys that can be set here. Raises `ConfigError` if none
    has a translation."""
    translation, keys = Translation(), set(known)
    translation.left += [(key, value, _UNRESOLVED) for key, value in theirs.unresolved.items()]
    for key, value in theirs.settings.items():
        if isinstance(value, str) and (is_secret_name(key.rpartition(".")[2]) or url_secrets(value)):
            translation.left.append((key, REDACTED, _SECRET))
            continue
        try:
            found = _translated(key, value, theirs, keys)
        except Left as left:
            why = str(left) or _advice(key) or "There is no such setting in fmstune."
            if why.startswith(_NEEDLESS):
                translation.needless.append(key)
            else:
                translation.left.append((key, value, why))
            continue
        if not found:
            translation.needless.append(key)
        for ours, its_value in found.items():
            translation.set(ours, its_value, key)
    if not theirs.tool and not translation.here:
        raise ConfigError(
            "none of its settings is one of axolotl, LLaMA-Factory, torchtune, mlx-lm, ms-swift or TRL; give "
            "the configuration of a fine-tuning to --from."
        )
    tool = theirs.tool or "the other tool"
    for ours, value in defaults_of(theirs, translation.here).items():
        translation.set(ours, value, f"the default of {tool}")
    translation.notes += differences(theirs, translation.here)
    return translation


def _translated(key: str, value: Any, theirs: Foreign, known: set[str]) -> Here:
    name = key.rpartition(".")[2]
    if rule := _RULES.get(key) or _RULES.get(name):
        try:
            return rule(value, theirs)
        except (TypeError, ValueError, AttributeError):  # it is written in another way than known
            raise Left("") from None
    above = key.rpartition(".")[0]
    same = f"training.{name}"
    if above in ("", "optimizer", "lr_scheduler") and same in known and name not in OWNED_TRAINING:
        return {same: value}
    alias = ALIASES.get(name)
    if alias in ("data.train", "data.eval") and not above:
        return named_sources(alias, value)
    if alias and above in ("", "lora_parameters", "model", "optimizer", "lr_scheduler") and name != "name":
        return {alias: value}
    if value is False or (isinstance(value, Mapping) and not any(value.values())):
        return {}
    raise Left("")


def _advice(key: str) -> str | None:
    above, _, name = key.rpartition(".")
    advice = (advice_about(above) if above else None) or advice_about(name)
    if advice is None and name in OWNED_TRAINING:
        advice = f"It is managed by fmstune: {OWNED_TRAINING[name]}."
    return advice


Check = Callable[[str, Mapping[str, Any]], None]
"""Checks a file's text, with some settings replaced; raises `ConfigError`."""


def checked(translation: Translation, name: str, check: Check) -> str:
    """The translation as TOML that `check` accepts: the settings that it refuses are taken back, by their
    place in the file called `name`. What it refuses without a place becomes a note, and so does a model or
    data that is not on this machine."""
    stand_ins: dict[str, Any] = {}
    for key, what in _NEEDED.items():
        if key not in translation.here:
            stand_ins[key] = DEMO
            translation.notes.append(f"It has no {what}: set {key}.")
    while True:
        text, lines = _written(translation)
        try:
            check(text, stand_ins)
        except ConfigError as error:
            # "fmstune.toml:7: first problem. fmstune.toml:9: second problem."
            before, *placed = re.split(rf"\S*{re.escape(name)}:(\d+): ", str(error))
            refused = [
                (lines.get(int(line), ""), why) for line, why in zip(placed[::2], placed[1::2], strict=True)
            ]
            if before.strip() or not refused:
                translation.notes.append(str(error))
                return _written(translation)[0]
            for key, why in refused:
                if key in _PLACES and key not in stand_ins and "there is no such" in why:
                    stand_ins[key] = _PLACES[key]
                    translation.notes.append(why.strip())
                elif key in translation.here and key not in stand_ins:
                    translation.refuse(key, why.strip())
                else:
                    translation.notes.append(why.strip())
                    return _written(translation)[0]
        else:
            return text


def _written(translation: Translation) -> tuple[str, dict[int, str]]:
    """The file, and which of the settings stands in each line."""
    lines: list[str] = []
    places: dict[int, str] = {}
    lines += [
        "# Written by `fmstune init --from`. `fmstune train --dry-run` checks it, `fmstune train` runs it."
    ]
    lines += [f"# {_comment(note)}" for note in translation.notes]
    if translation.left:
        lines += ["#", "# Without a translation:"]
        lines += [
            f"#   {_comment(f'{key} = {shown_value(value)}: {why}')}" for key, value, why in translation.left
        ]
    tables: dict[str, list[tuple[str, str]]] = {}
    for key in translation.here:
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append((name, key))
    named = sorted(tables, key=lambda table: _ORDER.index(table) if table in _ORDER else len(_ORDER))
    for table in named:
        lines += ["", f"[{table}]"]
        for name, key in tables[table]:
            value = translation.here[key]
            if key in ("data.train", "data.eval"):
                value = written_sources(tuple(DataSource(**source) for source in value))
            lines.append(f"{name} = {_toml(value)}  # {_comment(translation.source[key])}")
            places[len(lines)] = key
    return "\n".join(lines) + "\n", places


def shown_value(value: Any) -> str:
    """A value of another tool's file, in a message."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), _MOST_VALUE)


def _toml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        items = (f"{_key(str(key))} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # a JSON string is a TOML string


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.split()))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)
