"""The common base of the trainers for preference methods, and how to build one."""

from __future__ import annotations

import contextlib
import copy
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from fmstune.config.methods.record import Method
from fmstune.data.prepare import PreparedData
from fmstune.errors import ConfigError
from fmstune.models.saving import SavesInOriginalDtype
from fmstune.text import counted
from fmstune.training.methods.trained import Trained
from fmstune.training.speed.lm_head import fit_lm_head
from fmstune.training.trainers.all_rows import EvaluatesAllRows
from fmstune.training.trainers.checkpoints import AtomicCheckpoints
from fmstune.training.trainers.disk import GuardedSaving
from fmstune.training.trainers.each_row_once import EachRowOnce
from fmstune.training.trainers.eval_sets import EvaluatesSets
from fmstune.training.trainers.guarded import GuardedTraining
from fmstune.training.trainers.kept_reference import KeepsReference, has_moving_reference, is_sharded
from fmstune.training.trainers.loaded_weights import LoadsAllWeights
from fmstune.training.trainers.output_precision import KeepsOutputPrecision, return_float32
from fmstune.training.trainers.pair_evaluation import RowWeightedEvaluation
from fmstune.training.trainers.rates import MultipliedRates
from fmstune.training.trainers.timed import TimedTraining
from fmstune.training.trainers.whole_update import WholeUpdates
from fmstune.training.trainers.workers import EndsWorkers
from fmstune.training.trl_compat.figures import trl_warnings
from fmstune.training.trl_compat.loop import CachedLookups
from fmstune.training.trl_compat.reference_logps import StoredReferenceLogps, complete_reference_adapter
from fmstune.training.tuned_trainer import TunedTrainer


class PreferenceTuner(
    TimedTraining,
    AtomicCheckpoints,
    LoadsAllWeights,
    KeepsReference,
    SavesInOriginalDtype,
    GuardedSaving,
    EvaluatesSets,
    RowWeightedEvaluation,
    WholeUpdates,
    GuardedTraining,
    EachRowOnce,
    EndsWorkers,
    MultipliedRates,
    EvaluatesAllRows,
    CachedLookups,
    KeepsOutputPrecision,
    StoredReferenceLogps,
):
    """Mixins for TRL's preference trainers, like `FineTuner` for sft."""

    args: Any
    model: Any
    accelerator: Any
    fused_head = True
    """Whether TRL gives the models its fused LM head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        complete_reference_adapter(self.model)
        return_float32(self)
        if not self.fused_head:
            self.lm_head = "logits"
            return
        # WPO weighting needs a value that the direct head does not compute.
        direct = self.args.device.type == "cpu" and not getattr(self.args, "use_weighting", False)
        for wrapped in filter(None, (self.model, self.ref_model)):
            # DeepSpeed and FSDP have wrapped the reference by now.
            model = self.accelerator.unwrap_model(wrapped)
            bare = model.get_base_model() if hasattr(model, "get_base_model") else model
            if bare.get_output_embeddings() is None:  # a reward model
                continue
            head = fit_lm_head(bare, direct=direct, experts=getattr(self, "aux_loss_enabled", False))
            if wrapped is self.model:
                self.lm_head = head

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Any) -> Any:
        """Return the rows unchanged: they are already tokenised."""
        return rows

    def row_notes(self) -> Iterator[str]:
        """Messages about the prepared rows."""
        yield from ()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run writes its own card, once."""


@dataclass(frozen=True)
class Tuner:
    """A trainer for a preference method, and messages about its data and settings."""

    trainer: TunedTrainer
    notes: tuple[str, ...]


def build_tuner(
    method: Method,
    trained: Trained,
    model: PreTrainedModel,
    args: Any,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    peft_config: Any,
    **attached: Any,
) -> Tuner:
    """Build TRL's trainer for a method. `attached` holds further arguments for it.

    Raises `ConfigError` for settings that TRL refuses.
    """
    more: dict[str, Any] = {}
    # With an adapter, the model without it is the reference.
    alone = (
        peft_config is not None
        or isinstance(model, PeftModel)
        or getattr(args, "precompute_ref_log_probs", False)
    )
    if getattr(args, "precompute_ref_log_probs", False) and is_deepspeed_zero3_enabled():
        # TRL's engine for it partitions the model, and training then fails in the first backward pass.
        raise ConfigError(
            "training.precompute_ref_log_probs does not work with ZeRO 3, as TRL partitions the model twice: "
            "leave it out, or use ZeRO 2."
        )
    if method.reference and not alone:
        # TRL would load it again by name, but the demo model has no weights to load.
        more["ref_model"] = _frozen_copy(model)
    with trl_warnings() as said, refused_by_trl():
        trainer = trained.tuner(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.eval,
            processing_class=tokenizer,
            peft_config=peft_config,
            **attached,
            **more,
        )
    trainer.eval_sets = dict(data.summary.eval_sets)
    own = [*_of_prompts(data), *trained.notes(data, args), *trainer.row_notes()]
    if has_moving_reference(trainer) and is_sharded(trainer):
        own.append(
            "with FSDP and DeepSpeed, checkpoints do not contain the reference model that "
            "training.sync_ref_model changes: this run cannot be resumed"
        )
    heard = (f"TRL: {first_sentence(text)}" for text in said)
    return Tuner(trainer, tuple(dict.fromkeys([*own, *heard])))


def _frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as the reference. TRL's `create_reference_model` refuses ZeRO 3, although the model
    is still whole: `build_trainer` loads it before transformers reads DeepSpeed's settings."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def _of_prompts(data: PreparedData) -> Iterator[str]:
    if data.summary.reworded:
        yield (
            f"in {data.summary.reworded:,} of {counted(data.summary.rows, 'row')} the prompt ends with other "
            "tokens when an answer follows (due to the chat template, or to its last word); the difference "
            "counts as part of the answer"
        )


_ON_EXPERTS = "ParamWrapper"
"""PEFT's adapter on a parameter of a module, like the experts of a mixture, in its messages."""
_NOT_WITH_EXPERTS = {
    "use_dora": "lora.dora",
    "DoRA": "lora.dora",
    "lora_dropout": "lora.dropout",
    "modules_to_save": "lora.modules_to_save for the experts or their router",
}


def _not_with_experts(text: str) -> ConfigError:
    setting = next((ours for name, ours in _NOT_WITH_EXPERTS.items() if name in text), first_sentence(text))
    return ConfigError(
        f"{setting} does not work beside an adapter on the experts, which lora.target_parameters or "
        "lora.target_modules names, or all-linear includes in this model: leave it out, or adapt other "
        'modules alone, such as lora.target_modules = ["q_proj", "v_proj"].'
    )


_OF_PEFT = {
    "without also targeting": "Name all of these in lora.target_modules, or none.",
    "No modules were targeted": "lora.modules_to_save contains all that it adapts: leave out one of them.",
    "All modules were excluded": "lora.modules_to_save contains all that it adapts: leave out one of them.",
    "Mamba-based": "Leave it out of lora.target_modules or lora.target_parameters.",
}
"""What to do about what PEFT refuses, by a part of its sentence."""


_REFUSE = ("trl", "transformers", "accelerate", "peft", "datasets")


@contextlib.contextmanager
def refused_by_trl() -> Iterator[None]:
    """Turn errors of TRL's constructors into `ConfigError` (exit code 2) with TRL's own sentence, as the user
    can fix the settings. TRL raises `ValueError`, and `NotImplementedError` for features that it lacks. From
    elsewhere, such as torch, these are faults of the program, and are raised as they are. So is a
    `TypeError`, except PEFT's about adapters on experts."""
    try:
        yield
    except (ValueError, NotImplementedError, TypeError) as error:
        if _ON_EXPERTS in str(error):
            raise _not_with_experts(str(error)) from error
        if isinstance(error, TypeError):
            raise
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _REFUSE:
            raise
        first = first_sentence(str(error))
        if remedy := next((remedy for part, remedy in _OF_PEFT.items() if part in first), None):
            raise ConfigError(f"[lora] is refused by PEFT: {first} {remedy}") from error
        raise ConfigError(f"[training] is refused by TRL: {first}") from error


def first_sentence(text: str) -> str:
    """The first sentence, without line breaks."""
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
