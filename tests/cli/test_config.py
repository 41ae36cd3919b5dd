"""`fmstune config`: why a setting has its value, and how two runs differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fmstune.cli.flags import FLAGS
from fmstune.cli.main import main
from fmstune.config.inspect.dump import to_mapping, to_toml
from fmstune.config.load.load import known_keys, load
from fmstune.config.schema.managed import OWNED_TRAINING
from fmstune.secrets.redaction import Redactor
from tests.support.journals import open_journal

TOML = """\
[model]
path = "demo"
[data]
train = "demo"
[training]
learning_rate = 1e-3
[trackers.aim]
repo = "here"
[trackers."tests.sample_trackers:Collector"]
api_key = "s3cret"
[params]
"team name" = "nlp"
"""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fmstune.toml").write_text(TOML)


@pytest.fixture
def fmstune(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["config", *arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def test_a_value_is_explained_with_its_source_and_what_it_overrides(fmstune: Any) -> None:
    code, out, _ = fmstune("explain", "training.learning_rate", "--set", "training.learning_rate=2e-4")
    assert code == 0
    assert out.splitlines() == [
        "training.learning_rate = 0.0002",
        "  from --set, overriding 0.001 from fmstune.toml:6 (default: 0.005)",
        "  The initial learning rate for AdamW.",
        "  takes a number, more than 0",
    ]
    _, out, _ = fmstune("explain", "lora.bias")
    assert out.splitlines()[:2] == ["lora.bias = 'none'", "  by default"]
    assert out.splitlines()[-1] == "  takes one of none, all, lora_only"


def test_without_a_key_every_set_value_is_explained_and_secrets_are_hidden(fmstune: Any) -> None:
    code, out, _ = fmstune("explain", "--json")
    assert code == 0
    found = {each["key"]: each for each in json.loads(out)}
    assert found.keys() == {
        "model.path", "data.train", "training.learning_rate", "trackers.aim.repo",
        'trackers."tests.sample_trackers:Collector".api_key', 'params."team name"',
    }  # fmt: skip
    assert found["trackers.aim.repo"]["origin"] == "fmstune.toml:8"
    assert "s3cret" not in out
    assert "s3cret" not in fmstune("explain")[1]


def test_a_table_is_explained_by_all_its_settings(fmstune: Any) -> None:
    _, out, _ = fmstune("explain", "lora", "--json")
    assert {each["key"] for each in json.loads(out)} >= {"lora.enabled", "lora.r", "lora.bias"}
    _, out, _ = fmstune("explain", "params")
    assert out.splitlines()[0] == "params.\"team name\" = 'nlp'"


def test_data_entries_are_explained_as_they_are_written(fmstune: Any) -> None:
    path = Path("a" * 70 + ".jsonl")
    path.touch()
    first, second, *_ = fmstune("explain", "data.train", "--set", f"data.train={path}")[1].splitlines()
    assert first == f"data.train = '{path}'"
    assert second == "  from --set, overriding 'demo' from fmstune.toml:4 (default: nothing)"
    sources = [{"path": str(path), "weight": 2.0}, {"path": "demo", "weight": 1.0}]
    tables = [f'[[data.train]]\npath = "{each["path"]}"\nweight = {each["weight"]}\n' for each in sources]
    Path("mixed.toml").write_text('[model]\npath = "demo"\n' + "".join(tables))
    (found,) = json.loads(fmstune("explain", "data.train", "mixed.toml", "--json")[1])
    assert found["value"] == sources


def test_a_configuration_is_given_as_for_train(fmstune: Any) -> None:
    Path("other.toml").write_text('[model]\npath = "demo"\n[data]\ntrain = "demo"\n[training]\nseed = 7\n')
    assert fmstune("explain", "training.seed", "other.toml")[1].splitlines()[:2] == [
        "training.seed = 7",
        "  from other.toml:6 (default: 42)",
    ]
    code, _, err = fmstune("explain", "other.toml", "--config", "fmstune.toml")
    assert code == 2
    assert "only one configuration can be explained; other.toml is a second one" in err


def test_the_flags_of_train_are_explained_by_their_names(fmstune: Any) -> None:
    flags = ["--learning-rate", "1e-4", "--seed", "0", "--rehearse", "--param", "team=nlp", "--data", "demo"]
    found = {each["key"]: each for each in json.loads(fmstune("explain", "--json", *flags)[1])}
    assert {key: (found[key]["value"], found[key]["origin"]) for key in found if key in FLAGS.values()} == {
        "model.path": ("demo", "fmstune.toml:2"),
        "data.train": ("demo", "--data"),
        "training.learning_rate": (1e-4, "--learning-rate"),
        "training.seed": (0, "--seed"),
        "run.rehearse": ("always", "--rehearse"),
    }
    assert found["training.learning_rate"]["over"] == [[1e-3, "fmstune.toml:6"]]
    assert found["params.team"]["origin"] == "--param"


def test_each_settings_flag_of_train_is_a_flag_of_explain_and_of_diff(fmstune: Any) -> None:
    for command in ("explain", "diff"):
        shown = fmstune(command, "--help")[1]
        assert [flag for flag in (*FLAGS, "--param", "--params-file") if flag not in shown] == []


def test_an_unknown_flag_is_refused_with_a_suggestion(fmstune: Any) -> None:
    code, _, err = fmstune("explain", "--lr", "1e-4")
    assert (code, "Did you mean --learning-rate?" in err) == (2, True)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lr", "there is no setting lr. Did you mean training.learning_rate?"),
        ("trackers.aim.rpo", "trackers.aim.rpo is not set; set are repo."),
        ("training.report_to", "choose trackers with --tracker"),
        ("model.path.x", "there is no setting"),
        ("..", "is not a key"),
        ("no_table.x", "there is no setting"),
    ],
)
def test_an_unknown_key_is_refused(fmstune: Any, key: str, said: str) -> None:
    code, out, err = fmstune("explain", key)
    assert (code, out) == (2, "")
    assert said in err


def test_every_setting_can_be_explained() -> None:
    from fmstune.config.inspect.explain import explain

    config = load(None)
    for key in known_keys():
        assert key.removeprefix("training.") not in OWNED_TRAINING
        first, *_ = explain(config, key).lines()
        assert first.startswith(f"{key} = ")


def test_two_runs_differ_in_settings_versions_and_commits(fmstune: Any) -> None:
    for name, rate, torch in (("a", "1e-3", "2.12.0"), ("b", "2e-3", "2.13.0")):
        Path(name, "tracking").mkdir(parents=True)
        Path(name, "config.toml").write_text(f"[training]\nlearning_rate = {rate}\nmax_steps = 3\n")
        journal = open_journal(Path(name))
        journal.append("params", {"name": "packages", "values": {"torch": torch, "trl": "1.16.0"}})
        journal.close()
    code, out, _ = fmstune("diff", "a", "b")
    assert code == 0
    assert out == 'packages.torch  "2.12.0" → "2.13.0"\ntraining.learning_rate  0.001 → 0.002\n'
    assert fmstune("diff", "a", "a")[1:] == ("", "from     a\nto       a\nno differences\n")
    _, out, _ = fmstune("diff", "a/config.toml", "b", "--json")
    assert {each["key"]: each["first"] for each in json.loads(out)}["packages.trl"] is None


def test_a_run_is_compared_with_what_the_same_flags_would_run_now(fmstune: Any) -> None:
    Path("a").mkdir()
    config = load(None, cwd=Path())
    tables = Redactor(secrets=("s3cret",)).mapping(to_mapping(config))
    Path("a", "config.toml").write_text(to_toml(config, tables))
    code, out, err = fmstune("diff", "a")
    assert (code, out, err.splitlines()[-1]) == (0, "", "no differences")
    assert "to       fmstune train: model demo (fmstune.toml:" in err
    _, out, _ = fmstune("diff", "a", "--seed", "7", "--set", "lora.r=4", "--param", "team=nlp")
    assert out.splitlines() == [
        "lora.r  16 → 4",
        'params.team  not set → "nlp"',
        "training.seed  not set → 7",
    ]


def test_flags_apply_to_the_second_of_two_runs(fmstune: Any) -> None:
    other = TOML.replace("1e-3", "2e-3").partition("[trackers.aim]")[0]
    Path("b").mkdir()
    Path("b", "config.toml").write_text(other)
    _, out, err = fmstune("diff", "b/config.toml", "b", "--learning-rate", "3e-3")
    assert out == "training.learning_rate  0.002 → 0.003\n"
    assert "to       b with the flags: model demo" in err


def test_both_sides_are_named_and_flags_alone_apply_to_the_run(fmstune: Any) -> None:
    Path("fmstune.toml").unlink()
    assert "no model and data given" in fmstune("explain", "lora.r")[2]
    assert fmstune("explain", "lora.r", "--model", "m", "--data", "o/d")[2] == (
        "for      model m (--model) · data o/d (--data)\n"
    )
    Path("a").mkdir()
    flags = [("model.path", "org/m", "--model"), ("data.train", "demo", "--data")]
    Path("a", "config.toml").write_text(to_toml(load(None, flags)))
    _, out, err = fmstune("diff", "a", "--learning-rate", "3e-3")
    assert [line.partition("  ")[0] for line in out.splitlines()] == ["training.learning_rate"]
    assert "to       a with the flags: model org/m (a/config.toml:" in err


def test_a_directory_without_a_run_is_refused(fmstune: Any) -> None:
    Path("empty").mkdir()
    code, _, err = fmstune("diff", "empty", "fmstune.toml")
    assert (code, err) == (2, "error: empty is not a run: it has no config.toml.\n")


def test_neither_loads_torch(fmstune: Any) -> None:
    import subprocess

    code = (
        "import sys; from fmstune.cli.main import main\n"
        "try: main(['config', 'explain', 'lora.r'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP=maybe", "ACCELERATE_MIXED_PRECISION=fp9"])
def test_a_variable_that_a_training_refuses_does_not_matter_where_nothing_is_trained(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(*arguments: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        return ended.value.code

    name, value = variable.split("=")
    monkeypatch.setenv(name, value)
    assert code("config", "explain", "training.learning_rate") == 0
    assert code("data", "demo", "--model", "demo", "--rows", "0") == 0
    capsys.readouterr()
    assert code("train", "--dry-run") == 2
    assert name in capsys.readouterr().err
