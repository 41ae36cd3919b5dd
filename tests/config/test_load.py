"""Where values come from, which take precedence, and the messages for invalid ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.load.load import known_keys, load
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.run.resolve import load_config

DEMO = "[model]\npath = 'demo'\n[data]\ntrain = 'demo'\n"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(
    text: str | bytes, *sets: str, flags: Sequence[Any] = (), params: Sequence[str] = ()
) -> RunConfig:
    content = text.encode() if isinstance(text, str) else text
    Path("fmstune.toml").write_bytes(content)
    return load_config(None, flags, sets, params, None)


def refused(text: str | bytes, *sets: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(text, *sets, **more)
    return str(caught.value)


def is_short_paragraph(message: str) -> bool:
    return message.isprintable() and 10 < len(message) < 400 and "Traceback" not in message


# Merging


def test_set_merges_into_trackers_and_params_of_the_file() -> None:
    config = configured(
        DEMO + "[trackers.wandb]\nproject = 'p'\n[params]\na.b = 1",
        "trackers.wandb.tags=['x']",
        "params.a.c=2",
    )
    assert config.trackers["wandb"] == {"project": "p", "tags": ["x"]}
    assert config.params == {"a": {"b": 1, "c": 2}}


def test_spaces_around_a_set_and_its_parts_are_ignored() -> None:
    assert configured(DEMO, " training . seed = 3 ").training["seed"] == 3


def test_params_come_from_the_table_then_the_file_then_the_command_line(tmp_path: Path) -> None:
    Path("fmstune.toml").write_text(DEMO + "[params]\na = 1\nb = 1\nc = 1\nn.x = 1")
    file = tmp_path / "p.json"
    file.write_text('{"b": 2, "c": 2, "n": {"y": 2}}')
    config = load(None, params=["c=3", "n.z=3"], params_file=file)
    assert config.params == {"a": 1, "b": 2, "c": 3, "n": {"x": 1, "y": 2, "z": 3}}


# The demo, and incomplete configurations


def test_the_demo_works_without_evals() -> None:
    config = load(None, sets=["data.eval=''"])
    assert config.data.eval == ()
    assert "eval_strategy" not in config.training


@pytest.mark.parametrize("text", ["", "\n", "[training]\nseed = 1", "[model]\npath = ''"])
def test_a_file_without_a_model_is_not_the_demo(text: str) -> None:
    assert "no model is given: use --model, or set `path` under [model] in fmstune.toml" in refused(text)


# Names that do not exist


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[trainng]\nx = 1", "trainng. Did you mean [training]?"),
        ("lr = 3", "lr. Did you mean training.learning_rate?"),
        ("epochs = 3", "epochs. Did you mean training.num_train_epochs?"),
        ("[training]\nlr = 3", "training.lr. Did you mean training.learning_rate?"),
        ("[training]\nlearning_rat = 3", "training.learning_rat. Did you mean training.learning_rate?"),
        ("[data]\nlearning_rate = 3", "data.learning_rate. Did you mean training.learning_rate?"),
        ("[lora]\nrank = 3", "lora.rank. Did you mean lora.r?"),
        ("[trackers.wandb]\nprojct = 3", "trackers.wandb.projct. Did you mean project?"),
    ],
)
def test_an_unknown_name_is_reported_with_the_closest(text: str, says: str) -> None:
    message = refused(text if "[data]" in text else text + "\n" + DEMO)
    assert re.match(r"fmstune\.toml:\d+: there is no ", message)
    assert message.endswith(says)


@pytest.mark.parametrize("text", ["[zzzz]\nx = 1\n", "zzzz = 1\n", "[training]\nqqqqq = 1\n"])
def test_nothing_is_suggested_if_nothing_is_close(text: str) -> None:
    assert "Did you mean" not in refused(text + DEMO)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("lr=3", "there is no setting lr. Did you mean training.learning_rate?"),
        ("a.b.c=3", "there is no setting a.b.c."),
        ("training=3", "training is a table; set one of its settings, as in training.learning_rate=VALUE."),
        ("params=3", "params is a table; set one of its settings, as in params.NAME=VALUE."),
        ("trackers=aim", "Choose trackers with --tracker, or [tracking] trackers."),
        ("trackers.aim=3", "trackers.aim is a table of options"),
        ("training..seed=3", "is not a key; use one such as training.learning_rate."),
        ('trackers."x=3', "is not a key"),
        ("params." + ".".join("a" * 5000) + "=3", "nested too deeply"),
    ],
)
def test_an_unknown_key_of_set_is_reported(assignment: str, says: str) -> None:
    message = refused(DEMO, assignment)
    assert message.startswith("--set: ")
    assert says in message


@pytest.mark.parametrize("text", ["training = 3", "[[training]]\nseed = 1", "trackers = ['aim']"])
def test_a_table_written_as_a_value_is_reported(text: str) -> None:
    assert "is a table; write it as [t" in refused(text + "\n" + DEMO)


# Trackers


def test_an_unknown_tracker_is_reported_with_the_closest_and_its_source() -> None:
    flag = [("tracking.trackers", ("wandbb",), "--tracker")]
    assert refused(DEMO, flags=flag) == "--tracker: there is no tracker 'wandbb'. Did you mean wandb?"
    message = refused(DEMO + "[trackers.wandbb]")
    assert message == "fmstune.toml:5: there is no tracker 'wandbb'. Did you mean wandb?"


def test_if_no_tracker_is_close_all_are_listed() -> None:
    message = refused(DEMO, "tracking.trackers=['qqqq']")
    assert "Did you mean" not in message
    assert (
        "Available: none, aim, wandb, mlflow, tensorboard, trackio, dvclive, swanlab, comet, clearml, file"
        in message
    )


def test_a_tracker_given_twice_is_refused() -> None:
    assert "'aim' is given twice" in refused(DEMO, "tracking.trackers=['aim', 'aim']")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tags = 'a'", "tags = 'a' is a string; it takes a list of strings. Write [\"a\"]."),
        ("tags = [1]", "tags = [1] is a list of integers; it takes a list of strings."),
        ("project = 3", "project = 3 is an integer; it takes a string. Put it in quotes."),
        ("project = 2020-01-01", "project = 2020-01-01 is a date or time; it takes a string."),
    ],
)
def test_options_of_fmstunes_own_trackers_are_typed(option: str, says: str) -> None:
    message = refused(f"{DEMO}[trackers.wandb]\n{option}")
    assert message.startswith("fmstune.toml:6: trackers.wandb.")
    assert says in message


def test_an_invalid_option_by_set_is_reported() -> None:
    assert refused(DEMO, "trackers.aim.repo=3").startswith("--set: trackers.aim.repo = 3 is an integer")


def test_the_tracker_none_has_no_options() -> None:
    assert "the tracker none has no options" in refused(DEMO + "[trackers.none]\na = 1")


# Files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[model]\npath = demo\n", "fmstune.toml:2: invalid TOML: "),
        (b"[model\n", "fmstune.toml:1: invalid TOML: "),
        (b"a = 1\na = 2\n", "fmstune.toml:2: invalid TOML: "),
        (b"# \xe9\n", "fmstune.toml is not UTF-8 text (byte 2); save it as UTF-8."),
        (DEMO.encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b"\0", "fmstune.toml:1: invalid TOML: "),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"[params]\na" + b".a" * 200 + b" = 1\n", "nested too deeply"),
        (b"[params]\na = " + b"9" * 5000, "a number in it is too large"),
        (b"[params]\na = 0x" + b"f" * 5000, "an integer has more than 64 bits"),
    ],
)
def test_a_damaged_file_is_reported_with_its_name(content: bytes, says: str) -> None:
    message = refused(content)
    assert message.startswith("fmstune.toml")
    assert says in message
    assert is_short_paragraph(message)


def test_a_missing_file_is_reported_with_the_closest_name() -> None:
    Path("fmstune.toml").touch()
    with pytest.raises(ConfigError, match=r"^there is no file fmstun.toml. Did you mean fmstune.toml\?$"):
        load(Path("fmstun.toml"))
    with pytest.raises(ConfigError, match=r"^there is no file qq.toml.$"):
        load(Path("qq.toml"))
    with pytest.raises(ConfigError, match="Its directory no/where does not exist, either"):
        load(Path("no/where/x.toml"))


@pytest.mark.parametrize("name", [".", "x" * 3000, "a\0b", "a\nb", "/dev/null/x"])
def test_an_unreadable_path_is_reported(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path(name))
    assert is_short_paragraph(str(caught.value))


# Cross-checks of several settings


@pytest.mark.parametrize("key", ["learning_rate", "num_train_epochs", "logging_steps"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_settings_that_must_be_positive_are_checked(key: str, value: str) -> None:
    assert refused(DEMO, f"training.{key}={value}") == (
        f"--set: training.{key} = {value} is out of range; it must be more than 0."
    )


@pytest.mark.parametrize("steps", ["0", "-7"])
def test_steps_that_would_silently_mean_epochs_are_refused(steps: str) -> None:
    assert "more than 0, or -1 for whole epochs" in refused(DEMO, f"training.max_steps={steps}")
    assert configured(DEMO, "training.max_steps=-1").training["max_steps"] == -1


def test_many_problems_are_reported_together_in_one_short_paragraph() -> None:
    keys = ("learning_rate", "num_train_epochs", "max_length", "logging_steps", "gradient_accumulation_steps")
    message = refused(DEMO + "[training]\n" + "\n".join(f"{key} = -1" for key in keys))
    assert message.count("out of range") == 3
    assert message.endswith("There are 2 more problems.")
    assert is_short_paragraph(message)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("train.jsonl", "there is no such file. Did you mean trains.jsonl?"),
        ("qq.csv", "there is no such file."),
        ("no/where.jsonl", "there is no such file. Its directory no does not exist, either."),
        ("squad", "there is no such file, and names on the hub have the form owner/name."),
        ("x" * 3000, "there is no such file"),
        ("a\0.jsonl", "there is no such file."),
    ],
)
def test_missing_data_are_reported(source: str, says: str) -> None:
    Path("trains.jsonl").touch()
    flags = [("model.path", "demo", "--model"), ("data.train", source, "--data")]
    with pytest.raises(ConfigError) as caught:
        load(None, flags)
    assert str(caught.value).startswith("--data: data.train = ")
    assert says in str(caught.value)
    assert is_short_paragraph(str(caught.value))


def test_a_missing_model_or_template_is_reported_before_torch_is_imported() -> None:
    assert "model.path = './nope': there is no such directory." in refused(DEMO, "model.path=./nope")
    Path("chat.jinja").touch()
    assert "Did you mean chat.jinja?" in refused(DEMO, "model.chat_template=chats.jinja")


# Random input


def outcome(call: Callable[[], RunConfig]) -> None:
    message = None
    try:
        assert isinstance(call(), RunConfig)
    except ConfigError as error:
        message = str(error)
    assert message is None or is_short_paragraph(message), message


FREE = st.text() | st.integers() | st.floats() | st.booleans() | st.none() | st.dates() | st.datetimes()
NESTED = st.recursive(FREE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
KEYS = st.sampled_from([*known_keys(), "trackers.wandb.tags", "trackers.x.y", "params.a", "training", "zz"])
fuzz = settings(max_examples=100, deadline=None)


@fuzz
@given(st.lists(st.text()), st.lists(st.text()))
def test_random_strings_as_set_and_param_are_read_or_refused(sets: list[str], params: list[str]) -> None:
    outcome(lambda: configured(DEMO, *sets, params=params))


@fuzz
@given(KEYS, st.text() | NESTED.map(repr))
def test_random_values_of_known_settings_are_read_or_refused(key: str, value: str) -> None:
    outcome(lambda: configured(DEMO, f"{key}={value}"))


LONG = st.builds(
    lambda text, times, suffix: text * times + suffix,
    st.text("a/.~é\x01*[{\"'= 0", min_size=1, max_size=6),
    st.integers(1, 2000),
    st.sampled_from(["", ".gguf", "/x.gguf", ".jsonl", ".json", ":x"]),
)


@fuzz
@given(KEYS, LONG)
def test_long_values_of_known_settings_are_read_or_refused(key: str, value: str) -> None:
    """Many of them are too long for a file."""
    outcome(lambda: configured(DEMO, f"{key}={value}"))


@fuzz
@given(KEYS, NESTED)
def test_random_nested_toml_values_are_read_or_refused(key: str, value: Any) -> None:
    import tomli_w

    table, _, name = key.partition(".")
    try:
        text = tomli_w.dumps({table: {name: value}})
    except (TypeError, UnicodeEncodeError, ValueError):
        return
    outcome(lambda: configured(text.encode("utf-8", "surrogateescape")))
