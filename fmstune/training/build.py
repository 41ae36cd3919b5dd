"""`build_trainer`: the one place where the trainer and its tracker meet."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback

from fmstune.config.methods.known import METHODS
from fmstune.config.rules.accelerate import DYNAMIC
from fmstune.config.rules.deepspeed_table import deepspeed_table
from fmstune.config.rules.methods import divided_by, unweighted_by
from fmstune.config.schema.tables import RunConfig
from fmstune.console import phase
from fmstune.data.cache import prepare_once
from fmstune.data.prepare import DataSummary, shuffled
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.tokens.lengths import are_tokenised, sequence_lengths
from fmstune.errors import ConfigError, ModelError
from fmstune.layout import SKIPPED_ROWS as SKIPPED_ROWS
from fmstune.models import adapters
from fmstune.models.adapted_modules import unreached_experts
from fmstune.models.attention_kernels import disable_cudnn_attention
from fmstune.models.context_length import check_context_length
from fmstune.models.end_tokens import learnt_ends, stop_at
from fmstune.models.load import load_model, load_tokenizer
from fmstune.models.special_tokens import use_tokens
from fmstune.models.vocabulary import fit_vocabulary
from fmstune.system.compiler import require_compiler
from fmstune.system.device import MIXED_PRECISION, Precision, precision
from fmstune.system.kernel_builds import use_build_lock
from fmstune.text import first_line
from fmstune.trackers.base import Tracker
from fmstune.training.callbacks.resumed_steps import ResumedSteps
from fmstune.training.callbacks.tokens_seen import TokensSeen
from fmstune.training.extensions import Extensions
from fmstune.training.memory.outlook import require_room_for_weights
from fmstune.training.methods.trained import trained_by
from fmstune.training.speed.lm_head import sees_ahead
from fmstune.training.speed.padding_free import Padding, decide
from fmstune.training.trainers.preferences import build_tuner, refused_by_trl
from fmstune.training.trl_compat.steps import set_padding_free
from fmstune.training.tuned_trainer import TunedTrainer


@dataclass(frozen=True)
class BuiltTrainer:
    """A trainer that is ready to run, and information from building it."""

    trainer: TunedTrainer
    tokenizer: PreTrainedTokenizerBase
    model_identity: dict[str, Any]
    data: DataSummary
    bad_rows: BadRows
    steps: int
    trainable: int
    """The number of trained parameters, out of `model_identity["parameters"]`."""
    padding: Padding | None
    """The effect of padding on the training; `None` for packed rows and for pairs of answers."""
    precision: Precision
    adapter: str | None = None
    """A readable description of what is trained instead of all weights."""
    notes: tuple[str, ...] = ()
    """Messages about the data and the settings."""
    places: Sequence[str] = ()
    """The location of each training row; empty for packed rows."""
    ends: tuple[str, ...] = ()
    """The tokens that end its trained answers."""
    model_seconds: float = 0.0
    data_seconds: float = 0.0


def build_trainer(
    config: RunConfig, tracker: Tracker, output_dir: Path, extensions: Extensions | None = None
) -> BuiltTrainer:
    """Load the model, prepare the data, and build the trainer with one tracker.

    Tracks `model_load_time` and `data_preprocessing_time` (seconds), the model's and the data's identity.
    Raises `ModelError`, `DataError` or `ConfigError`.
    """
    extensions = extensions or Extensions().with_configured(config.run)
    method, trained = METHODS[config.run.method], trained_by(config.run.method)
    seed = int(config.training.get("seed", 42))
    packing = bool(config.training.get("packing", False))
    max_length = config.training.get("max_length", 1024)
    require_room_for_weights(config.model)
    require_compiler(config)
    clock = [time.perf_counter()]
    phase("loading the tokenizer")
    tokenizer = load_tokenizer(config.model)
    use_tokens(config, tokenizer)
    clock.append(time.perf_counter())
    # Before the model: a damaged row should be reported before the minutes of loading a large model.
    phase("reading and tokenising data")
    data = prepare_once(
        config.data,
        tokenizer,
        max_length,
        seed,
        output_dir / SKIPPED_ROWS,
        method=method.name,
        keep_end=config.training.get("truncation_mode") == "keep_end",
        unweighted=unweighted_by(config.training),
        divided_by=divided_by(config.training),
        as_given=config.training.get("train_sampling_strategy") == "sequential",
    )
    if not method.compares and not packing and config.training.get("shuffle_dataset"):
        data = shuffled(data, seed)  # packed rows are shuffled by TRL
    clock.append(time.perf_counter())
    phase("loading the model")
    frozen = config.adapter is not None
    loaded = load_model(config.model, lora=frozen, seed=seed, reward=method.scores)
    grown = fit_vocabulary(loaded.model, tokenizer, config, data)
    if grown and not frozen:
        parameters = loaded.model.num_parameters()
        loaded = dataclasses.replace(loaded, identity={**loaded.identity, "parameters": parameters})
    ends = () if method.scores else learnt_ends(data.summary.shape, tokenizer)
    stop_at(loaded.model, tokenizer, ends)
    clock.append(time.perf_counter())
    streamed = data.summary.streaming
    longest = (max_length or 0) if streamed else data.summary.longest
    too_long = check_context_length(loaded.model, longest, streamed=streamed)

    if not method.scores and sees_ahead(loaded.model):
        raise ModelError(
            f"model.path = {config.model.path!r} sees the tokens that it is to predict: models of type "
            f'{loaded.model.config.model_type} can learn to generate if config.json has "is_decoder": true.'
        )
    phase("building the trainer")
    attached = {
        "callbacks": [tracker.get_hf_callback(), *extensions.callbacks],
        "compute_metrics": extensions.compute_metrics,
        "peft_config": adapters.peft_config(config, loaded.model),
    }
    args = training_arguments(config, output_dir, packing=packing, max_length=max_length)
    if not packing or args.packing_strategy != "wrapped":  # all batches of these have the same shape
        disable_cudnn_attention()
    trainer: TunedTrainer
    padding: Padding | None = None
    notes = tuple(note for note in (too_long, grown, _without_integrations(args, config)) if note)
    if method.compares:
        tuner = build_tuner(method, trained, loaded.model, args, data, tokenizer, **attached)
        trainer, notes = tuner.trainer, (*notes, *tuner.notes)
    else:
        with refused_by_trl():
            trainer = trained.tuner(
                model=loaded.model,
                args=args,
                train_dataset=data.train,
                eval_dataset=data.eval,
                processing_class=tokenizer,
                **attached,
            )
        # Virtual tokens precede each row of a batch, which is a single row without padding.
        avoidable = False if config.prompt_tuning.enabled else config.training.get("padding_free")
        padding = _without_padding(trainer, avoidable, seed)
        # TRL was kept from truncating rows and from concatenating them. Callbacks and training_args.bin get
        # the actual values.
        if not packing:
            trainer.args.max_length = max_length
        if padding is not None:
            trainer.args.padding_free = padding.avoided
    if trainer.lm_head == "own":
        notes = (
            *notes,
            "the loss is computed from the model's own logits, which takes memory: TRL's shorter way gives "
            f"another loss for this architecture ({loaded.model.config.model_type})",
        )
    if trainer.unbalanced:
        notes = (*notes, "no loss balances the load of the experts: this architecture provides none")
    trainer.method, trainer.longest_row = method.name, max_length
    trainer.own_files, trainer.save_dtype = loaded.own_files, config.run.save_dtype
    adapters.ready_for_checkpoints(trainer.model)
    if experts := unreached_experts(trainer.model, config.lora.target_modules):
        notes = (*notes, experts)
    trainer.add_callback(TokensSeen(trainer))
    trainer.add_callback(ResumedSteps())
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dict, in addition to our own lines
    settings = loaded.model.config.to_dict()  # as transformers' own callbacks pass it to trackers
    tracker.set_params({**loaded.identity, "config": settings}, "model")
    tracker.set_params(data.summary.as_params(), "data")
    if padding is not None:
        tracker.set_params(asdict(padding), "padding")
    model_seconds = clock[1] - clock[0] + clock[3] - clock[2]
    tracker.track(model_seconds, "model_load_time", "train", step=0)
    tracker.track(clock[2] - clock[1], "data_preprocessing_time", "train", step=0)
    return BuiltTrainer(
        trainer,
        tokenizer,
        dict(loaded.identity),
        data.summary,
        data.bad,
        _steps(trainer, data.summary.rows),
        sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad),
        padding,
        precision(config.training),
        adapters.describe(trainer.model),
        notes,
        () if packing else data.places,
        ends,
        model_seconds,
        clock[2] - clock[1],
    )


def _without_integrations(args: Any, config: RunConfig) -> str | None:
    """Remove the integrations that transformers adds to its `report_to`, against "none": they would report
    from the training process, which waits for them. Returns a note about those that no tracker replaces."""
    missed = [name for name in args.report_to if f"hf:{name}" not in config.tracking.trackers]
    args.report_to = []
    if not missed:
        return None
    return (
        f"the environment asks transformers to report to {', '.join(missed)}, but this run does not: add "
        f"{' '.join(f'--tracker hf:{name}' for name in missed)}"
    )


def _without_padding(trainer: TunedTrainer, asked: bool | None, seed: int) -> Padding | None:
    """Train without padding where that is exact and faster; `None` for packed rows, which have none. Raises
    `ConfigError`."""
    rows = trainer.train_dataset
    lengths = sequence_lengths(rows)[:, 0].tolist() if are_tokenised(rows) else []
    args = trainer.args
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    try:
        if args.packing:
            if args.packing_strategy != "wrapped":  # its purpose is to concatenate rows
                decide(
                    trainer.model,
                    [],
                    1,
                    True,
                    compiled=bool(args.torch_compile),
                    setting="packing",
                    autocast=autocast,
                )
            return None
        padding = decide(
            trainer.model,
            lengths,
            args.per_device_train_batch_size,
            asked,
            seed=seed,
            compiled=bool(args.torch_compile),
            autocast=autocast,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # Not as an argument: the model is tested on the device where the trainer has put it.
    set_padding_free(trainer, padding.avoided)
    return padding


def training_arguments(config: RunConfig, output_dir: Path, *, packing: bool, max_length: int | None) -> Any:
    """TRL's arguments for this run. Raises `ConfigError` for what TRL refuses."""
    settings = dict(config.training) | {"output_dir": str(output_dir), "report_to": "none"}
    if given := settings.get("deepspeed"):
        settings["deepspeed"] = deepspeed_table(given, config.base_dir)
        use_build_lock()
    if isinstance(file := settings.get("fsdp_config"), str):
        settings["fsdp_config"] = str(config.base_dir / file)
    chosen = precision(settings)
    settings |= {"bf16": chosen.bf16, "fp16": chosen.fp16}
    if not (chosen.bf16 or chosen.fp16):
        os.environ[MIXED_PRECISION] = "no"  # transformers would take it from there
    os.environ.pop(DYNAMIC, None)  # "no", accelerate's default, would compile the model for each length
    if not torch.accelerator.is_available():
        settings.setdefault("dataloader_pin_memory", False)  # no device to pin it for
        # By default, accelerate treats each torchrun process as a separate run if there is no GPU, and
        # transformers refuses bf16.
        settings["use_cpu"] = True
    if METHODS[config.run.method].compares:
        pass  # TRL truncates prompts with their answers itself
    elif not packing:
        # The rows are tokenised, labelled and truncated; TRL's own preparation would map over them again.
        settings |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        settings["padding_free"] = False  # see `_without_padding`
    elif max_length is not None:
        settings["max_length"] = max_length
    try:
        return trained_by(config.run.method).arguments(**settings)
    except (ValueError, TypeError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(f"[training] is refused by TRL: {first_line(error)}") from error


def _steps(trainer: TunedTrainer, rows: int) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = math.ceil(rows / (args.train_batch_size * args.world_size))
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    steps: int = math.ceil(updates * args.num_train_epochs)
    return steps
