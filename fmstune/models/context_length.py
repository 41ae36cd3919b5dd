"""Check that a model's context is long enough for the rows."""

from __future__ import annotations

from typing import Any

from fmstune.errors import ConfigError

_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")


def check_context_length(model: Any, longest: int, *, streamed: bool = False) -> str | None:
    """Check that the model has positions for rows of `longest` tokens; return a warning, or `None`.

    For `streamed` rows, it is unknown whether one of that length will come. A model with a table of positions
    fails beyond its end: raises `ConfigError`. A model that computes angles from positions continues, at
    lengths that it was not trained on: returns a warning.
    """
    settings = model.config.get_text_config()
    positions = getattr(settings, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0 or longest <= positions:  # XLNet: -1, any number
        return None
    have = "may have" if streamed else "have"
    remedy = f"set training.max_length = {positions}"
    if any(getattr(settings, name, None) for name in _ROTARY):
        return (
            f"rows {have} up to {longest:,} tokens, but the model was trained for {positions:,}: unless it "
            f"should learn longer ones, {remedy}"
        )
    raise ConfigError(
        f"rows {have} up to {longest:,} tokens, but the model has {positions:,} positions: {remedy}."
    )
