"""A resolved configuration that is written is read back to the same values."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fmstune.config.inspect.dump import Option, option_table, to_mapping, to_toml
from fmstune.config.load.load import known_keys, load
from fmstune.config.load.values import dotted, split_key
from fmstune.config.schema.tables import RunConfig
from fmstune.secrets.forms import REDACTED

# Hypothesis also draws constants from the package; `load` refuses a value that contains this one.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda t: REDACTED not in t)
scalars = (
    st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.datetimes().map(lambda moment: moment.replace(fold=0))  # TOML cannot represent it
    | st.dates()
)
tables = st.recursive(
    st.dictionaries(texts, scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "model.dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "model.revision": texts,
        "data.eval": st.sampled_from(["", "org/eval", "demo"]),
        "data.max_rows": st.integers(1, 10**9),
        "data.train_on": st.sampled_from(["responses", "all"]),
        "lora.enabled": st.booleans(),
        "lora.dropout": st.floats(0, 0.99),
        "lora.target_modules": texts | st.lists(texts),
        "tracking.trackers": st.lists(texts),
        "tracking.close_timeout": st.floats(0, 1e6),
        "training.learning_rate": st.floats(1e-12, 1),
        "training.num_train_epochs": st.integers(1, 9) | st.floats(0.1, 9),
        "training.run_name": texts,
        "training.label_names": st.lists(texts),
        "training.activation_checkpointing_kwargs": st.dictionaries(texts, scalars),
        "training.output_dir": texts,
        "training.seed": st.integers(0, 2**32 - 1),
    },
)
models = st.sampled_from(
    [("demo", "demo"), ("org/model", "org/data"), ("demo", "org/data"), ("org/m", "demo")]
)


def same(one: RunConfig, other: RunConfig) -> bool:
    return bool(typed(to_mapping(one)) == typed(to_mapping(other)))


def typed(value: Any) -> Any:
    """The value with types that `==` does not distinguish: 1, 1.0 and true; 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


def reload(config: RunConfig, folder: Path) -> RunConfig:
    path = folder / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="\n")
    return load(path, cwd=folder)


@given(settings, models, st.dictionaries(texts, tables, max_size=2), tables)
def test_a_configuration_is_read_back_to_the_same_values(
    values: dict[str, Any],
    model: tuple[str, str],
    trackers: dict[str, Any],
    params: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [(key, value, "--flag") for key, value in values.items()]
        flags += [("model.path", model[0], "--model"), ("data.train", model[1], "--data")]
        loaded = load(None, flags, cwd=folder)
        config = RunConfig(
            **{key: getattr(loaded, key) for key in ("model", "data", "lora", "tracking", "demo")},
            training=loaded.training,
            trackers=trackers,
            params=params,
        )
        again = reload(config, folder)
        assert same(again, config)
        assert again.demo == config.demo
        assert same(reload(again, folder), again)


def test_the_output_directory_is_omitted_and_the_header_says_so(tmp_path: Path) -> None:
    text = to_toml(load(None, sets=["training.output_dir=runs/x"], cwd=tmp_path))
    assert "output_dir" not in text
    assert "# The output directory is left out" in text


def test_unset_values_are_omitted(tmp_path: Path) -> None:
    tables_ = tomli.loads(to_toml(load(None, params=["a=null", "b=1"], cwd=tmp_path)))
    assert "revision" not in tables_["model"]
    assert tables_["params"] == {"b": 1}


@pytest.mark.parametrize("name", ["max_length", "save_total_limit", "pad_to_multiple_of"])
def test_no_value_in_place_of_a_default_is_read_back(tmp_path: Path, name: str) -> None:
    """Also one from Python, where it is `None`: left out, it would mean the default."""
    for written in (None, "none", "None"):
        flags = [
            (f"training.{name}", written, "Python"),
            ("model.path", "demo", ""),
            ("data.train", "demo", ""),
        ]
        config = load(None, flags, cwd=tmp_path)
        assert config.training[name] is None
        assert reload(config, tmp_path).training[name] is None


def test_redacted_tables_and_a_header_can_be_passed(tmp_path: Path) -> None:
    config = load(None, cwd=tmp_path)
    assert to_toml(config, {"a": {"b": "[redacted]"}}, header="one\n\ntwo") == (
        '# one\n#\n# two\n\n[a]\nb = "[redacted]"\n'
    )


def test_non_finite_numbers_are_read_back_too(tmp_path: Path) -> None:
    config = RunConfig(
        model=load(None, cwd=tmp_path).model,
        data=load(None, cwd=tmp_path).data,
        params={"x": math.inf},
    )
    assert reload(config, tmp_path).params == {"x": math.inf}


@given(
    st.lists(
        texts.filter(lambda part: part and '"' not in part and "\n" not in part), min_size=1, max_size=20
    )
)
def test_a_dotted_key_is_split_into_its_parts(parts: list[str]) -> None:
    assert split_key(dotted(parts), "--set") == parts


class TestOptionTable:
    def test_it_contains_every_settable_key(self) -> None:
        assert [option.key for option in option_table()] == known_keys()

    def test_each_has_a_type_and_help(self) -> None:
        assert all(option.type and option.help for option in option_table())

    def test_defaults_are_those_of_fmstune(self) -> None:
        found = {option.key: option for option in option_table()}
        assert found["training.save_strategy"].default == "epoch"
        assert found["training.num_train_epochs"].default == 3.0
        assert found["lora.r"] == Option("lora.r", "int", 16, "The rank of the adapter's matrices.")

    @pytest.mark.parametrize("name", ["report_to", "resume_from_checkpoint", "local_rank"])
    def test_unsettable_keys_are_not_in_it(self, name: str) -> None:
        assert f"training.{name}" not in [option.key for option in option_table()]


def test_the_demo_configuration_is_read_back_with_the_same_values(tmp_path: Path) -> None:
    config = load(None, cwd=tmp_path)
    assert same(reload(config, tmp_path), config)
