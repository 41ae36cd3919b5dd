"""`fmstune init --from` as a command: its flags, what it names, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from tests.support.foreign_configs import AXOLOTL, TRL
from tests.support.translated import init
from tests.support.tuned import dry_run_file


def test_flags_replace_the_files_settings_and_what_is_left_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("theirs.yml").write_text(f"{AXOLOTL}\nlisa_n_layers: 4\ndeepspeed: zero2.json\n")
    rows = [{"question": "Is it red?", "answer": "Yes."}] * 20
    Path("rows.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    flags = ("--model", "demo", "--data", "rows.jsonl", "--full", "--tracker", "file")
    assert init("--from", "theirs.yml", "-o", "ours.toml", *flags) == 0
    said = capsys.readouterr().err
    assert "a configuration of axolotl" in said
    assert "lisa_n_layers = 4" in said
    assert "training.deepspeed = 'zero2.json': there is no such file" in said
    assert "drops" in said
    written = Path("ours.toml").read_text()
    assert "lisa_n_layers" in written
    config = load(Path("ours.toml"), [("training.deepspeed", None, "fmstune.train")], trains=False)
    assert (config.model.path, config.lora.enabled) == ("demo", False)
    assert config.tracking.trackers == ("file",)


def test_a_translated_file_trains() -> None:
    Path("theirs.yml").write_text(
        "model_name_or_path: demo\ndataset_name: demo\nlearning_rate: 1e-3\nmax_steps: 3\n"
    )
    assert init("--from", "theirs.yml") == 0
    assert "ready for 3 steps" in dry_run_file("fmstune.toml")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yml", "a: [", "not valid YAML"),
        ("a.json", '{"a": 1,', "invalid JSON"),
        ("a.yml", "- a\n", "must contain the settings of another tool"),
        ("a.yml", "replicas: 3\nimage: nginx\n", "none of its settings"),
        ("a.sh", "echo hello\n", "no command with flags"),
        ("a.toml", "a = 1\n", "needs no translation"),
        ("absent.yml", None, "absent.yml"),
    ],
)
def test_what_is_no_configuration_is_refused(
    name: str, text: str | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path(name).write_text(text)
    assert init("--from", name) == 2
    assert expected in capsys.readouterr().err
    assert not Path("fmstune.toml").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model: {_component_: x.lora_llama, lora_rank: '${rank}'}", "does not hold"),
        (
            "dataset: {_component_: x.chat_dataset, source: d/d, new_system_prompt: Be kind.}",
            "new_system_prompt",
        ),
        ("dataset: {_component_: x.alpaca_dataset}", "### Instruction"),
        ("base_model: m/m\ndatasets: [{path: d/d, type: alpaca}]", "### Instruction"),
        (
            "dataset: [{_component_: x.chat_dataset, source: d/d},"
            " {_component_: x.chat_dataset, source: e/e, train_on_input: true}]",
            "train_on_input",
        ),
        ("base_model: m/m\ndatasets: [{path: d/d, drop_system_message: true}]", "drop_system_message"),
        ("base_model: m/m\ndatasets: [{path: d/d, roles_to_train: [user, assistant]}]", "roles_to_train"),
        ("base_model: m/m\ndatasets: [{path: d/d, train_on_eos: last}]", "train_on_eos = last"),
        ("model_name_or_path: m/m\ncutoff_len: 9\ntemplate: default", "template"),
        ("dataset_name: d/d\nuse_peft: true", "learns all tokens"),
        ("iters: 100\nlr_schedule: {name: cosine_decay, arguments: [1e-5, 50]}", "lr_schedule"),
    ],
)
def test_what_would_train_otherwise_is_named(
    setting: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs.yml").write_text(f"{setting}\nlearning_rate: 1e-4\n")
    assert init("--from", "theirs.yml") == 0
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting",
    [
        "datasets: [{path: d/d, type: chat_template, roles_to_train: [assistant]}]",
        "datasets: [{path: d/d, type: chat_template, roles_to_train: gpt}]",
        "max_steps: 9\nval_set_size: 0.1\nsaves_per_epoch: 1\nevals_per_epoch: 1",
    ],
)
def test_what_is_done_anyway_is_translated(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yml").write_text(f"base_model: m/m\nlearning_rate: 1e-4\nmicro_batch_size: 2\n{setting}\n")
    assert init("--from", "theirs.yml") == 0
    assert "not translated" not in capsys.readouterr().err


def test_variables_of_a_script_have_the_values_that_it_sets(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.sh").write_text(
        "export MODEL=there\nBATCH='2'\n"
        "swift sft --model ${MODEL} --dataset a/b --output_dir $OUT "
        "--per_device_train_batch_size $BATCH --run_name x-$(date)\n"
    )
    assert init("--from", "theirs.sh") == 0
    config = load(Path("fmstune.toml"), trains=False)
    assert config.model.path == "there"
    assert config.training["per_device_train_batch_size"] == 2
    said = capsys.readouterr().err
    assert "not translated: output_dir = " in said
    assert "not translated: run_name = " in said


def test_a_secret_is_neither_written_nor_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yml").write_text(
        f"{TRL}\nhub_token: not-so-secret-value\nhf_token: another-value-here\n"
        "mlflow_tracking_uri: http://me:pass-of-mine@host:5000\n"
    )
    assert init("--from", "theirs.yml") == 0
    shown = Path("fmstune.toml").read_text() + "".join(capsys.readouterr())
    assert "hub_token" in shown
    assert "not-so-secret-value" not in shown
    assert "another-value-here" not in shown
    assert "pass-of-mine" not in shown
