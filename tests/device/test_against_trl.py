"""As fast as TRL's trainer at its best, with no more memory, on the same rows with the same losses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.on_device import Device, Row, arguments, run, sets, train

pytestmark = pytest.mark.device

_TRL = """
import json, sys
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model, rows, length, steps, batch, gpu, options = sys.argv[1:]
gpu = gpu == "cuda"
options = json.loads(options)
attention = options.pop("attn_implementation", None)
torch.backends.cuda.enable_cudnn_sdp(options.pop("cudnn", True))
tokenizer = AutoTokenizer.from_pretrained(model)
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation=attention)
trainer = SFTTrainer(
    loaded,
    args=SFTConfig(
        "trl", max_steps=int(steps), per_device_train_batch_size=int(batch), max_length=int(length),
        learning_rate=1e-4, warmup_steps=0, lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
        report_to=[], bf16=gpu, use_cpu=not gpu, seed=42, **options,
    ),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    processing_class=tokenizer,
)
if gpu:
    torch.cuda.reset_peak_memory_stats()
trained = trainer.train()
print("SEEN", json.dumps({
    "speed": trained.metrics["train_steps_per_second"],
    "peak": torch.cuda.max_memory_reserved() / 1e9 if gpu else 0.0,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
}))
"""
_PLAIN: dict[str, object] = {"gradient_checkpointing": False}
_WAYS: dict[str, dict[str, object]] = {
    "as it is": _PLAIN,
    "without cuDNN's attention": {**_PLAIN, "cudnn": False},
    "Liger kernels, without cuDNN's attention": {**_PLAIN, "cudnn": False, "use_liger_kernel": True},
    "padding-free": {**_PLAIN, "padding_free": True, "attn_implementation": "flash_attention_2"},
}


def test_it_is_as_fast_as_trl_at_its_best(device: Device, row: Row, tmp_path: Path) -> None:
    steps, batch = (40, 8) if device.is_gpu else (6, 4)
    common = [
        *arguments(device),
        *sets(max_steps=steps, per_device_train_batch_size=batch, bf16=device.is_gpu),
    ]
    runs = {"fmstune train": train(device, tmp_path, *common)}
    if importlib.util.find_spec("liger_kernel") and device.is_gpu:
        liger = sets(use_liger_kernel=True)
        runs["fmstune train, Liger kernels"] = train(device, tmp_path, *common, *liger, out="liger")
    reference = runs["fmstune train"].losses
    peers: dict[str, tuple[float, float]] = {}
    for way, options in _WAYS.items() if device.is_gpu else [("as it is", _WAYS["as it is"])]:
        given = [device.model, device.rows, device.length, steps, batch, device.kind, json.dumps(options)]
        (tmp_path / "trl_run.py").write_text(_TRL)
        try:
            printed, seconds = run(["trl_run", *map(str, given)], tmp_path)
        except AssertionError as error:  # a configuration without its kernels is skipped
            if "ImportError" in str(error) or "not installed" in str(error):
                continue
            raise
        found = json.loads(printed.rpartition("SEEN ")[2].splitlines()[0])
        peers[way] = found["speed"], found["peak"]
        row(
            f"trl sft, {way}",
            f"{found['speed']:.2f} steps/s",
            tuple(found["losses"]),
            found["peak"],
            0.0,
            seconds,
        )
        assert found["losses"] == pytest.approx(reference, abs=0.05 if device.is_gpu else 1e-3)
    best = max(speed for speed, _ in peers.values())
    for way, ours in runs.items():
        speed = ours.metrics["train", "train_steps_per_second"]
        what = f"{speed:.2f} steps/s, {speed / best:.2f} × trl's best"
        row(way, what, ours.losses, ours.peak, ours.estimated, ours.seconds)
    if device.is_gpu:
        least = min(peak for _, peak in peers.values())
        assert min(ours.peak for ours in runs.values()) <= 1.05 * least, peers
