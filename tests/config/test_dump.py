"""What ran is written so that it can be run again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.dump import option_table, to_mapping, to_toml
from fmstune.config.load import known_keys, load
from fmstune.config.schema import RunConfig

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
flags = st.fixed_dictionaries(
    {"model.path": st.just("demo"), "data.train": st.just("demo")},
    optional={
        "data.eval": st.sampled_from(["", "demo"]),
        "data.max_rows": st.integers(1, 10**9),
        "training.seed": st.integers(0, 2**31),
        "training.learning_rate": st.floats(1e-9, 1),
        "training.run_name": texts,
        "training.optim": st.sampled_from(["adamw_torch", "sgd"]),
        "training.lr_scheduler_kwargs": st.dictionaries(texts, scalars, max_size=2),
        "training.gradient_checkpointing": st.booleans(),
        "lora.enabled": st.booleans(),
        "lora.target_modules": st.lists(texts, min_size=1, max_size=3) | texts,
        "tracking.trackers": st.lists(st.sampled_from(["aim", "wandb", "file"]), unique=True),
        "tracking.strict": st.booleans(),
    },
)


def again(config: RunConfig) -> RunConfig:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        return load(path)


def values(config: RunConfig) -> tuple[Any, ...]:
    return (
        config.model,
        config.data,
        {k: v for k, v in config.training.items() if v is not None and k != "output_dir"},
        config.lora,
        config.tracking,
        config.trackers,
        config.params,
    )


@settings(max_examples=150, deadline=None)
@given(flags, st.dictionaries(texts, nested, max_size=3))
def test_what_is_written_is_read_back_to_the_same_values(given_flags: Any, params: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "first.toml"
        import tomli_w

        path.write_text(tomli_w.dumps({"params": params, "trackers": {"a:B": params}}), encoding="utf-8")
        config = load(path, [(key, value, "--x") for key, value in given_flags.items()])
    assert values(again(config)) == values(config)


def test_the_demo_is_repeated_with_the_same_values() -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = load(None, cwd=Path(directory))
    assert values(again(config)) == values(config)


def test_the_output_directory_is_left_out() -> None:
    config = load(None, [("training.output_dir", "here", "--output-dir")], cwd=Path("/nowhere"))
    assert config.output_dir == "here"
    assert "output_dir" not in to_mapping(config)["training"]


def test_what_is_not_set_is_left_out() -> None:
    config = load(None, params=["a=null"], cwd=Path("/nowhere"))
    assert "revision" not in to_mapping(config)["model"]
    assert to_mapping(config)["params"] == {}


def test_the_table_of_options_has_every_key_and_a_help_for_each() -> None:
    options = option_table()
    assert sorted(option.key for option in options) == sorted(known_keys())
    assert all(option.help for option in options if not option.key.startswith("training."))
