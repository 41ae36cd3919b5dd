"""`--set`, `--param` and `--params-file`, as typed on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.values import merged, parse_params, parse_sets, read_params_file, split_key
from fmstune.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("-0.5", -0.5),
        ("nlp", "nlp"),
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("null", None),
        ('"5"', "5"),
        ("", ""),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("[1]", "[1]"),
        ('{"a": 1}', '{"a": 1}'),
        ("007", "007"),
        ("x=y", "x=y"),
        ("9" * 20, "9" * 20),
        (str(10**30), str(10**30)),
        ("9" * 5000, "9" * 5000),
        (r'"\ud800"', r'"\ud800"'),
    ],
)
def test_a_param_is_a_json_scalar_or_otherwise_a_string(text: str, value: Any) -> None:
    (found,) = parse_params([f"k={text}"]).values()
    assert found == value
    assert type(found) is type(value)


def test_params_nest_at_dots_and_later_ones_win() -> None:
    assert parse_params(["a.b=1", "a.c.d=2", "a.b=3", " e =4"]) == {"a": {"b": 3, "c": {"d": 2}}, "e": 4}


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["a=1", "a.b=2"], "a is already a value, not a table"),
        (["a.b=1", "a=2"], "a is already a table, not a value"),
        (["team"], "--param 'team' is not of the form NAME=VALUE"),
        (["=1"], "is not of the form"),
        (["a..b=1"], "is not of the form"),
        ([".".join("a" * 100) + "=1"], "nested too deeply"),
        (["a=\udce9"], "is not UTF-8 text"),
    ],
)
def test_an_invalid_param_is_reported(assignments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_params(assignments)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("'3'", "3"),
        ("cosine", "cosine"),
        ('["q", "v"]', ["q", "v"]),
        ("{a = 1}", {"a": 1}),
        ("run#3", "run#3"),
        ("a\nb = 3", "a\nb = 3"),
        ("1\nb = 3", "1\nb = 3"),
        ("", ""),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_set_is_a_toml_value_or_otherwise_a_string(text: str, value: Any) -> None:
    assert parse_sets([f"k={text}"]) == [(["k"], value)]


@pytest.mark.parametrize("assignment", ["", "training.seed", "=3", " =3"])
def test_a_set_without_a_key_or_a_value_is_reported(assignment: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form KEY=VALUE"):
        parse_sets([assignment])


def test_a_quoted_part_of_a_key_may_contain_dots() -> None:
    assert split_key('trackers."a.b:C".url', "--set") == ["trackers", "a.b:C", "url"]


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", 'a."b', 'a"b"', 'a."".c', "a. .b"])
def test_an_invalid_key_is_reported(key: str) -> None:
    with pytest.raises(ConfigError, match="is not a key"):
        split_key(key, "--set")


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.json", '{"a": {"b": [1]}}'), ("p.toml", "[a]\nb = [1]"), ("p.JSON", '{"a": {"b": [1]}}')],
)
def test_params_are_read_from_json_and_toml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_params_file(tmp_path / name) == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.yaml", b"a: 1", "use a .json or .toml file"),
        ("p", b"{}", "use a .json or .toml file"),
        ("p.json", b"", "p.json:1: invalid JSON: Expecting value."),
        ("p.json", b'{\n"a": }', "p.json:2: invalid JSON: Expecting value."),
        ("p.json", b"[1]", "it must contain one object, with the names of the parameters: {...}."),
        ("p.json", b'"\xe9"', "is not UTF-8 text"),
        ("p.json", b"[" * 100_000, "nested too deeply"),
        ("p.json", b'{"a": ' * 50 + b"1" + b"}" * 50, "nested too deeply"),
        ("p.json", b'{"a": ' + b"9" * 5000 + b"}", "a number in it is too large"),
        ("p.json", b'{"a": ' + b"9" * 50 + b"}", "more than 64 bits"),
        ("p.json", b'{"a": "\\ud800"}', "is not UTF-8 text"),
        ("p.toml", b"a: 1", "p.toml:1: invalid TOML: "),
    ],
)
def test_a_damaged_params_file_is_reported_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_params_file(Path(name))
    assert name in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_params_file_is_reported_with_the_closest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.json").touch()
    with pytest.raises(ConfigError, match=r"there is no file param.json. Did you mean params.json\?"):
        read_params_file(Path("param.json"))


def test_merging_tables_modifies_neither() -> None:
    base, over = {"a": {"b": 1, "c": 1}, "d": {"e": 1}}, {"a": {"b": 2}, "d": 3}
    assert merged(base, over) == {"a": {"b": 2, "c": 1}, "d": 3}
    assert base == {"a": {"b": 1, "c": 1}, "d": {"e": 1}}
