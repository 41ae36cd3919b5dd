"""kto: learn from unpaired answers that are labelled good or bad (Ethayarajh et al. 2024,
https://huggingface.co/papers/2402.01306)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.methods.record import REWARDS, REWARDS_RESULTS, Method, Problem


def _problems(training: Mapping[str, Any]) -> Iterator[Problem]:
    if training.get("loss_type", "kto") != "kto":
        return
    instead = 'or set training.loss_type = "apo_zero_unpaired", which needs neither'
    if training.get("per_device_train_batch_size", 8) == 1:
        yield (
            "training.per_device_train_batch_size",
            "training.per_device_train_batch_size = 1 is too small: kto compares each row with the others in "
            f"its batch. Set it to 2 or more, {instead}.",
        )
    # Those by length are for sft alone.
    if training.get("train_sampling_strategy", "sequential") not in ("sequential", "group_by_length"):
        yield (
            "training.train_sampling_strategy",
            f"training.train_sampling_strategy = {training['train_sampling_strategy']!r} does not work with "
            f"kto, which builds its batches in advance and shuffles once: leave it out, set it to "
            f"'sequential' for the order of the data, {instead}.",
        )


KTO = Method(
    name="kto",
    learns="preferences",
    form="labelled",
    config=("trl", "trainer/kto_config.py", "KTOConfig"),
    lora_learning_rate=1e-5,  # of 1e-6
    demo_learning_rate=1e-3,
    reference=True,
    in_order=True,
    shown=REWARDS,
    results=REWARDS_RESULTS,
    problems=_problems,
)
