"""Load every weight of a checkpoint.

transformers saves models under the names of published files, and some weights in other shapes: each expert of
a mixture by itself, or the text part of a model for images under another prefix. `from_pretrained` converts
them. The Trainer does not: it leaves weights that it does not find as they are, and logs a warning.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fmstune.errors import RunError
from fmstune.text import counted
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import as_trainer


class LoadsAllWeights(PrivateHooks):
    """A mixin for a Trainer, before it."""

    def weights_loaded(self, load_result: Any, checkpoint: str) -> None:
        """Load those that the Trainer did not find. Raises `RunError` if the checkpoint lacks any."""
        this = as_trainer(self)
        missing = _not_tied(load_result.missing_keys, this.model)
        if this.is_fsdp_enabled or not missing:
            super().weights_loaded(type(load_result)(missing, load_result.unexpected_keys), checkpoint)
            return
        own = this.model.config
        read, report = type(this.model).from_pretrained(
            checkpoint, config=own, dtype=this.model.dtype, output_loading_info=True
        )
        if lacking := report["missing_keys"]:
            raise RunError(
                f"{checkpoint} lacks {counted(len(lacking), 'tensor')} of the model, {min(lacking)} for one: "
                "it is incomplete, or of another model. Resume from another checkpoint (--resume PATH)."
            )
        this.model.load_state_dict(read.state_dict())


def _not_tied(missing: Collection[str], model: Any) -> list[str]:
    """The missing weights without aliases of loaded ones, such as a tied `lm_head`: a checkpoint stores those
    once."""
    state = model.state_dict()
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    return [name for name in missing if name not in state or state[name].data_ptr() not in loaded]
