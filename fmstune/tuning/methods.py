"""The methods of `run.method`: what of TRL each is done with, imported only when it is used."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from accelerate.logging import MultiProcessAdapter
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fmstune.config.errors import ConfigError
from fmstune.tuning.disk import GuardedSaving
from fmstune.tuning.lm_head import use_direct_lm_head
from fmstune.tuning.nonfinite import GuardedTraining
from fmstune.tuning.preference_data import PreferenceData, PreferenceSummary, with_lengths

_OF_TRL = {
    "sft": ("SFTConfig", "SFTTrainer"),
    "dpo": ("DPOConfig", "DPOTrainer"),
    "kto": ("KTOConfig", "KTOTrainer"),
    "reward": ("RewardConfig", "RewardTrainer"),
}
_WITH_REFERENCE = ("dpo", "kto")
_RANK = re.compile(r"^\[RANK \d+\] ")


def arguments_class(method: str) -> type[Any]:
    """TRL's class of the arguments of a method, the fields of `[training]`."""
    import trl

    found: type[Any] = getattr(trl, _OF_TRL[method][0])
    return found


class PreferenceTuner(GuardedSaving, GuardedTraining):
    """What the trainers of TRL are given besides, as `FineTuner` has it for sft."""

    args: Any
    model: Any
    ref_model: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The weighting of WPO needs a figure that the direct head does not compute.
        if self.args.device.type == "cpu" and not getattr(self.args, "use_weighting", False):
            for model in filter(None, (self.model, self.ref_model)):
                use_direct_lm_head(model.get_base_model() if hasattr(model, "get_base_model") else model)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes its own card, once."""


@functools.cache
def tuner_class(method: str) -> type[Any]:
    """The trainer of a method that learns from preferences."""
    import trl

    base = getattr(trl, _OF_TRL[method][1])
    return type(f"{method.capitalize()}Tuner", (PreferenceTuner, base), {})


@dataclass(frozen=True)
class Tuner:
    """A trainer that learns from preferences, what its data became, and what TRL has to say of it."""

    trainer: Any
    summary: PreferenceSummary
    notes: tuple[str, ...]


def build_tuner(
    method: str,
    model: PreTrainedModel,
    args: Any,
    data: PreferenceData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    peft_config: Any,
    **attached: Any,
) -> Tuner:
    """Build TRL's trainer of a method, which tokenises the data. `attached` is what it is given besides.

    Raises `DataError` for rows that the chat template refuses or that are all too long, and `ConfigError`
    for settings that TRL refuses.
    """
    more: dict[str, Any] = {}
    # An adapter's model without it is the reference.
    alone = (
        peft_config is not None
        or isinstance(model, PeftModel)
        or getattr(args, "precompute_ref_log_probs", False)
    )
    if method in _WITH_REFERENCE and not alone:
        from trl import create_reference_model

        # TRL would load it again by its name, which the demo's model has no weights under. With an adapter
        # the reference is the model without it.
        more["ref_model"] = create_reference_model(model)
    with _quiet() as said:
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
        except Exception as error:
            refused = data.refusal(tokenizer)
            if refused is not None:
                raise refused from error
            if isinstance(error, (ValueError, NotImplementedError)):
                raise ConfigError(f"[training] is refused by TRL: {_sentence(str(error))}") from error
            raise
    summary = with_lengths(data.summary, trainer.train_dataset, trainer.eval_dataset, args.max_length)
    return Tuner(trainer, summary, tuple(dict.fromkeys(map(_in_our_words, said))))


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Without the bars of the tokenisation, and with TRL's warnings collected instead of printed."""
    said: list[str] = []
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, bars = logging.getLogger("trl"), datasets.is_progress_bar_enabled()
    propagate, tqdm = logger.propagate, os.environ.get("TQDM_DISABLE")
    logger.addHandler(heard)
    logger.propagate = False
    # What was said once in this process is otherwise not said of the next run in it.
    MultiProcessAdapter.warning_once.cache_clear()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield said
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
        if bars:
            datasets.enable_progress_bars()
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm


def _in_our_words(text: str) -> str:
    if "is not a prefix of the tokenized prompt" in text:
        return (
            "with an answer after it, a prompt ends in other tokens than alone (its chat template or its "
            "last word has it so); what differs is counted as the answer's"
        )
    weights = re.findall(r"(\w*desirable_weight) in (\[[^]]*\])", text)
    if len(weights) == 2:
        (good, good_range), (bad, bad_range) = weights
        return (
            "there are more answers of one label than of the other; TRL advises a weight for one of them: "
            f"training.{good} within {good_range}, or training.{bad} within {bad_range}"
        )
    return f"TRL: {_sentence(_RANK.sub('', text))}"


def _sentence(text: str) -> str:
    """The first sentence, without line breaks."""
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
