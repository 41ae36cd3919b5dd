"""What a trainer is built from: the tokenizer, the data and the model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fmstune.config.methods.known import METHODS
from fmstune.config.schema.tables import RunConfig
from fmstune.console import phase
from fmstune.data.configured import configured_data, shuffled_as_configured
from fmstune.data.prepare import PreparedData
from fmstune.layout import SKIPPED_ROWS
from fmstune.models.context_length import check_context_length
from fmstune.models.end_tokens import learnt_ends, stop_at
from fmstune.models.load import LoadedModel, load_model, load_tokenizer
from fmstune.models.probe import require_causal
from fmstune.models.special_tokens import use_tokens
from fmstune.models.tokenizer_file import unlike_its_file
from fmstune.models.trainable import KEY, let_gradients_through, train_only
from fmstune.models.vocabulary import fit_vocabulary, frozen_rows


@dataclass(frozen=True)
class Inputs:
    """The loaded tokenizer, data and model, which fit each other."""

    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    model: LoadedModel
    ends: tuple[str, ...]
    """The tokens that end trained answers."""
    notes: tuple[str, ...]
    """Messages about what had to be fitted."""
    model_seconds: float
    data_seconds: float


class _Stopwatch:
    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


def load_inputs(config: RunConfig, output_dir: Path) -> Inputs:
    """Load the tokenizer, then the data, then the model: a damaged row should be reported before the minutes
    of loading a large model. Raises `ModelError`, `DataError` or `ConfigError`."""
    for_model, for_data = _Stopwatch(), _Stopwatch()
    phase("loading the tokenizer")
    with for_model.running():
        tokenizer = load_tokenizer(config.model)
        added = use_tokens(config, tokenizer)
        split = unlike_its_file(tokenizer, config.model.path)
    phase("reading and tokenising data")
    with for_data.running():
        data = configured_data(config, tokenizer, output_dir / SKIPPED_ROWS)
        data = shuffled_as_configured(data, config)
    phase("loading the model")
    with for_model.running():
        model, grown = _load_model(config, tokenizer, data, added.ids)
        ends = () if METHODS[config.run.method].scores else learnt_ends(data.summary.shape, tokenizer)
        stop_at(model.model, tokenizer, ends)
    streamed = data.summary.streaming
    longest = (config.max_length or 0) if streamed else data.summary.longest
    too_long = check_context_length(model.model, longest, streamed=streamed)
    notes = tuple(note for note in (*model.notes, split, too_long, added.note, grown) if note)
    return Inputs(tokenizer, data, model, ends, notes, for_model.seconds, for_data.seconds)


def _load_model(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, data: PreparedData, added: Sequence[int]
) -> tuple[LoadedModel, str | None]:
    """The model with an embedding for each token of the data, and a message if it had to grow for that."""
    frozen, scores = config.adapter is not None, METHODS[config.run.method].scores
    loaded = load_model(config.model, lora=frozen, seed=config.seed, reward=scores)
    if not scores:
        require_causal(loaded.model, f"model.path = {config.model.path!r}")
    grown = fit_vocabulary(loaded.model, tokenizer, config, data, added)
    if (grown or added) and not frozen:
        parameters = loaded.model.num_parameters()
        loaded = dataclasses.replace(loaded, identity={**loaded.identity, "parameters": parameters})
    if config.model.trainable:
        train_only(loaded.model, config.model.trainable, config.at(KEY))
        let_gradients_through(loaded.model, config.training.get("gradient_checkpointing_kwargs"))
        if all(weight.requires_grad for weight in loaded.model.parameters()):
            loaded = dataclasses.replace(loaded, notes=(*loaded.notes, f"{KEY} names all of the weights"))
        if (grown or added) and (kept := frozen_rows(loaded.model)):
            what = grown or "the embeddings of model.add_tokens are the mean of the others"
            grown = f"{what}; {KEY} keeps them so in {' and '.join(kept)}, which it does not name"
    return loaded, grown
