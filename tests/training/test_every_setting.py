"""Every setting has an effect: each field of TRL's four configurations is applied, refused or reported as
unused.

What happens to a field is determined by observation: a library reads it in a short run, a batch or another
argument changes with it, or the configuration is refused or reports it. No field is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fmstune
from fmstune.config.load.load import load
from fmstune.config.methods.known import METHODS
from fmstune.config.rules.unused import unused
from fmstune.config.schema.tables import RunConfig
from fmstune.config.schema.training import TrainingField, training_fields
from fmstune.errors import ConfigError
from fmstune.system.device import check_device
from fmstune.trackers.base import Tracker
from fmstune.training.arguments import training_arguments
from fmstune.training.build import build_trainer
from fmstune.training.methods.trained import trained_by
from tests.support.tuned import tune

pytestmark = pytest.mark.usefixtures("small_demo")

OTHER_VALUES: dict[str, Any] = {
    "accelerator_config": {"split_batches": True}, "activation_checkpointing_kwargs": {"use_reentrant": True},
    "debug": "underflow_overflow", "eos_token": "<|im_start|>", "eval_strategy": "epoch",
    "f_divergence_type": "js_divergence", "fsdp": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "hub_strategy": "end", "include_num_input_tokens_seen": "all", "include_for_metrics": ["loss"],
    "label_names": ["labels", "more"], "liger_kernel_config": {"rope": True}, "log_level": "debug",
    "log_level_replica": "debug", "logging_strategy": "epoch", "loss_weights": [2.0],
    "lr_scheduler_kwargs": {"num_cycles": 3}, "lr_scheduler_type": "cosine", "optim": "adafactor",
    "optim_args": "a=1", "optim_target_modules": ["q_proj"], "packing_strategy": "wrapped",
    "pad_token": "<|im_start|>", "save_strategy": "epoch", "train_sampling_strategy": "group_by_length",
    "truncation_mode": "keep_end", "torch_compile_mode": "reduce-overhead", "deepspeed": {"stage": 2},
    "ddp_backend": "mpi", "label_smoothing": 0.1, "fsdp_config": {"min_num_params": 2},
}  # fmt: skip
"""Where the type alone does not determine a non-default value."""

OURS = str(Path(fmstune.__file__).parent)
"""The package; with tox, the enclosing checkout contains the libraries too."""
PROCESSES = {"ddp_timeout"}
"""Fields that are only read in multi-process runs."""


def other_value(field: TrainingField) -> Any:
    """A valid non-default value of the field."""
    if field.name in OTHER_VALUES:
        return OTHER_VALUES[field.name]
    if isinstance(field.default, bool) or (field.default is None and "bool" in field.annotation):
        return not field.default
    if isinstance(field.default, (int, float)):
        return field.default + 1 if isinstance(field.default, int) else field.default * 0.5 + 0.01
    number = next((kind for kind in ("int", "float") if kind in field.annotation), "")
    return {"int": 2, "float": 0.5}.get(number) or next(iter(field.choices or ("text",)))


def configured(method: str, *sets: str, **training: Any) -> RunConfig:
    flags = [(f"training.{name}", value, "--set") for name, value in training.items()]
    return load(None, [("run.method", method, "--method"), *flags], [*sets, "data.max_rows=24"])


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> set[str]:
    """The fields of a run's arguments that a library reads, except when they are created, checked or
    written."""
    arguments = trained_by(request.getfixturevalue("method")).arguments
    names, found = {field.name for field in dataclasses.fields(arguments)}, set[str]()
    writers = {"to_dict", "to_sanitized_dict", "__repr__", "__post_init__", "_validate_args", "__eq__"}

    def get(self: Any, name: str) -> Any:
        if name in names:
            code = sys._getframe(1).f_code
            if not code.co_filename.startswith(OURS) and code.co_name not in writers:
                found.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(arguments, "__getattribute__", get, raising=False)
    return found


def changes_an_argument(method: str, name: str, value: Any) -> bool:
    """Whether a field changes other fields when it is converted to TRL's arguments."""
    made = [
        vars(training_arguments(configured(method, **given), Path("out"))) for given in ({}, {name: value})
    ]
    return any(made[0][each] != made[1][each] for each in made[0] if each not in (name, "output_dir"))


def batch(method: str, **training: Any) -> list[Any]:
    built = build_trainer(
        configured(method, "training.per_device_train_batch_size=3", **training), Tracker(), Path("out")
    )
    first = next(iter(built.trainer.get_train_dataloader()))
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in first.values()]


def refused(method: str, name: str, value: Any) -> bool:
    """Whether the configuration is refused with an error that names the setting."""
    try:
        check_device(configured(method, **{name: value}))
    except ConfigError as error:
        return f"training.{name}" in str(error)
    return False


@pytest.mark.parametrize("method", METHODS)
def test_no_field_is_accepted_and_ignored(method: str, read: set[str]) -> None:
    short = ["training.max_steps=2", "training.eval_steps=1", "training.save_steps=1", f"run.method={method}"]
    tune("out", *short, "data.max_rows=24")
    (Path("out") / "tracking" / "journal.jsonl").unlink()
    tune("out", *short, "data.max_rows=24", "training.max_steps=3", resume="out/checkpoint-1")

    ignored = []
    for name, field in training_fields(method).items():
        value = other_value(field)
        if name in read or name in PROCESSES or name == "output_dir" or refused(method, name, value):
            continue
        config = configured(method, **{name: value})
        named = f"training.{name}" in unused(config)
        if (
            not named
            and not changes_an_argument(method, name, value)
            and not applied_by_us(method, name, value)
        ):
            ignored.append(name)
    assert ignored == []


def applied_by_us(method: str, name: str, value: Any) -> bool:
    """Whether fmstune itself applies the field, as the data or the run's name shows."""
    if name == "run_name":  # see tests/run/test_run.py
        return True
    value = 12 if name == "max_length" else value
    more: dict[str, Any] = {"max_length": 12} if name == "truncation_mode" else {}
    if name == "shuffle_dataset":
        more = {"train_sampling_strategy": "sequential"}
    return batch(method, **more) != batch(method, **more, **{name: value})


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Rows of plain text, some longer, some shorter."""
    rows = [f"the {'big ' * (number % 5)}dog number {number} barks" for number in range(12)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return "data.train=texts.jsonl"


def trained_on(*sets: str) -> tuple[Any, list[list[int]], list[list[int]]]:
    """The tokenizer, and the ids and labels of the rows that a run with these settings would train on."""
    built = build_trainer(load(None, [("model.path", "demo", "--model")], sets), Tracker(), Path("out"))
    rows = built.trainer.train_dataset
    return built.tokenizer, list(rows["input_ids"]), list(rows["labels"])


def test_the_configured_end_token_is_trained_and_saved(texts: str) -> None:
    tokenizer, ids, labels = trained_on(texts, 'training.eos_token="<|im_start|>"')
    end = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert {row[-1] for row in ids} == {row[-1] for row in labels} == {end}

    tune("out", "model.path=demo", texts, "training.max_steps=1", 'training.eos_token="<|im_start|>"')
    assert json.loads(Path("out/tokenizer_config.json").read_text())["eos_token"] == "<|im_start|>"
    assert end in json.loads(Path("out/generation_config.json").read_text())["eos_token_id"]


def test_rows_are_truncated_at_the_configured_end(texts: str) -> None:
    _, whole, _ = trained_on(texts)
    _, ids, labels = trained_on(texts, "training.max_length=8", "training.truncation_mode=keep_end")
    assert ids == [row[-8:] for row in whole]
    assert all(row[0] == -100 and row[1:] == cut[1:] for row, cut in zip(labels, ids, strict=True))


def test_rows_are_shuffled_once_and_keep_their_locations(texts: str) -> None:
    sets = (texts, "training.shuffle_dataset=true", "training.train_sampling_strategy=sequential")
    built = build_trainer(load(None, [("model.path", "demo", "--model")], sets), Tracker(), Path("out"))
    _, whole, _ = trained_on(texts)
    ids = list(built.trainer.train_dataset["input_ids"])
    assert ids != whole
    assert [whole[int(place.rpartition(" ")[2]) - 1] for place in built.places] == ids


UNUSED = {
    "activation_checkpointing_kwargs={use_reentrant=true}": "activation_checkpointing=true",
    "packing_strategy=wrapped": "packing=true",
    "num_train_epochs=2": "max_steps=-1",
    "warmup_steps=3": "lr_scheduler_type=linear",
    "adam_beta1=0.8": "optim=adamw_torch",
    "optim_args='momentum=0.5'": "optim=sgd",
    "save_steps=7": "save_strategy=steps",
    "eval_steps=7": "eval_strategy=steps",
    "logging_steps=7": "logging_strategy=steps",
    "hub_model_id=me/mine": "push_to_hub=true",
    "greater_is_better=true": "metric_for_best_model=loss",
    "dataloader_in_order=false": "dataloader_num_workers=1",
}
"""Settings that are unused without another one, each with that one."""
_IDLE = (
    "lr_scheduler_type=constant",
    "save_strategy=epoch",
    "eval_strategy=epoch",
    "logging_strategy=epoch",
    "max_steps=5",
)


@pytest.mark.parametrize("setting", UNUSED)
def test_a_setting_is_unused_until_the_one_it_needs_is_set(setting: str) -> None:
    optimizer = "adafactor" if "adam" in setting else "adamw_torch"
    before = [f"training.{each}" for each in (*_IDLE, f"optim={optimizer}", setting)]
    assert list(unused(load(None, sets=before))) == [f"training.{setting.partition('=')[0]}"]
    assert not unused(load(None, sets=[*before, f"training.{UNUSED[setting]}"]))


@pytest.mark.parametrize(
    ("setting", "needed"),
    [
        ("label_smoothing=0.1", "loss_type=robust"),
        ("discopop_tau=0.1", "loss_type=discopop"),
        ("f_alpha_divergence_coef=0.3", "f_divergence_type=alpha_divergence"),
        ("ref_model_sync_steps=3", "sync_ref_model=true"),
        ("precompute_ref_batch_size=3", "precompute_ref_log_probs=true"),
    ],
)
def test_a_dpo_setting_is_unused_without_the_loss_that_reads_it(setting: str, needed: str) -> None:
    sets = ["run.method=dpo", f"training.{setting}"]
    assert list(unused(load(None, sets=sets))) == [f"training.{setting.partition('=')[0]}"]
    assert not unused(load(None, sets=[*sets, f"training.{needed}"]))


def test_label_smoothing_is_unused_with_a_loss_that_does_not_read_it() -> None:
    sets = ["training.label_smoothing_factor=0.1"]
    assert not unused(load(None, sets=sets))
    assert unused(load(None, sets=[*sets, "training.loss_type=dft"])) == {
        "training.label_smoothing_factor": "the loss is dft"
    }


@pytest.mark.parametrize("sets", [("run.compute_metrics=mine:score",), ()])
def test_a_function_for_metrics_is_unused_without_predictions(sets: tuple[str, ...]) -> None:
    key, evaluates = (
        "run.compute_metrics",
        ("model.path=demo", "data.train=demo", "data.eval=demo", "training.eval_strategy=epoch"),
    )
    for more, is_used in (
        (evaluates, True),
        ((*evaluates, "training.prediction_loss_only=true"), False),
        (("model.path=demo", "data.train=demo", "training.eval_strategy=no"), False),
    ):
        assert (key in unused(load(None, sets=[*sets, *more]), computes_metrics=not sets)) is not is_used


def test_unused_settings_are_reported_with_their_source_and_the_reason() -> None:
    said = tune(
        "out",
        "training.eval_strategy=no",
        "training.eval_delay=3",
        "training.run_name=mine",
        "training.max_steps=1",
    )
    assert "--set: training.eval_delay has no effect in this run: this run does not evaluate" in said
    header = json.loads(Path("out/tracking/journal.jsonl").read_text().partition("\n")[0])
    assert header["run"] == "mine"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dataset_text_field=body", "data.columns"),
        ("length_column_name=n", "fmstune knows the lengths"),
        ("dataset_num_proc=4", "fmstune prepares the data itself"),
        ("bf16_full_eval=true", "use training.bf16"),
        ("enable_jit_checkpoint=true", "always save a checkpoint"),
        ("project=mine", "trackers.wandb.project"),
        ("eval_packing=true", "set training.packing = true"),
        ("optim_args='momentun=0.5' training.optim=sgd", "Did you mean momentum?"),
        ("dataloader_persistent_workers=true", "training.dataloader_num_workers = 2"),
    ],
)
def test_unsupported_settings_are_refused_under_our_own_names(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(None, sets=[f"training.{each}" for each in setting.split(" training.")])


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_settings_that_trl_only_has_for_sft_are_refused(method: str) -> None:
    for setting in ("label_smoothing_factor=0.1", "train_sampling_strategy=group_by_length"):
        with pytest.raises(ConfigError, match="is only for sft"):
            load(None, sets=[f"run.method={method}", f"training.{setting}"])


def test_what_trl_refuses_while_the_trainer_is_built_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"is refused by TRL: .*router_aux_loss_coef"):
        batch("sft", router_aux_loss_coef=0.5)
