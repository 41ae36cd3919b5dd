"""As fast as TRL's trainer at its best, with no more memory, on the same rows with the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.on_device import Device, Row, arguments, run, sets, speed, train

pytestmark = pytest.mark.device

_TRL = """
import json, sys, time
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
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
logged = []
class Times(TrainerCallback):
    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            logged.append(time.time())
trainer.add_callback(Times())
if gpu:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
trainer.train()
print("SEEN", json.dumps({
    "logged": logged,
    "peak": torch.cuda.max_memory_reserved() / 1e9 if gpu else 0.0,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
}))
"""
# On a GPU without cuDNN's attention, which makes a plan for each new length of a batch and is a quarter as
# fast, and without checkpointing of activations.
_PLAIN: dict[str, object] = {"gradient_checkpointing": False, "cudnn": False}
_WAYS: dict[str, dict[str, object]] = {
    "padded": _PLAIN,
    "padded, Liger kernels": {**_PLAIN, "use_liger_kernel": True},
    "padding-free": {**_PLAIN, "padding_free": True, "attn_implementation": "flash_attention_2"},
}


@pytest.mark.parametrize("batch", [8, 32])
def test_it_is_as_fast_as_trl_at_its_best(batch: int, device: Device, row: Row, tmp_path: Path) -> None:
    if batch > 8 and not device.is_gpu:
        pytest.skip("needs CUDA")
    steps = 60 if device.is_gpu else 6
    common = [
        *arguments(device),
        *sets(max_steps=steps, per_device_train_batch_size=batch, bf16=device.is_gpu),
    ]
    ours = train(device, tmp_path, *common)
    peers: dict[str, tuple[float, float]] = {}
    for way, options in list(_WAYS.items())[: None if device.is_gpu else 1]:
        given = [device.model, device.rows, device.length, steps, batch, device.kind, json.dumps(options)]
        (tmp_path / "trl_run.py").write_text(_TRL)
        try:
            printed, seconds = run(["trl_run", *map(str, given)], tmp_path)
        except AssertionError as error:  # a configuration without its kernels is skipped
            if "ImportError" in str(error) or "not installed" in str(error):
                continue
            raise
        found = json.loads(printed.rpartition("SEEN ")[2].splitlines()[0])
        peers[way] = speed(found["logged"]), found["peak"]
        what, losses = f"{peers[way][0]:.2f} steps/s", tuple(found["losses"])
        row(f"trl sft, {batch} rows, {way}", what, losses, found["peak"], 0.0, seconds)
        assert losses == pytest.approx(ours.losses, abs=0.05 if device.is_gpu else 1e-3)
    best = max(fast for fast, _ in peers.values())
    what = f"{ours.speed:.2f} steps/s, {ours.speed / best:.2f} × trl's best"
    row(f"fmstune train, {batch} rows", what, ours.losses, ours.peak, ours.estimated, ours.seconds)
    if device.is_gpu:
        assert ours.peak <= 1.05 * min(peak for _, peak in peers.values()), peers
