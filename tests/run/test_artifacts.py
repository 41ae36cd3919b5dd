"""`tracking.artifacts = "final"`: the trackers get the trained model, its configuration and its model
card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fmstune

DEMO = {
    "model.path": "demo", "data.train": "demo", "data.max_rows": 16, "training.max_steps": 1,
    "training.save_strategy": "no", "training.eval_strategy": "no", "resources.interval": 0,
    "training.output_dir": "runs/x", "tracking.trackers": ["file"], "trackers.file.path": "stored.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("lora", [False, True])
def test_the_artifacts_of_a_run_are_uploaded_to_its_trackers(
    lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DEMO | {"tracking.artifacts": "final", "lora.enabled": lora}
    result = fmstune.train(settings=settings, quiet=True)
    assert [line.state for line in result.delivery] == ["complete"]
    rows = [json.loads(line) for line in Path("stored.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "artifact"]
    name = "adapter" if lora else "model"
    said = row["values"][name]
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert {weights, "config.toml", "README.md", "tokenizer.json"} <= set(said["files"])
    assert "training_args.bin" not in said["files"]
    assert Path(said["folder"], weights).samefile(result.directory / weights)
    for file in said["files"]:
        assert Path(said["folder"], file).read_bytes() == (result.directory / file).read_bytes()


CHECKPOINTS = DEMO | {
    "tracking.artifacts": "checkpoints", "training.max_steps": 3, "training.save_strategy": "steps",
    "training.save_steps": 1, "training.save_total_limit": 1,
}  # fmt: skip


def handed_over(row: dict[str, Any]) -> dict[str, Any]:
    ((_, said),) = row["values"].items()
    return dict(said)


def test_each_checkpoint_is_uploaded_though_it_is_rotated_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fmstune.train(settings=CHECKPOINTS, quiet=True)
    (line,) = result.delivery
    assert line.state == "complete"
    assert line.artifacts is not None
    assert line.artifacts.startswith("4 artifacts, ")
    rows = [json.loads(line) for line in Path("stored.jsonl").read_text().splitlines()]
    given = [row for row in rows if row["kind"] == "artifact"]
    names = [f"checkpoint-{step}" for step in (1, 2, 3)]
    assert [(*row["values"], row["step"]) for row in given] == [
        *zip(names, (1, 2, 3), strict=True), ("model", 3),
    ]  # fmt: skip
    assert [path.name for path in result.directory.glob("checkpoint-*")] == ["checkpoint-3"]
    for row in given:
        said = handed_over(row)
        assert "model.safetensors" in said["files"]
        assert not {"optimizer.pt", "training_args.bin", "trainer_state.json"} & set(said["files"])
        assert sum(Path(said["folder"], each).stat().st_size for each in said["files"]) == said["size"]
    weights = [Path(handed_over(row)["folder"], "model.safetensors").read_bytes() for row in given]
    assert len(set(weights[:3])) == 3
