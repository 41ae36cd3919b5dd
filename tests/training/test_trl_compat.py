"""The private parts of TRL, transformers, accelerate, PEFT and datasets that fmstune uses: all of them exist
in the installed versions, and nothing outside of the files that declare them uses any."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer

from fmstune import peft_compat, transformers_compat
from fmstune.config.schema.training import METHODS
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.trl_compat.saving import load_checkpoint

PACKAGE = Path(__file__).parents[2] / "fmstune"
KNOW = {
    *PACKAGE.glob("training/trl_compat/*.py"),
    PACKAGE / "transformers_compat.py",
    PACKAGE / "peft_compat.py",
}
LIBRARIES = ("trl", "transformers", "accelerate", "peft", "datasets", "huggingface_hub")


def found(path: str) -> Any:
    """The object at a dotted path: a module, and something in it."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"there is no module {path}")


TRAINERS = ("trl.SFTTrainer", "trl.DPOTrainer", "trl.KTOTrainer", "trl.RewardTrainer")

# Each with the parameters that we pass or receive, in order.
FUNCTIONS = {
    "transformers.Trainer._save_checkpoint": ("self", "model", "trial"),
    "transformers.Trainer._save": ("self", "output_dir", "state_dict"),
    "transformers.Trainer.save_model": ("self", "output_dir", "_internal_call"),
    "transformers.Trainer._get_grad_norm": ("self", "model", "grad_norm"),
    "transformers.Trainer._issue_warnings_after_load": ("self", "load_result"),
    "transformers.Trainer._get_num_items_in_batch": ("self", "batch_samples", "device"),
    "transformers.Trainer._set_signature_columns_if_needed": ("self",),
    "transformers.Trainer._prepare_inputs": ("self", "inputs"),
    "transformers.Trainer._load_callback_state": ("self",),
    "transformers.Trainer._save_optimizer_and_scheduler": ("self", "output_dir"),
    "transformers.Trainer._save_scaler": ("self", "output_dir"),
    "transformers.Trainer._save_rng_state": ("self", "output_dir"),
    "transformers.trainer.rotate_checkpoints": (
        "output_dir",
        "save_total_limit",
        "best_model_checkpoint",
        "use_mtime",
        "checkpoint_prefix",
    ),
    "transformers.modeling_utils.safe_save_file": ("tensors", "filename", "metadata"),
    "peft.peft_model.safe_save_file": ("tensors", "filename", "metadata"),
    "transformers.Trainer._load_from_checkpoint": ("self", "resume_from_checkpoint"),
    "transformers.Trainer._load_best_model": ("self",),
    **{f"{name}._prepare_dataset": ("self", "dataset", "processing_class", "args") for name in TRAINERS},
    "trl.experimental.orpo.ORPOTrainer.concatenated_forward": ("self", "model", "batch"),
    "accelerate.utils.memory.should_reduce_batch_size": ("exception",),
    "accelerate.optimizer.is_lomo_available": (),
    "transformers.trainer.is_sagemaker_mp_enabled": (),
    "accelerate.state.AcceleratorState._shared_state.copy": (),
    "accelerate.state.GradientState._shared_state.copy": (),
    "accelerate.logging.MultiProcessAdapter.warning_once.cache_clear": (),
    "transformers.utils.chat_template_utils.render_jinja_template": ("conversations",),
    "transformers.utils.chat_template_utils._compile_jinja_template": ("chat_template",),
    "transformers.integrations.sdpa_attention.sdpa_attention_forward": ("module", "query", "key", "value"),
    "transformers.masking_utils.sdpa_mask": (),
    "transformers.PreTrainedModel._can_set_attn_implementation": (),
    "transformers.pytorch_utils.Conv1D.forward": ("self",),
    "transformers.modeling_gguf_pytorch_utils.tqdm": (),
    "peft.PeftModel.load_adapter": ("self",),
    "peft.PeftModel.save_pretrained": ("self", "save_directory"),
    "peft.tuners.tuners_utils._check_lora_target_modules_mamba": (),
    "peft.utils.transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN.get": (),
    "peft.utils.transformers_weight_conversion._MOE_TARGET_MODULE_MAPPING.get": (),
    "datasets.table.InMemoryTable": ("table",),
    "datasets.iterable_dataset.ExamplesIterable": ("generate_examples_fn", "kwargs"),
    "datasets.IterableDataset": ("ex_iterable", "info"),
}
KEYWORDS = {
    "peft.PeftModel.save_pretrained": "save_embedding_layers",
    "transformers.utils.chat_template_utils.render_jinja_template": "return_assistant_tokens_mask",
    "trl.trainer.utils.add_fused_lm_head": "outputs",
}
# Attributes of instances: checked in the source of the class or module that sets them.
ATTRIBUTES = {
    "transformers.Trainer": (
        "_train_batch_size", "_created_lr_scheduler", "_signature_columns", "label_smoother",
        "gather_function", "compute_loss_func",
    ),
    **dict.fromkeys(TRAINERS, ("_metrics", "_total_train_tokens", "maybe_activation_offload_context")),
    "trl.KTOTrainer": (
        "_metrics", "_total_train_tokens", "maybe_activation_offload_context", "calculate_KL",
    ),
    "trl.experimental.orpo.ORPOTrainer": ("_stored_metrics",),
    "accelerate.Accelerator": ("scaler", "gather", "gather_for_metrics"),
    "accelerate.state.GradientState": ("end_of_dataloader", "remainder", "active_dataloader"),
    "accelerate.data_loader.DataLoaderShard": ("total_batch_size",),
    "accelerate.data_loader.DataLoaderDispatcher": ("total_batch_size",),
    "transformers.PreTrainedModel": (
        "_keep_in_fp32_modules",
        "_keep_in_fp32_modules_strict",
        "_tied_weights_keys",
    ),
    "transformers.PretrainedConfig": ("_commit_hash", "_attn_implementation", "_name_or_path"),
}  # fmt: skip
FIELDS = (
    "loss",
    "log_probs",
    "entropy",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
    "label_mask",
    "aux_loss",
)
# Phrases in the libraries' messages that fmstune looks for.
WORDS = {
    "peft.peft_model": peft_compat.MISSING_ADAPTER_KEYS,
    "peft.tuners.tuners_utils": "in EMBEDDING_LAYER_NAMES",
    "accelerate.logging": "[RANK {state.process_index}] ",
    "trl.trainer.utils": "fused_lm_head=False",
    "transformers.modeling_utils": "model.hf_quantizer = ",
    "transformers.core_model_loading": "model._weight_conversions = ",
    "transformers.quantizers.base": "model.quantization_method",
    "transformers.integrations.deepspeed": "global _hf_deepspeed_config_weak_ref",
    "transformers.integrations.integration_utils": "self._experiment = ",
}


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_private_function_accepts_our_arguments(path: str) -> None:
    function, wanted = found(path), FUNCTIONS[path]
    if wanted:
        names = tuple(inspect.signature(function).parameters)
        assert names[: len(wanted)] == wanted, f"{path}{names}"
    assert callable(function)


@pytest.mark.parametrize(("path", "keyword"), KEYWORDS.items())
def test_an_undocumented_keyword_exists(path: str, keyword: str) -> None:
    assert keyword in inspect.signature(found(path)).parameters


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in ATTRIBUTES for name in ATTRIBUTES[path]])
def test_a_private_attribute_is_set(path: str, name: str) -> None:
    owner = found(path)
    sources = "".join(inspect.getsource(each) for each in owner.__mro__ if each.__module__ != "builtins")
    assert hasattr(owner, name) or re.search(rf"\.{name}\b(: [^=\n]+)? = |\"{name}\"", sources), (
        f"{path} has no {name}"
    )


def test_the_fused_head_returns_the_metrics_that_we_compute() -> None:
    import dataclasses

    output = found("trl.trainer.utils.FusedCausalLMOutput")
    assert tuple(field.name for field in dataclasses.fields(output)) == FIELDS


@pytest.mark.parametrize("path", WORDS)
def test_the_phrases_that_are_searched_for_still_exist(path: str) -> None:
    # PEFT splits its sentence over source lines.
    source = re.sub(r'"\s*f?"', "", inspect.getsource(found(path)))
    assert WORDS[path] in source


def test_a_collator_and_its_trainer_support_padding_free_batches() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    assert "padding_free" in inspect.signature(DataCollatorForLanguageModeling).parameters
    assert "padding_free=self.padding_free" in inspect.getsource(found("trl.SFTTrainer.__init__"))


def test_the_hub_is_disabled_by_a_constant_of_its_library() -> None:
    assert isinstance(found("huggingface_hub.constants.HF_HUB_OFFLINE"), bool)


@pytest.mark.parametrize("name", [name for name in vars(PrivateHooks) if re.match(r"_[a-z]", name)])
def test_each_hook_is_a_method_that_the_trainer_calls(name: str) -> None:
    source = inspect.getsource(found("transformers.trainer")) + inspect.getsource(
        found("trl.trainer.sft_trainer")
    )
    # Called, or passed to what calls it.
    assert re.search(rf"self\.{name}[(,]", source), f"nothing calls {name} any more"


def test_the_classes_and_tables_that_are_read_as_source_exist() -> None:
    for place in (transformers_compat.TRAINING_ARGUMENTS, transformers_compat.TRL_BASE_CONFIG):
        head, whole = transformers_compat.class_source(*place)
        assert head in whole
    schedules = transformers_compat.library_source("transformers", transformers_compat.SCHEDULES_FILE)
    assert f"{transformers_compat.SCHEDULES_TABLE} = {{" in schedules
    enums = transformers_compat.library_source("transformers", transformers_compat.ENUM_FILES[0])
    assert f"class {transformers_compat.FSDP_OPTION}(ExplicitEnum)" in enums
    assert METHODS


def touched(path: Path) -> Iterator[str]:
    """The private names of the libraries that a file uses, as `line: name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    } | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            parts = [*(node.module or "").split("."), *(name.name for name in node.names)]
            yield from (f"{node.lineno}: {part}" for part in parts if re.match(r"_[a-z]", part))
        private = isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr)
        if private and isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner.startswith(("self", "cls", "os")) and node.attr in ours | {"_exit"}:
                continue
            if re.search(
                r"trainer|this|super\(\)|model|config|args|accelerator|tokenizer|trl|transformers", owner
            ):
                yield f"{node.lineno}: {owner}.{node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and re.match(r"_[a-z]", str(name.value)):
                yield f"{node.lineno}: {name.value!r}"


ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py")
OWN = {
    "report/console.py": ["super()._print"],
    "secrets/redaction.py": ["'_data'"],
    "user_code.py": ["'_inheriting'"],
}
"""False positives: a class of fmstune's above, and the standard library."""


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_file_uses_their_private_parts(room: str) -> None:
    files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    wrong = {
        name: uses
        for file in files
        if file not in KNOW
        and (uses := [use.partition(" ")[2] for use in touched(file)])
        and uses != OWN.get(name := str(file.relative_to(PACKAGE)))
    }
    assert not wrong
    # Methods of a Trainer that a mixin next to it overrides by their private name.
    hooks = {name for name in vars(PrivateHooks) if re.match(r"_[a-z]", name)}
    private = {name for name in dir(found("transformers.Trainer")) if re.match(r"_[a-z]", name)} | hooks
    for file in files:
        if file in KNOW or "train" not in str(file.relative_to(PACKAGE)):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                assert not defined & private, f"{file}: {node.name} overrides {defined & private}"


@pytest.mark.parametrize("divided", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_the_checkpoint_of_a_sharded_model_is_loaded_into_a_sharded_model(divided: str) -> None:
    # Stands in for a trainer with GPUs: with DeepSpeed or FSDP, only `_prepare_for_training` loads.
    loaded: list[Any] = []
    trainer: Any = SimpleNamespace(
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        state=SimpleNamespace(max_steps=4),
        get_train_dataloader=lambda: "batches",
        _prepare_for_training=lambda *given: loaded.append(given),
        _load_from_checkpoint=lambda *given: pytest.fail("loads into a whole model"),
    )
    setattr(trainer, divided, True)
    load_checkpoint(trainer, "checkpoint-4")
    assert loaded == [(4, "batches", "checkpoint-4")]
    names = list(inspect.signature(Trainer._prepare_for_training).parameters)
    assert names[1:] == ["max_steps", "train_dataloader", "resume_from_checkpoint"]
