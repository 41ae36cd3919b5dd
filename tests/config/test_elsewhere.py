"""Settings of other tools are answered with what they are here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fmstune.config.check.elsewhere import _ADVICE, advice_about
from fmstune.config.check.suggest import ALIASES
from fmstune.config.load.load import known_keys, load
from fmstune.config.methods.known import METHODS
from fmstune.errors import ConfigError

# After examples/llama-3/qlora.yml of axolotl, examples/train_lora/qwen3_lora_sft.yaml of LLaMA-Factory,
# recipes/configs/llama3_1/8B_lora_single_device.yaml of torchtune, and mlx_lm/examples/lora_config.yaml.
AXOLOTL = """
base_model: NousResearch/Meta-Llama-3-8B
model_type: AutoModelForCausalLM
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: aaditya/alpaca_subset_1
    type: alpaca
    split: train[:10%]
    name: main
    field_messages: conversations
dataset_prepared_path:
val_set_size: 0
adapter: qlora
lora_model_dir: x
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_target_linear: true
wandb_project: x
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
gradient_checkpointing_kwargs:
  use_reentrant: false
resume_from_checkpoint: x
warmup_ratio: 0.1
evals_per_epoch: 4
special_tokens:
  pad_token: "<|end_of_text|>"
  bos_token: "<s>"
unfrozen_parameters:
  - ^lm_head.weight$
peft_use_rslora: true
"""
LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
plot_loss: true
overwrite_output_dir: true
report_to: none
pure_bf16: true
mix_strategy: interleave_under
pref_beta: 0.1
"""
TORCHTUNE = """
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_rank: 8
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: null
checkpointer:
  checkpoint_dir: /tmp/Meta-Llama-3.1-8B-Instruct/
  checkpoint_files: [model-00001-of-00004.safetensors]
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: True
  source: x
optimizer:
  _component_: torch.optim.AdamW
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
max_steps_per_epoch: 9
log_every_n_steps: 1
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
"""
MLX = (
    '{"data": "x", "fine_tune_type": "lora", "iters": 9, "steps_per_eval": 3, "lora_parameters": {"rank": 8}'
    ', "lr_schedule": {"name": "cosine_decay", "warmup": 9}, "mask_prompt": true}'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            AXOLOTL,
            {
                "base_model": "model.path",
                "model_type": "Leave it out",
                "load_in_4bit": "model.quantization",
                "datasets.path": "data.train",
                "datasets.type": "Leave it out",
                "datasets.split": "split in a table [[data.train]]",
                "datasets.name": "subset in a table [[data.train]]",
                "datasets.field_messages": "Use data.columns",
                "adapter": "lora.enabled",
                "lora_model_dir": "To continue from an adapter, set model.path",
                "wandb_project": "Use trackers.wandb.project",
                "optimizer": "training.optim",
                "gradient_checkpointing_kwargs": "training.gradient_checkpointing_kwargs",
                "resume_from_checkpoint": "It is managed by fmstune: use --resume.",
                "warmup_ratio": "Use training.warmup_steps",
                "evals_per_epoch": "Use training.eval_strategy",
                "special_tokens": "Use training.eos_token and training.pad_token",
                "unfrozen_parameters": "model.trainable",
                "peft_use_rslora": "lora.rslora",
            },
        ),
        (
            LLAMA_FACTORY,
            {
                "trust_remote_code": "model.trust_remote_code",
                "stage": "run.method",
                "finetuning_type": "Use lora.enabled = true for an adapter, or model.trainable",
                "lora_target": "lora.target_modules",
                "template": "Use model.chat_template",
                "cutoff_len": "training.max_length",
                "preprocessing_num_workers": "Leave it out",
                "report_to": "tracking.trackers",
                "mix_strategy": "Give each source a weight",
                "pref_beta": "training.beta",
            },
        ),
        (
            TORCHTUNE,
            {
                "model._component_": "model.path",
                "tokenizer._component_": "Leave it out",
                "checkpointer.checkpoint_dir": "model.path",
                "dataset._component_": "data.train",
                "dataset.packed": "Use training.packing",
                "dataset.source": "data.train",
                "optimizer._component_": "training.optim",
                "optimizer.lr": "training.learning_rate",
                "lr_scheduler._component_": "training.lr_scheduler_type",
                "max_steps_per_epoch": "training.max_steps",
                "metric_logger": "Choose trackers",
            },
        ),
        (
            MLX,
            {
                "data": "data.train",
                "iters": "training.max_steps",
                "lora_parameters.rank": "lora.r",
                "lr_schedule": "Use training.lr_scheduler_type",
                "mask_prompt": "Leave it out",
            },
        ),
    ],
)
def test_the_settings_of_another_tools_configuration_are_named(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    name = "x.json" if text.startswith("{") else "x.yml"
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="fmstune reads TOML") as refused:
        load(tmp_path / name, cwd=tmp_path)
    _, *lines = str(refused.value).splitlines()
    found = {theirs: ours.strip() for theirs, ours in (line.strip().split("  ", 1) for line in lines)}
    assert {theirs: found[theirs][: len(ours)] for theirs, ours in expected.items()} == expected
    assert "there is no such setting" not in found.values()
    assert "dataset_prepared_path" not in found  # it is empty


def test_another_tools_settings_as_toml_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        'base_model = "x"\nmicro_batch_size = 2\nadapter = "lora"\nplugins = ["y"]'
    )
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "x.toml", cwd=tmp_path)
    assert [line.split()[:2] for line in str(refused.value).splitlines()[1:]] == [
        ["base_model", "model.path"],
        ["micro_batch_size", "training.per_device_train_batch_size"],
        ["adapter", "lora.enabled"],
        ["plugins", "fmstune"],
    ]


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", "", "&a [*a]\n", "\x00"])
def test_a_yaml_file_without_settings_is_refused_as_not_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(tmp_path / "x.yaml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("evals_per_epoch=4", "there is no setting evals_per_epoch. Use training.eval_strategy"),
        (
            "training.warmup_ratio=0.1",
            "Use training.warmup_steps: a number below 1 is a fraction of the run.",
        ),
        ("liger_rope=true", "Use training.use_liger_kernel"),
        ("local_rank=1", "It is managed by fmstune: torchrun sets it."),
        ("lora.enabled=qlora", 'Write true, with model.quantization = "4bit".'),
        ("lora.enabled=full", "Write false."),
        ("training.bf16=auto", "Leave it out for the default."),
        ("training.gradient_checkpointing=unsloth", "Write true."),
        ("training.optim=lion", "Did you mean lion_32bit?"),
        ("training.optim=adamw_hf", "Did you mean adamw_torch?"),
        ("run.method=pt", "Did you mean sft?"),
        ("run.method=ipo", 'Did you mean dpo with training.loss_type = "ipo"?'),
        ("model.attn_implementation=fa2", "Did you mean flash_attention_2?"),
        ("model.chat_template=qwen3", "leave it out for the model's own."),
        ('data.train=[{path="demo", ds_type="json"}]', "Leave it out: fmstune recognises the format"),
    ],
)
def test_a_setting_or_value_of_another_tool_is_answered(tmp_path: Path, assignment: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, sets=["model.path=demo", "data.train=demo", assignment], cwd=tmp_path)
    assert says in str(refused.value)


@pytest.mark.parametrize("sentence", _ADVICE)
def test_advice_names_existing_settings(sentence: str) -> None:
    known = {key for method in METHODS for key in known_keys(method)}
    named = set(re.findall(r"\b(?:model|data|training|lora|run|samples|tracking)\.[a-z_]+", sentence))
    assert named <= known
    assert sentence.endswith(".")


def test_no_advice_hides_a_setting_of_fmstune() -> None:
    ours = {key.rpartition(".")[2] for method in METHODS for key in known_keys(method)}
    assert {name for name in ours if advice_about(name)} == {
        *("fsdp_config", "liger_kernel_config", "template", "tokens")
    }


def test_a_setting_is_an_alias_or_has_advice() -> None:
    assert {name for name in ALIASES if advice_about(name)} == {"warmup_ratio"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine", "Did you mean data/mine.json, as dataset_info.json says?"),
        ("theirs", "Did you mean owner/theirs, as dataset_info.json says?"),
        ("other", "names on the hub have the form owner/name"),
        ("mine,theirs", "Give several sources as a list, or with several --data."),
    ],
)
def test_a_name_in_the_data_sets_of_llama_factory_is_resolved(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").write_text("[]")
    listed = {"mine": {"file_name": "mine.json"}, "theirs": {"hf_hub_url": "owner/theirs"}, "other": [1]}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(listed))
    with pytest.raises(ConfigError) as refused:
        load(None, sets=["model.path=demo", f"data.train={name}"], cwd=tmp_path)
    assert says in str(refused.value)
