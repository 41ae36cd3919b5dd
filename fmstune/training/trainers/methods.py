"""The methods of `run.method`: what of TRL each is done with, imported only when it is used."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.data.prepare import PreparedData
from fmstune.errors import ConfigError
from fmstune.models.saving import SavesAsItWas
from fmstune.text import counted
from fmstune.training.sdks import not_imported
from fmstune.training.speed.lm_head import fit_lm_head
from fmstune.training.trainers.all_rows import EvaluatesAllRows
from fmstune.training.trainers.disk import GuardedSaving
from fmstune.training.trainers.each_row_once import EachRowOnce
from fmstune.training.trainers.guarded import GuardedTraining
from fmstune.training.trainers.pair_evaluation import RowWeightedEvaluation
from fmstune.training.trl_compat import compares_within_batch, said_by_trl
from fmstune.training.tuned_trainer import TunedTrainer

_OF_TRL = {
    "sft": ("SFTConfig", "SFTTrainer"),
    "dpo": ("DPOConfig", "DPOTrainer"),
    "kto": ("KTOConfig", "KTOTrainer"),
    "reward": ("RewardConfig", "RewardTrainer"),
}
_WITH_REFERENCE = ("dpo", "kto")


def arguments_class(method: str) -> type[Any]:
    """TRL's class of the arguments of a method, the fields of `[training]`."""
    found: type[Any] = _of_trl(_OF_TRL[method][0])
    return found


def _of_trl(name: str) -> Any:
    """What TRL has under a name, which it imports when it is asked for it."""
    with not_imported():
        import trl

        return getattr(trl, name)


class PreferenceTuner(
    SavesAsItWas, GuardedSaving, RowWeightedEvaluation, GuardedTraining, EachRowOnce, EvaluatesAllRows
):
    """What the trainers of TRL are given besides, as `FineTuner` has it for sft."""

    args: Any
    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The weighting of WPO needs a figure that the direct head does not compute.
        direct = self.args.device.type == "cpu" and not getattr(self.args, "use_weighting", False)
        for model in filter(None, (self.model, self.ref_model)):
            bare = model.get_base_model() if hasattr(model, "get_base_model") else model
            if bare.get_output_embeddings() is not None:  # a reward model has none
                self.lm_head = fit_lm_head(
                    bare, direct=direct, experts=getattr(self, "aux_loss_enabled", False)
                )

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Any) -> Any:
        """The rows come tokenised; what kto compares them with depends on the size of a batch, which is that
        of all processes: several then learn what one does with a batch of all their rows."""
        if not compares_within_batch(self):
            return rows
        return with_other_answers(rows, args.per_device_train_batch_size * args.world_size)

    def batch_size_changed(self) -> None:
        """What kto compares rows with is other answers of their batch."""
        if compares_within_batch(self):
            size = self.args.per_device_train_batch_size * self.args.world_size
            self.train_dataset = with_other_answers(self.train_dataset, size)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes its own card, once."""


def with_other_answers(rows: Any, batch: int) -> Any:
    """The rows with the column `KL_completion_ids`: in each batch, the answer of the row before.

    Prompts with answers to other prompts are what kto estimates its reference point from (Ethayarajh et al.
    2024, section 4.2).
    """

    def turned(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        answers = examples["completion_ids"]
        return {"KL_completion_ids": [*answers[-1:], *answers[:-1]]}

    if not isinstance(rows, datasets.Dataset):
        return rows.map(turned, batched=True, batch_size=batch)
    features = rows.features | {"KL_completion_ids": rows.features["completion_ids"]}
    alone = rows.remove_columns([name for name in rows.column_names if name == "KL_completion_ids"])
    return alone.map(
        turned,
        batched=True,
        batch_size=batch,
        features=datasets.Features(features),
        keep_in_memory=True,
        load_from_cache_file=False,
    )


@functools.cache
def tuner_class(method: str) -> type[Any]:
    """The trainer of a method that learns from preferences."""
    base = _of_trl(_OF_TRL[method][1])
    return type(f"{method.capitalize()}Tuner", (PreferenceTuner, base), {})


@dataclass(frozen=True)
class Tuner:
    """A trainer that learns from preferences, and what there is to say of its data and settings."""

    trainer: TunedTrainer
    notes: tuple[str, ...]


def build_tuner(
    method: str,
    model: PreTrainedModel,
    args: Any,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    peft_config: Any,
    **attached: Any,
) -> Tuner:
    """Build TRL's trainer of a method. `attached` is what it is given besides.

    Raises `ConfigError` for settings that TRL refuses.
    """
    more: dict[str, Any] = {}
    # An adapter's model without it is the reference.
    alone = (
        peft_config is not None
        or isinstance(model, PeftModel)
        or getattr(args, "precompute_ref_log_probs", False)
    )
    if method in _WITH_REFERENCE and not alone:
        # TRL would load it again by its name, which the demo's model has no weights under. With an adapter
        # the reference is the model without it.
        more["ref_model"] = _of_trl("create_reference_model")(model)
    with said_by_trl() as said:
        try:
            trainer = tuner_class(method)(
                model=model,
                args=args,
                train_dataset=data.train,
                eval_dataset=data.eval,
                processing_class=tokenizer,
                peft_config=peft_config,
                **attached,
                **more,
            )
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"[training] is refused by TRL: {first_sentence(str(error))}") from error
    own = [*_of_prompts(data), *_of_labels(method, data, args)]
    heard = (f"TRL: {first_sentence(text)}" for text in said)
    return Tuner(trainer, tuple(dict.fromkeys([*own, *heard])))


def _of_prompts(data: PreparedData) -> Iterator[str]:
    if data.summary.reworded:
        yield (
            "with an answer after it, a prompt ends in other tokens than alone (its chat template or its "
            f"last word has it so), in {data.summary.reworded:,} of {counted(data.summary.rows, 'row')}; "
            "what differs is counted as the answer's"
        )


def _of_labels(method: str, data: PreparedData, args: Any) -> Iterator[str]:
    """That one label is rarer than its weight makes up for: the weight of good answers times their number
    should be 1 to 4/3 of that of bad ones (Ethayarajh et al. 2024, equation 8)."""
    if method != "kto" or not isinstance(data.train, datasets.Dataset):
        return
    labels = data.train["label"]
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad or 1 <= args.desirable_weight * good / (args.undesirable_weight * bad) <= 4 / 3:
        return
    lower = args.undesirable_weight * bad / good
    upper = args.desirable_weight * good / bad
    yield (
        "there are more answers of one label than of the other; TRL advises a weight for one of them: "
        f"training.desirable_weight within [{lower:.3g}, {lower * 4 / 3:.3g}], or "
        f"training.undesirable_weight within [{upper * 3 / 4:.3g}, {upper:.3g}]"
    )


def first_sentence(text: str) -> str:
    """The first sentence, without line breaks."""
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
