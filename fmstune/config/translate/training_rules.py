"""What settings of the training are here, where the value differs or depends on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmstune.config.translate.foreign import COMPONENT, Foreign
from fmstune.config.translate.rule import Here, Left, Rule, if_true, nothing, to


def _evaluates(theirs: Foreign) -> bool:
    data = ("val_set_size", "test_datasets", "val_dataset", "split_dataset_ratio")
    return any(theirs.get(name) for name in data)


def _per_epoch(what: str) -> Rule:
    def rule(value: Any, theirs: Foreign) -> Here:
        epochs = theirs.get("num_epochs", 1)
        if what == "eval" and not _evaluates(theirs):
            return {}
        if value == 1:
            return {f"training.{what}_strategy": "epoch"}
        if theirs.get("max_steps") or not isinstance(value, (int, float)) or not value:
            raise Left("")
        return {
            f"training.{what}_strategy": "steps",
            f"training.{what}_steps": round(1 / (value * epochs), 9),
        }

    return rule


def _steps(what: str) -> Rule:
    """A number of steps, which here only counts with the strategy."""

    def rule(value: Any, theirs: Foreign) -> Here:
        if what == "eval" and theirs.tool in ("axolotl", "ms-swift") and not _evaluates(theirs):
            return {}
        value = _updates(value, theirs)
        if theirs.get(f"{what}_strategy") or theirs.get("evaluation_strategy" if what == "eval" else ""):
            return {f"training.{what}_steps": value}
        return {f"training.{what}_strategy": "steps", f"training.{what}_steps": value}

    return rule


def _warmup_ratio(value: Any, theirs: Foreign) -> Here:
    if theirs.get("warmup_steps"):  # which goes before
        return {}
    return {"training.warmup_steps": value if value < 1 else 1}


def _optimizer(value: Any, theirs: Foreign) -> Here:
    last = str(value).rpartition(".")[2]
    names = {
        "AdamW": "adamw_torch",
        "AdamW8bit": "adamw_bnb_8bit",
        "PagedAdamW": "paged_adamw_32bit",
        "PagedAdamW8bit": "paged_adamw_8bit",
        "SGD": "sgd",
        "adamw": "adamw_torch",
        "adam": "adamw_torch",
    }
    if last in names:
        decay = {"training.weight_decay": 0.0} if last == "adam" else {}
        return {"training.optim": names[last], **decay}
    return {"training.optim": value}


def _betas(value: Any, theirs: Foreign) -> Here:
    first, second = value
    return {"training.adam_beta1": first, "training.adam_beta2": second}


def _cycles(value: Any, theirs: Foreign) -> Here:
    return {} if value == 0.5 else {"training.lr_scheduler_kwargs": {"num_cycles": value}}


def _scheduler(value: Any, theirs: Foreign) -> Here:
    if value == "cosine" and theirs.get("cosine_min_lr_ratio"):  # which sets it
        return {}
    last = str(value).rpartition(".")[2]
    return {"training.lr_scheduler_type": "cosine" if last == "get_cosine_schedule_with_warmup" else value}


def _schedule_of_mlx(value: Any, theirs: Foreign) -> Here:
    name, arguments, warmup = value.get("name"), value.get("arguments", []), value.get("warmup", 0)
    if name != "cosine_decay" or not 2 <= len(arguments) <= 3 or value.get("warmup_init"):
        raise Left("Use training.lr_scheduler_type.")
    first, steps, last = [*arguments, 0.0][:3]
    updates = _iterations(theirs.get("iters", 1000), theirs)["training.max_steps"]
    if not updates - warmup - 1 <= steps <= updates:
        raise Left(f"Here the rate falls until the end of the run, after {updates} steps.")
    at_end = {"training.lr_scheduler_kwargs": {"min_lr": last}} if last else {}
    return {
        "training.learning_rate": first,
        "training.lr_scheduler_type": "cosine_with_min_lr" if last else "cosine",
        "training.warmup_steps": warmup,
        **at_end,
    }


def _rate(value: Any, theirs: Foreign) -> Here:
    schedule = theirs.settings.get("lr_schedule")
    if theirs.tool == "mlx-lm" and isinstance(schedule, Mapping):  # which goes before
        value = schedule["arguments"][0]
    return {"training.learning_rate": value}


def _shuffle(value: Any, theirs: Foreign) -> Here:
    return {} if value else {"training.train_sampling_strategy": "sequential"}


def _updates(batches: Any, theirs: Foreign) -> Any:
    """A number of steps. Those of mlx-lm are batches, of which some make an update."""
    accumulated = int(theirs.get("grad_accumulation_steps", 1) or 1) if theirs.tool == "mlx-lm" else 1
    return batches if accumulated == 1 else max(1, int(batches) // accumulated)


def _iterations(value: Any, theirs: Foreign) -> Here:
    return {"training.max_steps": _updates(value, theirs)}


def _reports(value: Any, theirs: Foreign) -> Here:
    return {"training.logging_steps": _updates(value, theirs)}


def _steps_of_epochs(value: Any, theirs: Foreign) -> Here:
    return {"training.max_steps": int(value) * int(theirs.get("epochs", 1))}


def _batch(value: Any, theirs: Foreign) -> Here:
    """The size of a batch; axolotl's is that of all batches of an update."""
    each = theirs.get("micro_batch_size", 1)
    if theirs.tool != "axolotl":
        return {"training.per_device_train_batch_size": value}
    if theirs.get("gradient_accumulation_steps"):
        return {}
    if value % each:
        raise Left(f"It is no multiple of micro_batch_size = {each}.")
    return {"training.gradient_accumulation_steps": value // each}


def _method(value: Any, theirs: Foreign) -> Here:
    if value == "dpo" and theirs.get("pref_loss") == "orpo":
        return {"run.method": "orpo"}
    kinds: dict[str, Here] = {
        "sft": {},
        "rlhf": {},
        "pt": {},
        "rm": {"run.method": "reward"},
        "ipo": {"run.method": "dpo", "training.loss_type": "ipo"},
    }
    if value not in (*kinds, "dpo", "kto", "orpo", "reward"):
        raise Left("fmstune has the methods sft, dpo, kto, reward and orpo.")
    return kinds.get(value, {"run.method": value})


def _preference_loss(value: Any, theirs: Foreign) -> Here:
    if value in ("orpo", "simpo"):
        if value == "orpo":
            return {}
        raise Left("fmstune has no SimPO.")
    return {"training.loss_type": value}


def _decay_of_rate(value: Any, theirs: Foreign) -> Here:
    if not value:
        return {}
    if theirs.get("lr_scheduler", "cosine") != "cosine":
        raise Left("Only the schedule cosine has it.")
    return {
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr_rate": value},
    }


def _system(value: Any, theirs: Foreign) -> Here:
    raise Left("Put a system message into the rows, or add it with data.handler.")


def _truncation(value: Any, theirs: Foreign) -> Here:
    if value == "right":
        return {}
    raise Left("fmstune cuts off the end of rows longer than training.max_length.")


def _loss_of_torchtune(value: Any, theirs: Foreign) -> Here:
    name = str(value.get(COMPONENT, "")).rpartition(".")[2]
    if name == "DPOLoss":
        kept = {"beta": "training.beta", "label_smoothing": "training.label_smoothing"}
        return {"run.method": "dpo", **{ours: value[key] for key, ours in kept.items() if value.get(key)}}
    if name not in ("LinearCrossEntropyLoss", "CEWithChunkedOutputLoss", "CrossEntropyLoss"):
        raise Left("Use training.loss_type.")
    return {}


def _output_of_mlx(value: Any, theirs: Foreign) -> Here:
    if theirs.tool != "mlx-lm":
        raise Left("")
    return {"training.output_dir": value}


def _at_most_zero(value: Any, theirs: Foreign) -> Here:
    """A limit that -1 or 0 turns off."""
    return {} if value in (-1, 0) else {"training.max_steps": value}


def _resume(value: Any, theirs: Foreign) -> Here:
    if value is not False:
        raise Left("Use --resume.")
    return {}


TRAINING_RULES: Mapping[str, Rule] = {
    "evals_per_epoch": _per_epoch("eval"),
    "saves_per_epoch": _per_epoch("save"),
    "eval_steps": _steps("eval"),
    "save_steps": _steps("save"),
    "steps_per_eval": _steps("eval"),
    "run_val_every_n_steps": _steps("eval"),
    "save_every": _steps("save"),
    "save_every_n_steps": _steps("save"),
    "warmup_ratio": _warmup_ratio,
    "optimizer": _optimizer,
    "optimizer._component_": _optimizer,
    "lr_scheduler": _scheduler,
    "lr_scheduler._component_": _scheduler,
    "lr_scheduler.num_cycles": _cycles,
    "optimizer.betas": _betas,
    "optimizer.eps": to("training.adam_epsilon"),
    "learning_rate": _rate,
    "lr_schedule": _schedule_of_mlx,
    "cosine_min_lr_ratio": _decay_of_rate,
    "use_dft_loss": if_true({"training.loss_type": "dft"}),
    "group_by_length": if_true({"training.train_sampling_strategy": "group_by_length"}),
    "disable_shuffling": if_true({"training.train_sampling_strategy": "sequential"}),
    "shuffle": _shuffle,
    "sample_packing": if_true({"training.packing": True}),
    "packing": if_true({"training.packing": True}),
    "neat_packing": if_true({"training.packing": True}),
    "packed": if_true({"training.packing": True}),
    "iters": _iterations,
    "steps_per_report": _reports,
    "max_steps": _at_most_zero,
    "max_steps_per_epoch": _steps_of_epochs,
    "batch_size": _batch,
    "stage": _method,
    "command": _method,
    "rlhf_type": _method,
    "rl": _method,
    "pref_loss": _preference_loss,
    "system": _system,
    "truncation_strategy": _truncation,
    "reward_model": if_true({"run.method": "reward"}),
    "loss": _loss_of_torchtune,
    "grad_accumulation_steps": to("training.gradient_accumulation_steps"),
    "adapter_path": _output_of_mlx,
    "early_stopping_patience": to("run.early_stopping_patience"),
    "mask_history": if_true({"data.history": "last"}),
    "optimizer.lr": to("training.learning_rate"),
    "tokenizer.max_seq_len": to("training.max_length"),
    "batch_size_val": to("training.per_device_eval_batch_size"),
    "resume_from_checkpoint": _resume,
    **dict.fromkeys(
        (
            "strict",
            "do_train",
            "do_eval",
            "do_predict",
            "train",
            "test",
            "log_level",
            "metric_logger.project",
            "checkpointer.output_dir",
            "tokenizer.path",
            "quantizer",
            "compute_accuracy",
            "val_batches",
            "dataset_num_proc",
            "pad_to_sequence_len",
            "shuffle_merged_datasets",
            "hf_use_auth_token",
            "fsdp_version",
            "test_batches",
        ),
        nothing,
    ),
}
"""By the name of a setting, or its dotted key."""
