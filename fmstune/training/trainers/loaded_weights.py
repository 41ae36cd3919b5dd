"""Load every weight of a checkpoint.

transformers saves models under the names of published files, and some weights in other shapes: each expert of
a mixture by itself, or the text part of a model for images under another prefix. `from_pretrained` converts
them. The Trainer does not: it leaves weights that it does not find as they are, and logs a warning.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from peft import PeftModel

from fmstune.errors import RunError
from fmstune.text import counted
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import as_trainer

_MISFIT = re.compile(r"size mismatch for (\S+): .*?\[([\d, ]+)\]\).*?\[([\d, ]+)\]\)")
"""What torch says about a weight of another shape."""


class LoadsAllWeights(PrivateHooks):
    """A mixin for a Trainer, before it."""

    @contextlib.contextmanager
    def loading(self, checkpoint: str) -> Iterator[None]:
        """Raise `RunError` if the weights do not fit the model."""
        this = as_trainer(self)
        model = this.accelerator.unwrap_model(this.model, keep_torch_compile=False)
        try:
            with _missed(model) as missed:
                yield
        except RuntimeError as error:
            if (found := _MISFIT.search(str(error))) is None:
                raise
            name, there, here = found.groups()
            why = f"{_plain(name)} has the shape [{there}] there, and [{here}] here"
            raise RunError(_of_another(checkpoint, model, why)) from error
        if missed:
            raise RunError(_of_another(checkpoint, model, f"its adapter lacks {_plain(missed[0])}"))

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


@contextlib.contextmanager
def _missed(model: Any) -> Iterator[list[str]]:
    """The names of an adapter's trained weights that were not in the files from which it was loaded: the
    Trainer does not look at what PEFT returns, and the optimizer's state then has too few."""
    missed: list[str] = []
    if not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning:
        yield missed
        return
    own = model.load_adapter

    def load_adapter(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        missed.extend(found.missing_keys)
        return found

    model.load_adapter = load_adapter
    try:
        yield missed
    finally:
        model.load_adapter = own


def _of_another(checkpoint: str, model: Any, why: str) -> str:
    place = model.name_or_path
    return (
        f"{checkpoint} is of another model than {place}: {why}. Put the model of that run at {place} again, "
        "or start a new run (--output-dir)."
    )


def _plain(weight: str) -> str:
    return weight.removeprefix("base_model.model.")


def _not_tied(missing: Collection[str], model: Any) -> list[str]:
    """The missing weights without aliases of loaded ones, such as a tied `lm_head`: a checkpoint stores those
    once."""
    state = model.state_dict()
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    return [name for name in missing if name not in state or state[name].data_ptr() not in loaded]
