"""`tracking.artifacts = "final"`: the tuned model, its configuration and its card are with the trackers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fmstune

DEMO = {
    "model.path": "demo", "data.train": "demo", "data.max_rows": 16, "training.max_steps": 1,
    "training.save_strategy": "no", "training.eval_strategy": "no", "resources.interval": 0,
    "training.output_dir": "runs/x", "tracking.trackers": ["file"], "trackers.file.path": "stored.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("lora", [False, True])
def test_what_a_run_has_made_is_handed_to_its_trackers(
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
