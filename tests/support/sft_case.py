"""The settings of an sft run, drawn together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.sft_oracle import Settings


@dataclass(frozen=True)
class Case:
    """What a run is given: its sources of rows with their weights, and settings."""

    kind: str = "tokens"
    sources: tuple[tuple[int, int | None], ...] = ((5, None),)
    """The rows and the weight of each source."""
    eval_rows: int = 4
    seed: int = 0
    weighted: bool = False
    all_tokens: bool = False
    max_length: int | None = None
    keep_end: bool = False
    packing: str = ""
    streaming: bool = False
    shuffle_dataset: bool = False
    sampling: str = "random"
    size: int = 2
    several: int = 1
    drop_last: bool = False
    epochs: float | None = 1
    """`None`: `steps` decides."""
    steps: int = 4
    logging: int | str = 1
    """A number of steps, or `epoch`."""
    eval_every: int | str | None = None
    """A number of steps, or `epoch`."""
    eval_on_start: bool = False
    eval_delay: int = 0
    best: str = ""
    patience: int | None = None
    rank: int | None = None
    """The rank of LoRA's matrices."""
    rslora: bool = False
    stop_at: int | None = None
    noise: float | None = None
    numbers: Settings = field(default_factory=Settings)
    more: tuple[str, ...] = ()
    """Settings that are to change nothing."""

    def sets(self) -> list[str]:
        """The settings of the run."""
        numbers = self.numbers
        given: dict[str, Any] = {
            name: value
            for name, value in vars(numbers).items()
            if name not in ("momentum", "lr_scheduler_kwargs") and value != getattr(_USUAL, name)
        }
        given |= {
            "learning_rate": numbers.learning_rate,
            "optim": numbers.optim,
            "seed": self.seed,
            "per_device_train_batch_size": self.size,
            "gradient_accumulation_steps": self.several,
            **({"logging_strategy": "epoch"} if self.logging == "epoch" else {"logging_steps": self.logging}),
            "train_sampling_strategy": self.sampling,
            "dataloader_drop_last": self.drop_last,
            "eval_strategy": "no",
            "save_strategy": "no",
            "num_train_epochs" if self.epochs else "max_steps": self.epochs or self.steps,
        }
        if numbers.momentum:
            given["optim_args"] = f"momentum={numbers.momentum}"
        if self.max_length:
            given["max_length"] = self.max_length
        if self.keep_end:
            given["truncation_mode"] = "keep_end"
        if self.packing:
            given |= {"packing": True, "packing_strategy": self.packing}
        if self.shuffle_dataset:
            given["shuffle_dataset"] = True
        if self.eval_every:
            given["eval_strategy"] = "epoch" if self.eval_every == "epoch" else "steps"
            given |= {} if self.eval_every == "epoch" else {"eval_steps": self.eval_every}
            given |= {"eval_on_start": self.eval_on_start, "eval_delay": self.eval_delay}
        if self.best:
            given |= {"load_best_model_at_end": True, "metric_for_best_model": self.best}
            given.pop("save_strategy")
        if self.noise:
            given["neftune_noise_alpha"] = self.noise
        found = [f"training.{name}={_toml(value)}" for name, value in given.items()]
        if numbers.lr_scheduler_kwargs:
            table = ", ".join(f"{name} = {value}" for name, value in numbers.lr_scheduler_kwargs.items())
            found.append(f"training.lr_scheduler_kwargs={{{table}}}")
        if self.all_tokens:
            found.append("data.train_on=all")
        if self.streaming:
            found += ["data.streaming=true", "data.shuffle_buffer=3"]
        if self.patience:
            found.append(f"run.early_stopping_patience={self.patience}")
        if self.rank:
            found += ["lora.enabled=true", f"lora.r={self.rank}", f"lora.rslora={_toml(self.rslora)}"]
        return found + list(self.more)


_USUAL = Settings()


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
