"""Configurations of other tools, as their users write them."""

from __future__ import annotations

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
