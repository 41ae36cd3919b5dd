"""What other tools' settings are here, if they are not just settings of another name (see `ALIASES`).

Sources: the configurations and the documentation of axolotl, LLaMA-Factory, TRL, torchtune, mlx-lm, ms-swift
and Unsloth.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

_PREPARES = "Leave it out: fmstune prepares the data with all processors and caches it (data.cache)."
_RECOGNISES = (
    "Leave it out: fmstune recognises the format of the rows, also from/value and other roles; "
    "data.handler converts what it does not know."
)
_PACKING = "Use training.packing; packed rows do not see each other, and batches have no padding."
_ENDS = "Leave it out: each answer is learnt up to and including its end token."
_CLASSES = "Leave it out: the model's own files say which classes it has."
_PARTS_OF_LORA = 'Use a regular expression: lora.target_modules = ".*layers\\\\.(8|9)\\\\..*_proj".'
_NOT_FROZEN = "fmstune trains all weights, some of them (model.trainable), or an adapter (--lora)."
_MIXES = "Give each source a weight: tables [[data.train]] with path and weight."
_RATES = (
    "Use model.lr_multipliers, factors for the learning rate of weights: {lora_B = 16} is LoRA+, and "
    "{embed_tokens = 0.1} is for embeddings."
)
_ONLINE = "fmstune trains on data; it has no methods that generate their answers during the training."
_TEXT = "fmstune only trains on text."
_GIVEN_BY_MODEL = "Set it in the config.json of the model's directory."
_IN_TOKENIZER = "Set it in the model's tokenizer files."
_ADDED = "Use model.add_tokens: they get embeddings (with --lora, train them with lora.modules_to_save)."
_FSDP = "Use training.fsdp = true, and training.fsdp_config for its settings."
_PARALLEL = "Use --nproc, training.fsdp or training.deepspeed."
_PER_EPOCH = (
    'Use training.{0}_strategy = "epoch", or "steps" with training.{0}_steps: a number below 1 is a fraction '
    "of the run."
)
_NO_SUCH_OPTIMIZER = (
    "training.optim takes transformers' optimizers, with their arguments in training.optim_args."
)

_ADVICE: dict[str, str] = {
    "Use lora.enabled = true for an adapter, or model.trainable for some of the weights; by default all are "
    "trained.": "finetuning_type train_type tuner_type",
    "Use training.warmup_steps: a number below 1 is a fraction of the run.": "warmup_ratio",
    _PER_EPOCH.format("eval"): "evals_per_epoch",
    _PER_EPOCH.format("save"): "saves_per_epoch",
    "Use --resume.": "auto_resume_from_checkpoints recipe_checkpoint",
    "Use --overwrite.": "overwrite_output_dir",
    "Leave it out: weights are always saved as safetensors.": (
        "save_safetensors safe_serialization safe_serialize"
    ),
    "Leave it out: each run has its curves in report.html.": "plot_loss",
    "Use trackers.tensorboard.dir.": "logging_dir log_dir",
    _PREPARES: (
        "dataset_prepared_path tokenized_path overwrite_cache preprocessing_num_workers "
        "preprocessing_batch_size dataset_processes skip_prepare_dataset push_dataset_to_hub "
        "load_from_cache_file dataset_keep_in_memory data_shared_file_system num_proc"
    ),
    _RECOGNISES: (
        "type ds_type formatting dataset_format message_property_mappings roles message_field_role "
        "message_field_content role_tag content_tag conversation_style user_tag assistant_tag "
        "conversation_column converter template_thinking_key field_thinking ranking"
    ),
    "Leave it out: messages and their parts may have `train` (true or false), also `train_detail`.": (
        "message_field_training message_field_training_detail"
    ),
    _ENDS: "train_on_eos train_on_eot eot_tokens add_eos append_eos_token efficient_eos",
    'Use data.columns, as in {messages = "dialog"} or {question = "title", answer = "body"}.': (
        "field_messages field_instruction field_input field_output field_system field_tools "
        "field_prompt field_chosen field_rejected field_completion field_label column_map "
        "prompt_feature completion_feature chat_feature text_feature text_column field "
        "dataset_text_field"
    ),
    "Use model.chat_template for the model's chat template (default: its own), or data.template for the text "
    "of a row with columns.": "template",
    "Use model.chat_template, with the name of a Jinja file.": "chat_template_jinja",
    "Use model.chat_template_kwargs = {enable_thinking = false}.": "enable_thinking preserve_thinking",
    "Put a system message into the rows, or add it with data.handler.": (
        "default_system default_system_message system_prompt new_system_prompt"
    ),
    _PACKING: (
        "neat_packing multipack packed batch_flattening pad_to_sequence_len batching_strategy "
        "max_packed_sequence_len sample_packing_eff_est sample_packing_bin_size "
        "sample_packing_group_size sample_packing_sequentially pad_to_max_length"
    ),
    _MIXES: (
        "mix_strategy interleave_probs probabilities stopping_strategy interleave_prob "
        "shuffle_merged_datasets"
    ),
    'Name the file or the hub\'s data set in data.train, as in [[data.train]] path = "data/alpaca.json".': (
        "dataset_dir data_files hf_hub_url data_dir hf_dataset"
    ),
    'Use max_rows and split in a table [[data.train]] or [[data.eval]]: split = "train[:10%]".': (
        "shards val_batches test_batches num_samples eval_table_size fraction"
    ),
    "Use training.eos_token and training.pad_token; others are in the model's tokenizer files.": (
        "special_tokens bos_token unk_token resize_token_embeddings_to_32x resize_vocab"
    ),
    _ADDED: (
        "tokens added_tokens add_special_tokens additional_special_tokens "
        "new_special_tokens new_special_tokens_config added_tokens_overrides"
    ),
    "To continue from an adapter, set model.path to its directory.": (
        "lora_model_dir adapter_name_or_path resume_adapter_file adapters ref_model_adapters "
        "adapter_checkpoint"
    ),
    "Use training.output_dir for where it is saved; to continue from an adapter, set model.path.": (
        "adapter_path"
    ),
    "Leave it out: a run that trains an adapter saves the adapter.": "save_adapter_weights_only",
    _CLASSES: (
        "model_type tokenizer_type processor_type model_class cls_model_config _component_ "
        "tokenizer_config base_model_config tokenizer_use_fast use_fast_tokenizer tokenizer_legacy "
        "merges_file merges_path vocab_path lora_task_type "
        "is_llama_derived_model is_mistral_derived_model checkpoint_files"
    ),
    _GIVEN_BY_MODEL: "rope_scaling rope_theta overrides_of_model_config hf_overrides",
    _IN_TOKENIZER: "padding_side split_special_tokens tokenizer_save_jinja_files",
    'Use model.dtype = "bfloat16" (or "float16"): the weights are then trained in it.': (
        "pure_bf16 bfloat16 float16 pure_fp16"
    ),
    'Use --lora with model.quantization = "4bit".': "qlora",
    "4bit is NF4 with double quantisation, as in the QLoRA paper.": (
        "bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant bnb_config_kwargs "
        "use_bnb_nested_quant bnb_4bit_quant_storage double_quantization quantization_type"
    ),
    "Use training.use_liger_kernel, and training.liger_kernel_config for its parts.": "liger_*",
    "fmstune has no plugins. For Liger's kernels, use training.use_liger_kernel; your own callbacks are "
    "run.callbacks.": "plugins",
    "Leave it out: fmstune chooses the fastest way that has the same result.": (
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel cut_cross_entropy flash_attn_rms_norm "
        "flash_attn_cross_entropy flash_attn_fuse_mlp flash_optimum use_unsloth use_unsloth_gc "
        "chunked_cross_entropy optimizer_in_bwd use_v1_kernels low_cpu_mem_usage low_cpu_ram "
        "fix_untrained_tokens experimental_skip_move_to_device fused"
    ),
    "Use training.activation_checkpointing_kwargs = {use_reentrant = false}.": (
        "use_reentrant use_reentrant_gc"
    ),
    "Use training.activation_checkpointing (off by default).": "disable_gradient_checkpointing",
    "Use run.on_nonfinite for a loss that is not finite.": "loss_watchdog_threshold loss_watchdog_patience",
    _PARTS_OF_LORA: (
        "peft_layers_to_transform layers_to_transform peft_layers_pattern num_layers lora_layers "
        "finetune_last_n_layers"
    ),
    "Use lora.target_modules, all-linear (the default) or names.": (
        "lora_attn_modules apply_lora_to_mlp apply_lora_to_output keys"
    ),
    "The scale of the adapter is lora.alpha / lora.r.": "scale",
    _NOT_FROZEN: ("use_llama_pro lisa_* relora full_finetuning full_finetune badam_* use_badam relora_*"),
    _RATES: (
        "loraplus_lr_ratio loraplus_lr_embedding embedding_lr embedding_lr_scale lr_groups "
        "embedding_learning_rate"
    ),
    "The adapter starts as PEFT's does, without a change to the model.": (
        "init_lora_weights peft_init_lora_weights lora_weight_init pissa_init pissa_iter pissa_convert "
        "loftq_config loftq"
    ),
    "Use split in a table [[data.train]] or [[data.eval]].": (
        "dataset_train_split dataset_test_split train_split eval_split valid_split"
    ),
    "Use subset in a table [[data.train]].": "dataset_config dataset_config_name subset_name",
    _NO_SUCH_OPTIMIZER: (
        "galore_* use_galore apollo_* use_apollo use_muon use_adam_mini qgalore_* dion_* "
        "optimizer_config optim_config"
    ),
    'Use training.loss_type = "dft".': "use_dft_loss enable_dft_loss",
    'Use training.loss_type = ["sigmoid", "sft"], with training.loss_weights.': "pref_ftx rpo_alpha",
    "The reference is the model as it was before the run.": "ref_model ref_model_path ref_adapters",
    "Use --method reward.": "reward_model num_labels",
    'Use training.lr_scheduler_type = "cosine_with_min_lr", with training.lr_scheduler_kwargs = '
    "{min_lr_rate = 0.1}.": "cosine_min_lr_ratio min_lr_ratio min_lr_rate eta_min lr_min",
    _FSDP: "fsdp_version fsdp_offload_params fsdp_cpu_offload fsdp_*",
    _PARALLEL: (
        "tensor_parallel_size context_parallel_size sequence_parallel_degree dp_shard_size "
        "dp_replicate_size expert_parallel_size num_processes num_machines use_ray cp_size "
        "tensor_parallel_dim sequence_parallel_size machine_rank distributed_type dist_config"
    ),
    "Leave it out: fmstune uses the GPUs, or the CPU with training.use_cpu.": "device device_map",
    "Use trackers.wandb.project (and entity, name, group, tags), with --tracker wandb.": "wandb_*",
    "Use trackers.swanlab.project (and workspace, experiment_name, mode), with --tracker swanlab.": (
        "swanlab_*"
    ),
    "Use trackers.trackio.project (and name, space_id), with --tracker trackio.": "trackio_*",
    "Use trackers.mlflow.tracking_uri (and experiment, run_name), with --tracker mlflow.": "mlflow_*",
    "Use trackers.comet.project (and workspace, experiment_name, mode), with --tracker comet.": "comet_*",
    "Choose trackers with --tracker or [tracking] trackers.": (
        "use_tensorboard use_mlflow use_comet use_clearml metric_logger logger"
    ),
    "Each run shows where the time of a step and the memory go: `fmstune runs show`.": (
        "profiler profiler_* log_peak_memory_stats enable_torch_profiler include_tokens_per_second "
        "include_num_input_tokens_per_second include_tkps"
    ),
    _ONLINE: "vllm use_vllm vllm_* trl ebft num_generations reward_funcs ppo_* reward_weights",
    _TEXT: "image_* video_* audio_* freeze_vision_tower freeze_multi_modal_projector media_dir",
    "Use samples.rows and samples.prompts: the model answers them at each evaluation.": (
        "predict_with_generate"
    ),
    "Leave it out: the accuracy of each token is a metric of every run.": "compute_accuracy",
    'Leave it out: only answers are learnt, unless data.train_on = "all".': (
        "mask_prompt train_on_completions"
    ),
    "Use training.lr_scheduler_type, training.warmup_steps and training.lr_scheduler_kwargs.": "lr_schedule",
    "Use data.eval for evaluation data; `fmstune train` evaluates it with training.eval_strategy.": "test",
    "The tokenizer is that of the model.": (
        "tokenizer_name_or_path tokenizer_name tokenizer_path tokenizer_id"
    ),
    "Leave it out; `fmstune merge` merges an adapter, and `fmstune generate` tries it.": (
        "export_* infer_backend merge_lora inference_mode for_inference fuse"
    ),
}
"""Names of settings by what to use here; `*` stands for any characters."""
_ELSEWHERE = {name: advice for advice, names in _ADVICE.items() for name in names.split() if "*" not in name}
_PATTERNS = {name: advice for advice, names in _ADVICE.items() for name in names.split() if "*" in name}


def advice_about(name: str) -> str | None:
    """What to use here instead of another tool's setting: a sentence; `None` for names that say nothing."""
    pattern = next((pattern for pattern in _PATTERNS if fnmatchcase(name, pattern)), "")
    return _ELSEWHERE.get(name) or _PATTERNS.get(pattern)
