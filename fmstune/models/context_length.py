"""Whether a model has positions for rows as long as the data's."""

from __future__ import annotations

from typing import Any

from fmstune.errors import ConfigError

_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")


def require_positions(model: Any, longest: int, *, streamed: bool = False) -> str | None:
    """The message about rows of `longest` tokens; `None` if the model has enough positions.

    For `streamed` rows, it is unknown whether one of that length will come.

    A model with a table of positions fails beyond its end: raises `ConfigError`. A model that computes angles
    from positions continues, at lengths that it has never seen; that is a warning.
    angles computes on, for lengths that it has never seen; that is a warning.
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
