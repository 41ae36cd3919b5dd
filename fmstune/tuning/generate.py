"""Generating: what a model writes after a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

_BATCH = 8


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    special: bool = False,
) -> list[str]:
    """What `model` writes after each prompt, the likeliest token each time, without special tokens.

    Prompts are texts as the model reads them; with `special` the tokenizer adds its own special tokens,
    which a chat template has written already. The model is left as it was, in training mode or not, and no
    random number is drawn.
    """
    answers: list[str] = []
    was_training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    try:
        for start in range(0, len(prompts), _BATCH):
            texts = list(prompts[start : start + _BATCH])
            inputs = tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                add_special_tokens=special,
                return_token_type_ids=False,
            ).to(model.device)
            with torch.no_grad():
                written = model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = written[:, inputs["input_ids"].shape[1] :]
            answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    finally:
        model.train(was_training)
        tokenizer.padding_side = side
    return answers
