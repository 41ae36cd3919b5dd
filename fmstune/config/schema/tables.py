"""The schema: every table of the configuration, each field with its bounds and its sentence of help.

The fields of `[training]` are those of TRL's installed class for the method (see `training`); what fmstune
does differently there is in `managed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.config.methods.known import DEFAULT, METHODS, in_help
from fmstune.config.schema.data import DataConfig, DataSource

__all__ = ["DataConfig", "DataSource"]  # of this room, and of this table; all else is defined here


CHAT_TEMPLATES = ("alpaca", "chatml", "gemma", "llama2", "llama3", "mistral", "plain", "zephyr")
"""The chat templates that `model.chat_template` knows by name."""


@dataclass(frozen=True)
class ModelConfig:
    """The table `[model]`."""

    path: str = field(
        default="",
        metadata={
            "help": "The model: a directory, a .gguf file, a name on the hub, or `demo`. A directory with an "
            "adapter is trained on."
        },
    )
    gguf_file: str | None = field(
        default=None, metadata={"help": "The .gguf file to take, of a directory or hub name that has some."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the hub; a run pins it."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "What the weights are held in; auto: float32 for weights that are trained.",
            "choices": ("auto", "float32", "bfloat16", "float16"),
        },
    )
    quantization: str | None = field(
        default=None,
        metadata={
            "help": "Hold the frozen weights under a LoRA adapter in so many bits (QLoRA); needs a GPU.",
            "choices": ("4bit", "8bit"),
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, …; else the model's own."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that a model on the hub brings."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "The chat template, instead of the model's own: a Jinja file, or one by its name: "
            f"{', '.join(CHAT_TEMPLATES)}."
        },
    )


@dataclass(frozen=True)
class RunSettings:
    """The table `[run]`: how the run as a whole is done, and what it is called."""

    name: str | None = field(
        default=None,
        metadata={
            "help": "What trackers and lists call the run; else training.run_name, else its directory."
        },
    )
    group: str | None = field(
        default=None,
        metadata={"help": "The runs that it belongs to: W&B's group, the experiment in Aim and MLflow."},
    )
    tags: tuple[str, ...] = field(default=(), metadata={"help": "Tags of the run, in each tracker."})
    notes: str | None = field(
        default=None, metadata={"help": "A longer description of the run, in each tracker that has one."}
    )
    method: str = field(
        default=DEFAULT,
        metadata={"help": f"What is learnt: {in_help()}.", "choices": tuple(METHODS)},
    )
    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "When the loss is NaN or infinite: stop, skip the batch, or continue.",
            "choices": ("stop", "skip", "continue"),
        },
    )
    rehearse: str = field(
        default="auto",
        metadata={
            "help": "Try the longest batch, an evaluation and a checkpoint before the start; auto: for runs "
            "longer than a few minutes.",
            "choices": ("auto", "always", "never"),
        },
    )
    save_dtype: str = field(
        default="auto",
        metadata={
            "help": "What the tuned weights are saved in at the end; auto: as the model's own were, and an "
            "adapter's as they are trained.",
            "choices": ("auto", "float32", "bfloat16", "float16"),
        },
    )
    auto_batch: bool = field(
        default=False,
        metadata={"help": "Find the largest batch that fits into memory, and keep the effective batch size."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop when so many evaluations in a row were no better than the best one, whose weights "
            "are kept.",
            "min": 1,
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "By how much an evaluation has to be better to count as better.", "min": 0},
    )
    callbacks: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Callbacks of the Trainer, as `module:Class`; they run in the training process."},
    )
    compute_metrics: str | None = field(
        default=None,
        metadata={"help": "A function of an EvalPrediction that returns metrics, as `module:function`."},
    )
    termination_log: str | None = field(
        default=None,
        metadata={"help": "Where the cause of a failure is written as well, such as /dev/termination-log."},
    )


@dataclass(frozen=True)
class SamplesConfig:
    """The table `[samples]`: what the model writes, at each evaluation, as a table for the trackers."""

    prompts: tuple[str, ...] = field(
        default=(), metadata={"help": "Prompts that are answered at each evaluation."}
    )
    rows: int = field(
        default=0,
        metadata={"help": "So many rows of the evaluation data are answered too.", "min": 0},
    )
    max_new_tokens: int = field(default=64, metadata={"help": "The longest answer, in tokens.", "min": 1})


@dataclass(frozen=True)
class LoraConfig:
    """The table `[lora]`."""

    enabled: bool = field(default=False, metadata={"help": "Train an adapter instead of all weights."})
    r: int = field(default=16, metadata={"help": "Rank of the adapter's matrices.", "min": 1})
    alpha: int = field(default=32, metadata={"help": "Scale of the adapter: alpha / r.", "min": 1})
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout before the adapter.", "min": 0, "below": 1}
    )
    target_modules: str | tuple[str, ...] = field(
        default="all-linear",
        metadata={"help": "Modules that get an adapter: names, a regular expression, or all-linear."},
    )
    bias: str = field(
        default="none",
        metadata={
            "help": "Which biases are trained as well.",
            "choices": ("none", "all", "lora_only"),
        },
    )
    rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / √r instead (rsLoRA), which suits large ranks."}
    )
    dora: bool = field(
        default=False, metadata={"help": "Learn the size of each weight apart from its direction (DoRA)."}
    )
    modules_to_save: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Other modules to train in full, saved with the adapter."},
    )


@dataclass(frozen=True)
class PromptTuningConfig:
    """The table `[prompt_tuning]`: words before each text that are learnt, for a model that stays frozen."""

    enabled: bool = field(
        default=False, metadata={"help": "Train virtual tokens before each text instead of weights."}
    )
    tokens: int = field(default=20, metadata={"help": "How many virtual tokens are learnt.", "min": 1})
    text: str | None = field(
        default=None, metadata={"help": "The text whose embeddings they begin as; else random ones."}
    )


@dataclass(frozen=True)
class TrackingConfig:
    """The table `[tracking]`."""

    trackers: tuple[str, ...] = field(
        default=(), metadata={"help": "The trackers of the run; see `fmstune trackers list`."}
    )
    close_timeout: float = field(
        default=30.0,
        metadata={"help": "Seconds that trackers have to catch up when the run has ended.", "min": 0},
    )
    check_timeout: float = field(
        default=10.0, metadata={"help": "Seconds that each tracker's check may take.", "min": 0.1}
    )
    in_process_timeout: float = field(
        default=10.0,
        metadata={
            "help": "Seconds that a call of a tracker which works in the training process may take.",
            "min": 0.1,
        },
    )
    artifacts: str = field(
        default="none",
        metadata={
            "help": "What is handed to trackers that hold files: none; final: the model or adapter, its "
            "configuration and its card; or checkpoints: also the model or adapter of each checkpoint.",
            "choices": ("none", "final", "checkpoints"),
        },
    )
    strict: bool = field(default=False, metadata={"help": "An unreachable tracker at the start is an error."})


@dataclass(frozen=True)
class ResourcesConfig:
    """The table `[resources]`: what is tracked of the machine, in the stage `system`."""

    interval: float = field(
        default=10.0,
        metadata={
            "help": "Seconds between samples of processor, memory, disk, network and GPUs; 0 tracks nothing "
            "of the stage `system`.",
            "min": 0,
        },
    )


@dataclass(frozen=True)
class RunConfig:
    """A resolved configuration.

    `training` holds what is handed to the method's class of TRL; `trackers` the options of each tracker;
    `params` what the user wants the run to be found by. `origins` says of each dotted key where its value
    came from: `fmstune.toml:14`, `--set`, the flag, or `default`; `over`, which values (and their origins) it
    won over; `defaults`, what holds in `[training]` of such a run when nobody sets it. Relative
    paths are kept as they were written, also those of a file in another directory, and mean what they mean
    from `base_dir`, the current directory. `demo` says that the packaged model is tuned on the packaged data.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt_tuning: PromptTuningConfig = field(default_factory=PromptTuningConfig)
    run: RunSettings = field(default_factory=RunSettings)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    over: Mapping[str, Sequence[tuple[Any, str]]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    base_dir: Path = field(default_factory=Path)
    demo: bool = False

    def at(self, key: str) -> str:
        """`fmstune.toml:14: `, the place that a message about a setting begins with; empty for a default."""
        origin = self.origins.get(key, "default")
        return "" if origin == "default" else f"{origin}: "

    @property
    def adapter(self) -> str | None:
        """What is trained instead of all weights: `lora`, `prompt tuning`, or nothing else."""
        if self.prompt_tuning.enabled:
            return "prompt tuning"
        return "lora" if self.lora.enabled else None

    @property
    def output_dir(self) -> str | None:
        """The run's directory, when one was chosen."""
        chosen: str | None = self.training.get("output_dir")
        return chosen


TABLES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "lora": LoraConfig,
    "prompt_tuning": PromptTuningConfig,
    "run": RunSettings,
    "samples": SamplesConfig,
    "tracking": TrackingConfig,
    "resources": ResourcesConfig,
}


PROMPT_TUNING_LEARNING_RATE = 3e-2
"""Embeddings of a few tokens have to go far, and nothing else moves (PEFT's own example)."""

DEMO_TRAINING: dict[str, Any] = {
    "max_steps": 60,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 20,
    "save_strategy": "steps",
    # As often as it is evaluated: load_best_model_at_end wants a checkpoint of each evaluated step.
    "save_steps": 20,
    "max_length": 256,
}
"""What tunes the demo model within seconds on two cores."""

DEMO = "demo"
"""The name of the packaged model, and of the packaged data."""
