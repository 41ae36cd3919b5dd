"""The tables of the adapters: `[lora]` and `[prompt_tuning]`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoraConfig:
    """The table `[lora]`."""

    enabled: bool = field(default=False, metadata={"help": "Train an adapter instead of all weights."})
    r: int = field(default=16, metadata={"help": "The rank of the adapter's matrices.", "min": 1})
    alpha: int = field(default=32, metadata={"help": "The scale of the adapter is alpha / r.", "min": 1})
    dropout: float = field(
        default=0.0, metadata={"help": "The dropout before the adapter.", "min": 0, "below": 1}
    )
    target_modules: str | tuple[str, ...] = field(
        default="all-linear",
        metadata={"help": "The modules to adapt: names, a regular expression, or all-linear."},
    )
    target_parameters: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Parameters to adapt that no module is made of, such as the experts of a mixture: "
            '["experts.gate_up_proj", "experts.down_proj"].'
        },
    )
    bias: str = field(
        default="none",
        metadata={
            "help": "Which biases to train as well.",
            "choices": ("none", "all", "lora_only"),
        },
    )
    rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / √r instead (rsLoRA), for large ranks."}
    )
    dora: bool = field(
        default=False, metadata={"help": "Learn magnitude and direction of the weights separately (DoRA)."}
    )
    modules_to_save: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Further modules to train in full, saved with the adapter."},
    )


@dataclass(frozen=True)
class PromptTuningConfig:
    """The table `[prompt_tuning]`: learnt virtual tokens before each text, for a frozen model."""

    enabled: bool = field(
        default=False, metadata={"help": "Train virtual tokens before each text instead of weights."}
    )
    tokens: int = field(default=20, metadata={"help": "The number of virtual tokens.", "min": 1})
    text: str | None = field(
        default=None, metadata={"help": "The text to initialise them from. Default: random tokens."}
    )
