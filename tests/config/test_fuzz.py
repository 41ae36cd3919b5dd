"""Any input loads or is refused with a `ConfigError`: nothing else is raised."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fmstune.config.inspect.dump import to_toml
from fmstune.config.load.load import known_keys, load
from fmstune.errors import ConfigError
from tests.support.loading import DEMO_FILE

keys = st.sampled_from(known_keys()) | st.sampled_from(["params.a", "trackers.aim.x", "lr", "model"])
values = st.text(max_size=20) | st.sampled_from(
    ["1", "-1", "0", "1e-5", "nan", "inf", "true", '"x"', "[1]", "[]", "{a = 1}", "1979-05-27", "9" * 400]
)
odd_text = st.text(st.characters(codec=None), max_size=20)  # with unpaired surrogates, which argv may contain
assignments = st.builds("{}={}".format, keys, values) | odd_text | st.builds("{}={}".format, odd_text, values)
lines = st.lists(
    st.sampled_from(["[model]", "[data]", "[training]", "[trackers.aim]", "[params]", "[[lora]]", "[x"])
    | st.builds("{} = {}".format, keys.map(lambda key: key.rpartition(".")[2]), values),
    max_size=8,
).map("\n".join)


def load_or_refuse(**given_values: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = given_values.pop("file", None)
        if content is not None:
            (folder / "fmstune.toml").write_bytes(content)
        if "params_content" in given_values:
            suffix, data = given_values.pop("params_content")
            given_values["params_file"] = folder / f"p{suffix}"
            (folder / f"p{suffix}").write_bytes(data)
        with contextlib.suppress(ConfigError):
            to_toml(load(None, cwd=folder, **given_values)).encode("utf-8")


@given(st.binary(max_size=60))
@example(b"a = " + b"9" * 5000)
@example(b"a = " + b"[" * 3000)
@example(b"a." * 3000 + b"b = 1")
def test_any_bytes_as_file(content: bytes) -> None:
    load_or_refuse(file=content)


@given(lines)
def test_any_toml_as_file(text: str) -> None:
    load_or_refuse(file=(DEMO_FILE + text).encode("utf-8", "replace"))
    load_or_refuse(file=text.encode("utf-8", "replace"))


@given(st.lists(assignments, max_size=4))
@example(["training.seed=" + "9" * 5000])
@example(["training.learning_rate=" + "9" * 400])
@example(["params." + "a." * 2000 + "b=1"])
@example(["data.train=" + "/x" * 3000])
@example(["trackers=1"])
@example(["trackers.x=1"])
@example(["trackers.x.y=1", "trackers.x.y.z=1"])
def test_any_set(sets: list[str]) -> None:
    load_or_refuse(sets=sets)


@given(st.lists(assignments, max_size=4))
@example(["a=" + "9" * 5000])
@example(["a=" + "[" * 5000])
@example([".".join("a" * 2000) + "=1"])
def test_any_param(params: list[str]) -> None:
    load_or_refuse(params=params)


@given(
    st.sampled_from([".json", ".toml", ""]),
    st.binary(max_size=40) | lines.map(lambda s: s.encode("utf-8", "replace")),
)
@example(".json", b"[" * 100_000)
@example(".json", b'{"a":' * 2000 + b"1" + b"}" * 2000)
@example(".json", b'{"a": ' + b"9" * 5000 + b"}")
def test_any_params_file(suffix: str, content: bytes) -> None:
    load_or_refuse(params_content=(suffix, content))


@given(keys, st.none() | st.text() | st.integers() | st.floats() | st.lists(st.text()) | odd_text)
def test_any_flag(key: str, value: Any) -> None:
    load_or_refuse(flags=[(key, value, "--flag")])
