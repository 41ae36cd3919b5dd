"""`build_trainer`: the one place where the trainer and its tracker meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from fmstune.config.methods.known import METHODS
from fmstune.config.schema.tables import RunConfig
from fmstune.console import phase
from fmstune.data.prepare import DataSummary
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.tokens.lengths import are_tokenised, sequence_lengths
from fmstune.errors import ConfigError
from fmstune.models import adapters
from fmstune.models.adapted_modules import unreached_experts
from fmstune.models.adapter_weights import require_reloadable
from fmstune.models.attention_kernels import disable_cudnn_attention
from fmstune.peft_compat import embeddings_known
from fmstune.system.compiler import require_compiler
from fmstune.system.device import Precision, precision
from fmstune.text import counted
from fmstune.trackers.base import Tracker
from fmstune.training.arguments import remove_integrations, require_layers, training_arguments
from fmstune.training.callbacks.best_metric import BestMetric
from fmstune.training.callbacks.resumed_steps import ResumedSteps
from fmstune.training.callbacks.tokens_seen import TokensSeen
from fmstune.training.extensions import Extensions
from fmstune.training.inputs import Inputs, load_inputs
from fmstune.training.memory.outlook import require_room_for_weights
from fmstune.training.methods.trained import trained_by
from fmstune.training.schedule import schedule_notes
from fmstune.training.speed.padding_free import Padding, decide
from fmstune.training.trainers.eval_sets import join_sets, sets_of
from fmstune.training.trainers.preferences import build_tuner, refused_by_trl
from fmstune.training.trainers.rates import KEY, factors_of
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
    extensions = extensions or Extensions().with_configured(config)
    require_room_for_weights(config.model)
    require_compiler(config)
    inputs = load_inputs(config, output_dir)
    require_layers(config, inputs.model.model)
    phase("building the trainer")
    attached = {
        "callbacks": [tracker.get_hf_callback(), *extensions.callbacks, BestMetric(config)],
        "compute_metrics": extensions.compute_metrics,
        "peft_config": adapters.peft_config(config, inputs.model.model),
    }
    args = training_arguments(config, output_dir)
    if not config.packing or args.packing_strategy != "wrapped":  # of one shape
        disable_cudnn_attention()
    notes = [*inputs.notes, *remove_integrations(args, config)]
    padding: Padding | None = None
    method = METHODS[config.run.method]
    with embeddings_known(inputs.model.model):
        if method.compares:
            trained = trained_by(method.name)
            tuner = build_tuner(
                method, trained, inputs.model.model, args, inputs.data, inputs.tokenizer, **attached
            )
            trainer = tuner.trainer
            notes += tuner.notes
        else:
            trainer = _built_by_trl(config, inputs, args, attached)
    if not method.compares:
        padding = _without_padding(trainer, config)
    _require_batch(trainer, config)
    steps = _steps(trainer)
    notes += schedule_notes(config, trainer.args, steps)
    _complete(trainer, config, inputs)
    _track(tracker, inputs, padding)
    data = inputs.data
    return BuiltTrainer(
        trainer=trainer,
        tokenizer=inputs.tokenizer,
        model_identity=dict(inputs.model.identity),
        data=data.summary,
        bad_rows=data.bad,
        steps=steps,
        trainable=sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad),
        padding=padding,
        precision=precision(config.training),
        adapter=adapters.describe(trainer.model),
        notes=(*notes, *_about_the_model(trainer, config)),
        places=() if config.packing else data.places,
        ends=inputs.ends,
        model_seconds=inputs.model_seconds,
        data_seconds=inputs.data_seconds,
    )


def _require_batch(trainer: TunedTrainer, config: RunConfig) -> None:
    """Raise `ConfigError` if no batch is left to train on: the Trainer would end without a step."""
    args, rows = trainer.args, trainer.train_dataset
    each = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(rows, "__len__") and len(rows) < each:
        key = "training.dataloader_drop_last"
        packed = " after packing" if config.packing else ""
        raise ConfigError(
            f"{config.at(key)}{key} leaves no batch: there are {counted(len(rows), 'row')}{packed}, "
            f"and a batch has {each}; leave it out, or use a smaller training.per_device_train_batch_size."
        )
    if args.train_sampling_strategy == "batch_rebalance" and not args.dataloader_drop_last:
        batches = args.gradient_accumulation_steps * args.world_size
        rest = len(rows) % (each * args.gradient_accumulation_steps)
        if 0 < rest < batches:
            key = "training.train_sampling_strategy"
            raise ConfigError(
                f"{config.at(key)}{key} = 'batch_rebalance' would learn {counted(batches - rest, 'row')} "
                f"twice in each epoch: {counted(rest, 'row')} of {len(rows):,} would be left for the "
                f"{batches} batches of its last update; use another training.gradient_accumulation_steps, "
                "or set training.dataloader_drop_last = true."
            )


def _built_by_trl(config: RunConfig, inputs: Inputs, args: Any, attached: Mapping[str, Any]) -> TunedTrainer:
    """TRL's trainer for rows that are learnt one by one."""
    sets = dict(sets_of(inputs.data.eval, dict(inputs.data.summary.eval_sets)))
    with refused_by_trl():
        trainer: TunedTrainer = trained_by(config.run.method).tuner(
            model=inputs.model.model,
            args=args,
            train_dataset=inputs.data.train,
            eval_dataset=sets or inputs.data.eval,
            processing_class=inputs.tokenizer,
            **attached,
        )
    if isinstance(trainer.eval_dataset, Mapping):  # by now packed, each set on its own
        join_sets(trainer, trainer.eval_dataset)
    if not config.packing:
        # TRL was kept from truncating rows. Callbacks and training_args.bin get the actual value.
        trainer.args.max_length = config.max_length
    return trainer


def _complete(trainer: TunedTrainer, config: RunConfig, inputs: Inputs) -> None:
    """Set what fmstune's mixins read, and add the callbacks of every run."""
    trainer.method, trainer.longest_row = config.run.method, config.max_length
    trainer.own_files, trainer.save_dtype = inputs.model.own_files, config.run.save_dtype
    if config.model.lr_multipliers:
        factors_of(trainer.model, config.model.lr_multipliers, config.at(KEY))
        trainer.lr_multipliers = config.model.lr_multipliers
    adapters.ready_for_checkpoints(trainer.model)
    if not is_deepspeed_zero3_enabled():  # it has divided the weights
        require_reloadable(trainer.model)
    trainer.add_callback(TokensSeen(trainer))
    trainer.add_callback(ResumedSteps())
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dict, in addition to our own lines


def _about_the_model(trainer: TunedTrainer, config: RunConfig) -> Iterator[str]:
    """Messages about what this model cannot have."""
    if trainer.lm_head == "own":
        yield (
            "the loss is computed from the model's own logits, which takes memory: TRL's shorter way gives "
            f"another loss for this architecture ({trainer.model.config.model_type})"
        )
    if trainer.unbalanced:
        yield "no loss balances the load of the experts: this architecture provides none"
    if experts := unreached_experts(trainer.model, config.lora.target_modules):
        yield experts


def _track(tracker: Tracker, inputs: Inputs, padding: Padding | None) -> None:
    settings = inputs.model.model.config.to_dict()  # as transformers' own callbacks pass it to trackers
    tracker.set_params({**inputs.model.identity, "config": settings}, "model")
    tracker.set_params(inputs.data.summary.as_params(), "data")
    if padding is not None:
        tracker.set_params(asdict(padding), "padding")
    tracker.track(inputs.model_seconds, "model_load_time", "train", step=0)
    tracker.track(inputs.data_seconds, "data_preprocessing_time", "train", step=0)


def _without_padding(trainer: TunedTrainer, config: RunConfig) -> Padding | None:
    """Train without padding where that is exact and faster; `None` for packed rows, which have none. Raises
    `ConfigError`."""
    args = trainer.args
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    compiled = bool(args.torch_compile)
    # Virtual tokens precede each row of a batch, which is a single row without padding.
    asked = False if config.prompt_tuning.enabled else config.training.get("padding_free")
    rows = trainer.train_dataset
    lengths = sequence_lengths(rows)[:, 0].tolist() if are_tokenised(rows) else []
    try:
        if args.packing:
            if args.packing_strategy != "wrapped":  # its purpose is to concatenate rows
                decide(trainer.model, [], 1, True, compiled=compiled, setting="packing", autocast=autocast)
            return None
        padding = decide(
            trainer.model,
            lengths,
            args.per_device_train_batch_size,
            asked,
            seed=config.seed,
            compiled=compiled,
            autocast=autocast,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # Not as an argument: the model is tested on the device where the trainer has put it.
    set_padding_free(trainer, padding.avoided)
    trainer.args.padding_free = padding.avoided
    return padding


def _steps(trainer: TunedTrainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    # Packing changes the number of rows.
    share = len(trainer.train_dataset) / (args.train_batch_size * args.world_size)
    batches = math.floor(share) if args.dataloader_drop_last else math.ceil(share)
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    steps: int = math.ceil(updates * args.num_train_epochs)
    return steps
