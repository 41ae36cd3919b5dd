"""Generate text with a model: a first look at what was learnt, during or after training."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fmstune.data.rendering.answer import Writer
from fmstune.data.tokens.special import prompt_as_ids
from fmstune.errors import DataError, ModelError
from fmstune.models.attention_kernels import cudnn_attention_disabled
from fmstune.text import counted

_BATCH = 8
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OTHER_WAYS = (
    "constraints", "force_words_ids", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens",
    "assistant_early_exit", "use_mtp",
)  # fmt: skip
"""Settings that choose another way to write than token by token. transformers refuses them for several
prompts, or without code from the hub."""

_OF_PROMPT = ("repetition_penalty", "encoder_repetition_penalty")
"""Settings that change the chances of a prompt's tokens, its padding included: in many tuned models, padding
is the token that ends an answer."""


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    special: bool = False,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[str]:
    """Generate the text after each prompt, without the prompt and special tokens: greedily, or, with a
    `temperature` above 0, sampled with `seed`.

    Prompts are texts as the model reads them; with `special` the tokenizer adds its own special tokens,
    which a chat template has already written. An empty prompt, one as long as the model's context, or one
    with a token that the model does not have, gets no text. The model, its mode (training or not) and
    torch's random state are unchanged afterwards.
    """
    known = _embeddings_of(model)
    ids = encoded(tokenizer, prompts, special=special)
    ids = [row if max(row, default=0) < known else [] for row in ids]
    room = context_length_of(model)
    answers = [""] * len(prompts)
    with _state_restored(model), cudnn_attention_disabled(), torch.no_grad(), warnings.catch_warnings():
        # PEFT's warning for virtual tokens: positions include them, whatever `generate` passes for the text.
        warnings.filterwarnings("ignore", "Position ids are not supported")
        settings = _settings(model, tokenizer, special=special, temperature=temperature)
        if seed is not None:
            torch.manual_seed(seed)
        batches = list(_batches(ids, max_new_tokens, room, alone=_has_virtual_tokens(model)))
        rows = [[ids[index] for index in batch] for batch in batches]
        if not _padding_is_exact(model, tokenizer, rows, settings):
            batches = _of_one_length(batches, ids)
        for batch in batches:
            own = [ids[index] for index in batch]
            width = max(map(len, own))
            settings.max_new_tokens = min(max_new_tokens, room - width) if room else max_new_tokens
            inputs = _padded(own, width, settings, model.device)
            written = model.generate(**inputs, generation_config=settings, tokenizer=tokenizer)
            ends = settings.eos_token_id or ()
            found = [_up_to_token(row, ends) for row in written[:, width:].tolist()]
            texts = tokenizer.batch_decode(found, skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = _up_to_end(text, settings.stop_strings or ())
    return answers


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given for a prompt, and remarks on what the chat template changes or leaves out."""

    text: str
    remarks: tuple[str, ...] = ()


def rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: str, tools: Any = None, system: str | None = None
) -> Prompt:
    """Render a prompt as the user's message in the chat template, after the `system` message, with the
    schemas of available tools.

    Raises `ModelError` when the template refuses them, or does not support tools.
    """
    writer = Writer(tokenizer)
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        fitted = writer.fitted(messages, tools, "the prompt")
        if tools:
            writer.require_words(fitted.messages, tools, "--tools")
        return Prompt(writer.whole(fitted.messages, tools, "the prompt", prompt=True), fitted.remarks)
    except DataError as error:
        refused = "the prompt: the model's chat template refuses this conversation"
        raise ModelError(str(error).replace(refused, "the chat template refuses the prompt")) from None


def _up_to_token(row: list[int], ends: Sequence[int]) -> list[int]:
    """The ids up to the first that ends an answer: it need not be a special token."""
    return row[: next((at for at, token in enumerate(row) if token in ends), len(row))]


def _up_to_end(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of the marks that end an answer without being a token."""
    return text[: min((at for end in ends if (at := text.find(end)) >= 0), default=len(text))]


def require_room(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, special: bool
) -> None:
    """Raise `ModelError` for a prompt that leaves no room for an answer."""
    room = context_length_of(model)
    for row in encoded(tokenizer, prompts, special=special):
        if not row:
            raise ModelError("a prompt is empty, and the model has no token to start a text with.")
        if room is not None and len(row) >= room:
            raise ModelError(
                f"a prompt has {counted(len(row), 'token')}; the model reads at most {room:,}, its answer "
                "included."
            )
        if max(row) >= (known := _embeddings_of(model)):
            token = tokenizer.convert_ids_to_tokens(max(row))
            raise ModelError(
                f"a prompt contains the token {token} (id {max(row)}), which the tokenizer has and the model "
                f"has not: it has embeddings for {counted(known, 'token')}. Train it with that token, or "
                "leave the token out."
            )


def encoded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, special: bool) -> list[list[int]]:
    """The prompts' token ids."""
    return [prompt_as_ids(tokenizer, prompt, special=special) for prompt in prompts]


def context_length_of(model: Any) -> int | None:
    """How many tokens the model can read, including its answer; `None` if unknown."""
    room: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is None or not _has_virtual_tokens(model):
        return room
    return room - int(model.active_peft_config.num_virtual_tokens)


def _has_virtual_tokens(model: Any) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _batches(ids: Sequence[list[int]], most: int, room: int | None, *, alone: bool) -> Iterator[list[int]]:
    """The indices of prompts that are answered together. Prompts that leave less room for the answer than
    others are answered separately, and so are all with virtual tokens, which padding would separate from
    the text."""
    together = []
    for index, row in enumerate(ids):
        left = most if room is None else room - len(row)
        if not row or left <= 0:
            continue
        if alone or left < most:
            yield [index]
        else:
            together.append(index)
    together.sort(key=lambda index: len(ids[index]))  # of similar length, so that little is padded
    for start in range(0, len(together), _BATCH):
        yield together[start : start + _BATCH]


def _of_one_length(batches: Iterable[list[int]], ids: Sequence[list[int]]) -> list[list[int]]:
    """The batches divided into those of prompts of one length."""
    return [
        [index for index in batch if len(ids[index]) == length]
        for batch in batches
        for length in sorted({len(ids[index]) for index in batch})
    ]


def _padding_is_exact(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Sequence[list[int]]],
    settings: GenerationConfig,
) -> bool:
    """Whether a padded prompt is continued as it is alone, tried with the one that gets most padding; true if
    none gets any. RWKV reads the padding as text, and models with a table of positions may count it."""
    lengths = [(max(map(len, rows)) - len(row), row) for rows in batches for row in rows]
    padding, row = max(lengths, default=(0, []), key=lambda each: each[0])
    if padding == 0:
        return True
    if any(getattr(settings, name) not in (None, 1.0) for name in _OF_PROMPT):
        return False
    first = copy.deepcopy(settings)
    first.max_new_tokens, first.return_dict_in_generate, first.output_logits = 1, True, True
    alone, padded = (
        model.generate(
            **_padded([row], width, first, model.device), generation_config=first, tokenizer=tokenizer
        )
        .logits[0]
        .float()
        for width in (len(row), len(row) + padding)
    )
    # In 16 bits another order of sums shows; what padding changes is of the size of the logits themselves.
    allowed = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((alone - padded).abs().max() <= allowed * (alone.max() - alone.min()))


def _embeddings_of(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _settings(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, special: bool, temperature: float
) -> GenerationConfig:
    """The model's own settings, greedy or sampled, with every token at which an answer ends."""
    settings = copy.deepcopy(getattr(model, "generation_config", None) or GenerationConfig())
    settings.do_sample = temperature > 0
    settings.num_beams = settings.num_return_sequences = 1
    settings.use_cache, settings.return_dict_in_generate = True, False
    settings.max_length = None
    if temperature > 0:
        settings.temperature = temperature
    else:
        for name in _SAMPLING:
            setattr(settings, name, None)
    own = settings.eos_token_id
    ends = {*(own if isinstance(own, (list, tuple)) else [own]), tokenizer.eos_token_id}
    if tokenizer.chat_template and not special:
        writer = Writer(tokenizer)
        ends |= {tokenizer.convert_tokens_to_ids(end) for end in writer.ends()}
        settings.stop_strings = list(writer.textual_ends()) or None
    settings.eos_token_id = sorted(token for token in ends if token is not None) or None
    known = range(_embeddings_of(model))
    if tokenizer.pad_token_id in known:
        settings.pad_token_id = tokenizer.pad_token_id
    elif settings.pad_token_id not in known:  # any will do: it is masked first and removed afterwards
        settings.pad_token_id = next((end for end in settings.eos_token_id or () if end in known), 0)
    return settings


def _padded(
    rows: Sequence[list[int]], width: int, settings: GenerationConfig, device: Any
) -> dict[str, torch.Tensor]:
    pad = settings.pad_token_id
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextlib.contextmanager
def _state_restored(model: Any) -> Iterator[None]:
    """Switch to evaluation mode; afterwards restore each module's mode, and torch's random state. The loss
    that balances experts is not computed: with a cache and padding it fails in transformers. The model's own
    settings choose no other way to write: `generate` takes from them what those passed leave out."""
    modes = [(module, module.training) for module in model.modules()]
    config = model.config.get_text_config()
    balances = getattr(config, "output_router_logits", None)
    written = getattr(model, "generation_config", None)
    ways = {name: way for name in _OTHER_WAYS if (way := getattr(written, name, None)) is not None}
    with torch.random.fork_rng():
        model.eval()
        for name in ways:
            setattr(written, name, None)
        if balances:
            config.output_router_logits = False
        try:
            yield
        finally:
            for name, way in ways.items():
                setattr(written, name, way)
            for module, mode in modes:
                module.training = mode
            if balances:
                config.output_router_logits = balances
