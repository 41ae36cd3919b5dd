"""`fmstune init --from` translates the configurations of other tools, with their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.cli.main import main
from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from tests.support.tuned import dry_run_file

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
    split: train[:10%]
  - path: json
    data_files: chats.jsonl
    type: chat_template
    field_messages: dialog
    message_property_mappings: {role: from, content: value}
val_set_size: 0.1
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
wandb_project: llamas
wandb_entity:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 2
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
flash_attention: false
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-0.6B
stage: dpo
pref_beta: 0.2
pref_loss: hinge
finetuning_type: lora
lora_target: q_proj,v_proj
lora_rank: 16
dataset: pairs
cutoff_len: 1024
max_samples: 500
report_to: none
per_device_train_batch_size: 1
learning_rate: 5.0e-6
num_train_epochs: 3.0
warmup_steps: 20
save_steps: 500
overwrite_output_dir: true
"""
TORCHTUNE = """
output_dir: /tmp/tuned
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 64
  lora_alpha: 128
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: there
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: True
batch_size: 2
batch_size_val: ${batch_size}
epochs: 1
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
dtype: bf16
seed: null
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
"""
MLX = """
model: "mlx-community/Llama-3.2-1B-Instruct"
fine_tune_type: dora
data: chats
num_layers: -1
batch_size: 8
iters: 600
grad_accumulation_steps: 2
learning_rate: 1e-5
steps_per_eval: 200
lora_parameters:
  rank: 4
  scale: 10.0
  dropout: 0.0
"""
TRL = """
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/Capybara
use_peft: true
lora_r: 32
max_length: 2048
packing: true
gradient_checkpointing: true
report_to: [wandb, tensorboard]
"""
SWIFT = r"""
# 22GB
CUDA_VISIBLE_DEVICES=0 NPROC=1 \
swift rlhf \
    --model Qwen/Qwen3-0.6B \
    --rlhf_type dpo \
    --dataset 'hjh0119/shareAI#500' more/pairs:en \
    --split_dataset_ratio 0.01 \
    --torch_dtype bfloat16 \
    --per_device_train_batch_size 2 \
    --target_modules all-linear \
    --lora-rank=4 \
    --eval_steps 50 \
    --deepspeed zero2 \
    --system 'You are helpful.' \
    --warmup_ratio $(expr 1 / 2) | tee log.txt
"""
TRL_COMMAND = (
    "trl dpo --model_name_or_path m/m --dataset_name d/d --learning_rate 5.0e-7 --gradient_checkpointing"
)
LR_OF_AXOLOTL = """
base_model: m/m
adapter: lora
lora_target_modules: [q_proj]
lora_target_linear: true
datasets: [{path: d/d, type: alpaca}]
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
learning_rate: 1e-4
micro_batch_size: 2
batch_size: 16
"""
PRETRAINING_OF_LLAMA_FACTORY = """
model_name_or_path: m/m
stage: pt
dataset: texts
cutoff_len: 512
"""
LLAMA_FACTORY_V1 = """
model: m/m
peft_config: {name: lora, r: 4, lora_alpha: 12, lora_dropout: 0.05, target_modules: all}
dist_config: {name: fsdp2}
cutoff_len: 2048
micro_batch_size: 1
train_dataset: chats.jsonl
learning_rate: 1.0e-4
"""
SCHEDULE_OF_MLX = """
model: m/m
data: chats
iters: 1000
grad_accumulation_steps: 10
steps_per_eval: 200
steps_per_report: 20
learning_rate: 1e-4
lr_schedule: {name: cosine_decay, warmup: 10, arguments: [2e-5, 100, 2e-6]}
lora_parameters: {rank: 8, scale: 20.0}
"""
PAIRS_OF_AXOLOTL = """
base_model: m/m
rl: dpo
datasets: [{path: d/d, type: chat_template.default, field_messages: dialog, field_rejected: bad}]
learning_rate: 1e-4
micro_batch_size: 2
"""
LIMITS_OF_TORCHTUNE = """
base: /tmp/here
folder: ${base}/tuned
output_dir: ${folder}/run
checkpointer: {_component_: c, checkpoint_dir: there}
dataset: {_component_: torchtune.datasets.chat_dataset, source: d/d, conversation_column: dialog,
          conversation_style: sharegpt}
epochs: 3
max_steps_per_epoch: 100
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4, betas: [0.9, 0.95], eps: 1e-6}
"""
PAIRS = {
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"},
    },
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "body"}},
}
PAIR_COLUMNS = {"instruction": "question", "chosen": "good", "rejected": "bad"}
EXPECTED: dict[str, dict[str, Any]] = {
    AXOLOTL: {
        "model.path": "NousResearch/Llama-3.2-1B",
        "lora.enabled": True,
        "lora.r": 32,
        "lora.alpha": 16,
        "lora.target_modules": "all-linear",
        "data.train": [
            ("teknium/GPT4-LLM-Cleaned", "train[:10%]", None),
            ("chats.jsonl", None, {"messages": "dialog"}),
        ],
        "data.eval_fraction": 0.1,
        "training.max_length": 4096,
        "training.packing": True,
        "training.gradient_accumulation_steps": 4,
        "training.per_device_train_batch_size": 2,
        "training.num_train_epochs": 2,
        "training.learning_rate": 2e-4,
        "training.lr_scheduler_type": "cosine",
        "training.activation_checkpointing": True,
        "training.warmup_steps": 0.1,
        "training.eval_strategy": "steps",
        "training.eval_steps": 0.125,
        "training.save_strategy": "epoch",
        "training.pad_token": "<|end_of_text|>",
        "tracking.trackers": ("wandb",),
        "trackers.wandb": {"project": "llamas"},
    },
    LLAMA_FACTORY: {
        "run.method": "dpo",
        "training.beta": 0.2,
        "training.loss_type": "hinge",
        "lora.r": 16,
        "lora.alpha": 32,  # by default twice the rank
        "lora.target_modules": ("q_proj", "v_proj"),
        "data.train": [("data/pairs.json", None, PAIR_COLUMNS)],
        "data.max_rows": 500,
        "training.warmup_steps": 20,
        "training.save_strategy": "steps",
        "training.save_steps": 500,
        "tracking.trackers": (),
    },
    TORCHTUNE: {
        "model.path": "there",
        "model.dtype": "bfloat16",
        "lora.enabled": True,
        "lora.target_modules": ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "data.train": [("yahma/alpaca-cleaned", None, None)],
        "data.train_on": "all",  # as this data set does unless told otherwise
        "training.packing": True,
        "training.learning_rate": 3e-4,
        "training.weight_decay": 0.01,  # torch's
        "training.max_grad_norm": 0.0,
        "training.max_length": None,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 100,
        "training.per_device_eval_batch_size": 2,
    },
    MLX: {
        "lora.dora": True,
        "lora.r": 4,
        "lora.alpha": 40,
        "data.train": [("chats/train.jsonl", None, None)],
        "data.eval": [("chats/valid.jsonl", None, None)],
        "data.train_on": "all",
        "training.max_steps": 300,  # updates
        "training.weight_decay": 0.0,
        "training.lr_scheduler_type": "constant",
        "training.max_length": 2048,
        "training.eval_strategy": "steps",
    },
    SWIFT: {
        "run.method": "dpo",
        "data.train": [("hjh0119/shareAI", None, None), ("more/pairs", None, None)],
        "data.eval_fraction": 0.01,
        "model.dtype": "bfloat16",
        "lora.enabled": True,
        "lora.r": 4,
        "lora.alpha": 32,
        "training.gradient_accumulation_steps": 8,  # to 16 rows in an update
        "training.learning_rate": 1e-4,
        "training.adam_beta2": 0.95,
        "training.eval_steps": 50,
        "training.activation_checkpointing": True,
    },
    TRL_COMMAND: {
        "run.method": "dpo",
        "training.learning_rate": 5e-7,
        "training.activation_checkpointing": True,
        "lora.enabled": False,
    },
    TRL: {
        "lora.dropout": 0.05,
        "lora.target_modules": ("q_proj", "v_proj"),  # PEFT's
        "training.learning_rate": 2e-5,  # fmstune's own for an adapter is higher
        "training.activation_checkpointing": True,
        "tracking.trackers": ("wandb", "tensorboard"),
    },
    LR_OF_AXOLOTL: {
        "lora.target_modules": "all-linear",  # and q_proj, which is one of them
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "training.warmup_steps": 0.03,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 8,  # batch_size is that of an update
    },
    PRETRAINING_OF_LLAMA_FACTORY: {
        "lora.enabled": True,  # also with a stage
        "training.packing": True,
        "data.train": [("data/texts.jsonl", None, {"text": "body"})],
    },
    LLAMA_FACTORY_V1: {
        "lora.enabled": True,
        "lora.r": 4,
        "lora.alpha": 12,
        "lora.dropout": 0.05,
        "lora.target_modules": "all-linear",
    },
    SCHEDULE_OF_MLX: {
        "training.max_steps": 100,  # iterations are batches
        "training.eval_steps": 20,
        "training.logging_steps": 2,
        "training.learning_rate": 2e-5,  # the schedule's
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr": 2e-6},
        "training.warmup_steps": 10,
    },
    PAIRS_OF_AXOLOTL: {  # a column that is not named would be left out
        "data.train": [("d/d", None, {"chosen": "chosen", "messages": "dialog", "rejected": "bad"})],
    },
    LIMITS_OF_TORCHTUNE: {
        "training.output_dir": "/tmp/here/tuned/run",
        "training.max_steps": 300,
        "training.adam_beta2": 0.95,
        "training.adam_epsilon": 1e-6,
        "data.train": [("d/d", None, {"messages": "dialog"})],
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps(PAIRS))
    for name in (
        "data/pairs.json",
        "data/texts.jsonl",
        "chats.jsonl",
        "chats/train.jsonl",
        "chats/valid.jsonl",
        "there/config.json",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")


def init(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["init", *arguments])
    return int(end.value.code or 0)


def value_of(config: RunConfig, key: str) -> Any:
    table, _, name = key.partition(".")
    found: Any = getattr(config, table)
    found = found.get(name) if isinstance(found, dict) else getattr(found, name)
    if key in ("data.train", "data.eval"):
        return [(source.path, source.split, source.columns) for source in found]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    EXPECTED.items(),
    ids=[
        *("axolotl", "llama-factory", "torchtune", "mlx-lm", "ms-swift", "trl dpo", "trl"),
        *("axolotl-schedule", "pretraining", "v1", "mlx-schedule", "axolotl-pairs", "torchtune-limits"),
    ],
)
def test_the_settings_and_defaults_of_a_tool_are_translated(text: str, expected: dict[str, Any]) -> None:
    name = "theirs.sh" if "--" in text else "theirs.yml"
    Path(name).write_text(text)
    assert init("--from", name) == 0
    config = load(Path("fmstune.toml"), trains=False)
    assert {key: value_of(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (f"{MLX}mask_prompt: true\n", "data.train_on", "responses"),
        (f"{MLX}mask_prompt: false\n", "data.train_on", "all"),
        (MLX.replace("dora", "full"), "lora.enabled", False),
        (SWIFT.replace("--eval_steps 50", "--tuner_type full"), "lora.enabled", False),
        (SWIFT.replace("--eval_steps 50", "--weight_decay 0"), "training.weight_decay", 0),
        (LLAMA_FACTORY.replace("finetuning_type: lora", "finetuning_type: full"), "lora.enabled", False),
    ],
)  # fmt: skip
def test_no_default_replaces_what_a_file_says(text: str, key: str, expected: Any) -> None:
    name = "theirs.sh" if "--" in text else "theirs.yml"
    Path(name).write_text(text)
    assert init("--from", name) == 0
    assert value_of(load(Path("fmstune.toml"), trains=False), key) == expected


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
