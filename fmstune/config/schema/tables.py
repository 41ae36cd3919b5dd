"""The schema: all tables of the configuration, each field with its bounds and its help text.

The fields of `[training]` are those of TRL's installed class for the method (see `training`); fmstune's
deviations are in `managed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.config.methods.known import DEFAULT, METHODS, in_help
from fmstune.config.schema.adapters import LoraConfig, PromptTuningConfig
from fmstune.config.schema.data import DataConfig, DataSource

__all__ = ["DataConfig", "DataSource"]  # re-exported; everything else is defined here


CHAT_TEMPLATES = ("alpaca", "chatml", "gemma", "llama2", "llama3", "mistral", "plain", "zephyr")
"""The chat templates that `model.chat_template` knows by name."""


@dataclass(frozen=True)
class ModelConfig:
    """The table `[model]`."""

    path: str = field(
        default="",
        metadata={
            "help": "The model: a directory, a .gguf file, a name on the hub, or `demo`. An adapter in a "
            "directory is trained further."
        },
    )
    gguf_file: str | None = field(
        default=None, metadata={"help": "The .gguf file to use, for a directory or hub name with several."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of a model on the hub; a run pins it."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "The dtype of the weights in memory; auto: float32 for trained weights.",
            "choices": ("auto", "float32", "bfloat16", "float16"),
        },
    )
    quantization: str | None = field(
        default=None,
        metadata={
            "help": "Quantize the frozen weights under a LoRA adapter (QLoRA); needs a GPU.",
            "choices": ("4bit", "8bit"),
        },
    )
    trainable: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": 'Train only these weights: names or regular expressions, such as ["layers.2[0-9]", '
            '"norm"]. Default: all, or an adapter.'
        },
    )
    lr_multipliers: Mapping[str, float] | None = field(
        default=None,
        metadata={
            "help": "Factors for the learning rate of weights, by name as in `trainable`: {lora_B = 16} is "
            "LoRA+.",
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, …. Default: the model's own."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that comes with a model on the hub."}
    )
    add_tokens: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Tokens to add to the tokenizer. Their embeddings start as the mean of the others."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "The chat template to use instead of the model's own: a Jinja file, or one of "
            f"{', '.join(CHAT_TEMPLATES)}."
        },
    )
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Values for variables of the chat template, such as {enable_thinking = false}; the "
            "tuned model keeps them as defaults."
        },
    )


@dataclass(frozen=True)
class RunSettings:
    """The table `[run]`: settings of the run as a whole, and its name."""

    name: str | None = field(
        default=None,
        metadata={
            "help": "The run's name in trackers and lists. Default: training.run_name, or its directory."
        },
    )
    group: str | None = field(
        default=None,
        metadata={"help": "The group of the run: W&B's group, the experiment in Aim and MLflow."},
    )
    tags: tuple[str, ...] = field(default=(), metadata={"help": "Tags of the run, in each tracker."})
    notes: str | None = field(
        default=None, metadata={"help": "A longer description of the run, in each tracker that has one."}
    )
    method: str = field(
        default=DEFAULT,
        metadata={"help": f"The training method ({in_help()}).", "choices": tuple(METHODS)},
    )
    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "If the loss is NaN or infinite: stop, skip the batch, or continue.",
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
            "help": "The dtype of the saved weights; auto: model.dtype if set, else that of the original "
            "model, or for an adapter that of the training.",
            "choices": ("auto", "float32", "bfloat16", "float16"),
        },
    )
    auto_batch: bool = field(
        default=False,
        metadata={
            "help": "Find the largest batch that fits into memory; the effective batch size does not change."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without improvement, and keep the best weights.",
            "min": 1,
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "The minimum change that counts as an improvement.", "min": 0},
    )
    callbacks: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Callbacks for the Trainer, as `module:Class`; they run in the training process."},
    )
    compute_metrics: str | None = field(
        default=None,
        metadata={"help": "A function from an EvalPrediction to metrics, as `module:function`."},
    )
    termination_log: str | None = field(
        default=None,
        metadata={"help": "A file for the cause of a failure, such as /dev/termination-log."},
    )


@dataclass(frozen=True)
class SamplesConfig:
    """The table `[samples]`: the model's answers at each evaluation, tracked as a table."""

    prompts: tuple[str, ...] = field(default=(), metadata={"help": "Prompts to answer at each evaluation."})
    rows: int = field(
        default=0,
        metadata={"help": "The number of evaluation rows to answer as well.", "min": 0},
    )
    max_new_tokens: int = field(
        default=64, metadata={"help": "The maximum length of an answer, in tokens.", "min": 1}
    )


@dataclass(frozen=True)
class TrackingConfig:
    """The table `[tracking]`."""

    trackers: tuple[str, ...] = field(
        default=(), metadata={"help": "The trackers of the run; see `fmstune trackers list`."}
    )
    close_timeout: float = field(
        default=30.0,
        metadata={"help": "Seconds to wait for trackers to catch up when the run ends.", "min": 0},
    )
    check_timeout: float = field(
        default=10.0, metadata={"help": "The timeout of each tracker's check, in seconds.", "min": 0.1}
    )
    in_process_timeout: float = field(
        default=10.0,
        metadata={
            "help": "The timeout of a call to a tracker in the training process, in seconds.",
            "min": 0.1,
        },
    )
    artifacts: str = field(
        default="none",
        metadata={
            "help": "The files to upload to trackers that store files: none; final: the model or adapter, "
            "its configuration and its card; or checkpoints: also the model or adapter of each checkpoint.",
            "choices": ("none", "final", "checkpoints"),
        },
    )
    strict: bool = field(default=False, metadata={"help": "Treat an unreachable tracker as an error."})


@dataclass(frozen=True)
class ResourcesConfig:
    """The table `[resources]`: tracking of the machine, in the stage `system`."""

    interval: float = field(
        default=10.0,
        metadata={
            "help": "Seconds between samples of CPU, memory, disk, network and GPUs, in the stage `system`; "
            "0 turns them off.",
            "min": 0,
        },
    )


@dataclass(frozen=True)
class RunConfig:
    """A resolved configuration.

    `training` holds the arguments of TRL's class for the method; `trackers` the options of each tracker;
    `params` the user's metadata. `origins` maps each dotted key to the origin of its value:
    `fmstune.toml:14`, `--set`, the flag, or `default`; `over`, to the values that it overrides, with their
    origins; `defaults` are the defaults of `[training]` for this run. Relative paths stay as written, and are
    relative to `base_dir`, the current directory, also in a file elsewhere. `demo` means that the packaged
    model is tuned on the packaged data.
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
        """`fmstune.toml:14: `, the location at the start of a message about a setting; empty for a
        default."""
        origin = self.origins.get(key, "default")
        return "" if origin == "default" else f"{origin}: "

    @property
    def demo_by_default(self) -> bool:
        """Whether the demo is tuned because nothing names a model or data."""
        return self.demo and self.origins.get("model.path", "default") == "default"

    @property
    def adapter(self) -> str | None:
        """The kind of adapter: `lora`, `prompt tuning`, or `None` if all weights are trained."""
        if self.prompt_tuning.enabled:
            return "prompt tuning"
        return "lora" if self.lora.enabled else None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.training.get("seed", 42))

    @property
    def max_length(self) -> int | None:
        """The tokens after which rows are truncated; `None` for no limit."""
        longest: int | None = self.training.get("max_length", 1024)
        return longest

    @property
    def packing(self) -> bool:
        """Whether several rows are packed into one."""
        return bool(self.training.get("packing"))

    @property
    def output_dir(self) -> str | None:
        """The run's directory, if the user chose one."""
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
"""High, since the embeddings of a few tokens have to move far, and nothing else moves (PEFT's own
example)."""

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
    # Equal to eval_steps: load_best_model_at_end needs a checkpoint at each evaluated step.
    "save_steps": 20,
    "max_length": 256,
}
"""Settings that tune the demo model within seconds on two cores."""

DEMO = "demo"
"""The name of the packaged model and of the packaged data."""
