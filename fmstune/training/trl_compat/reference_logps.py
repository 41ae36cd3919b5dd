"""The reference of TRL's trainers: the adapter that is a copy of a continued one, and the log-probabilities
that TRL computes in advance, where it stores them and for what."""

from __future__ import annotations

from typing import Any

from accelerate.utils import broadcast_object_list
from datasets.fingerprint import Hasher
from peft import PeftModel

_ALSO = ("ld_alpha", "max_length", "truncation_mode", "bf16", "fp16")
"""Arguments that they depend on besides the rows and the model."""


REFERENCE_ADAPTER = "ref"
"""TRL's name for it."""


def complete_reference_adapter(model: Any) -> None:
    """Copy those weights of a continued adapter into its reference that TRL leaves as they were drawn.

    TRL copies weights whose names contain `.default.`. PEFT keeps those of embeddings and of added tokens in
    dicts of parameters, and their names end with it.
    """
    if not isinstance(model, PeftModel) or REFERENCE_ADAPTER not in model.peft_config:
        return
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        copied = weights.get(f"{name.removesuffix('.default')}.{REFERENCE_ADAPTER}")
        if name.endswith(".default") and copied is not None:
            copied.data.copy_(weight.data)


class StoredReferenceLogps:
    """A mixin for a TRL Trainer, before it. TRL names the file after the rows and the model alone, and for
    rows in memory, each process expects the file of the first in a temporary folder of its own."""

    args: Any
    model: Any

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        complete_reference_adapter(self.model)
        place = getattr(dataset, "_get_cache_file_path", None)
        trainer: Any = super()
        if place is None:  # a stream, which TRL refuses
            return trainer._precompute_ref_logps(dataset, name, batch_size)
        how = [getattr(self.args, each, None) for each in _ALSO]

        def of_first(fingerprint: str) -> str:
            found = [place(Hasher.hash((fingerprint, how)))]
            broadcast_object_list(found, from_process=0)
            return str(found[0])

        dataset._get_cache_file_path = of_first
        try:
            return trainer._precompute_ref_logps(dataset, name, batch_size)
        finally:
            del dataset._get_cache_file_path
