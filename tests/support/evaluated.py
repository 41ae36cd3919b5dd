"""The arguments that `compute_metrics` receives for a few rows, for each method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.config.load.load import load
from fmstune.config.methods.known import METHODS
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer

ROWS, SIZE = 7, 2
Found = list[list[float]]
"""For each prediction: its tokens and the model's output for them, or its two rewards."""


def write_rows(folder: Path) -> None:
    """Rows of different lengths, for each method."""
    words = ["red", "green", "blue", "cat", "dog", "run"]

    def text(number: int, by: int) -> str:
        return " ".join(words[(number + i * by) % 6] for i in range(2 + number * by % 5))

    for method in METHODS:
        rows = []
        for number in range(ROWS):
            answers: dict[str, Any] = {"chosen": text(number, 1), "rejected": f"{text(number, 2)} no"}
            if method in ("sft", "kto"):
                answers = {"completion": text(number, 1)}
            if method == "kto":
                answers["label"] = number % 2 == 0
            rows.append({"prompt": f"{number} {words[number % 6]}?", **answers})
        (folder / f"{method}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def built(method: str) -> BuiltTrainer:
    """A trainer that evaluates on these rows, in the current directory."""
    rows = [f"data.train={method}.jsonl", f"data.eval={method}.jsonl"]
    return build_trainer(
        load(None, [], ["model.path=demo", f"run.method={method}", *rows]), Tracker(), Path("out")
    )


def given(run: BuiltTrainer, rows: int, size: int) -> tuple[Found, Mapping[str, float]]:
    """The arguments of `compute_metrics` for the first rows, and the loss that is logged."""
    trainer: Any = run.trainer
    found: Found = []

    def compute(prediction: Any) -> dict[str, float]:
        answers, labels, inputs = prediction.predictions, prediction.label_ids, prediction.inputs
        for answer, label, tokens in zip(answers, labels, inputs[:: len(inputs) // len(labels)], strict=True):
            if not label.ndim:  # two rewards
                found.append([*answer.tolist(), float(label)])
                continue
            kept = label != -100
            assert (tokens[: len(label)][kept] == label[kept]).all()
            found.append([*label[kept].tolist(), *answer[kept].sum(-1).tolist()])
        return {"losses": float(prediction.losses.sum())}

    trainer.args.per_device_eval_batch_size, trainer.args.include_for_metrics = size, ["inputs", "loss"]
    trainer.compute_metrics = compute
    logged = trainer.evaluate(eval_dataset=trainer.eval_dataset.select(range(rows)))
    return found, {name: logged[name] for name in ("eval_loss", "eval_losses")}
