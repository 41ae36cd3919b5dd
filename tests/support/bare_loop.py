"""Measures a bare padded PyTorch loop on the same steps, in a subprocess
(`tests/benchmarks/train_speed.py`).

    python -m tests.support.bare_loop MODEL ROWS --steps 60 --batch 4 --rate 1e-4 --length 256 [--fused]

The model's own forward with labels, batches padded to their longest row, clipping at 1, torch's AdamW and a
linearly decaying rate; rows in the Trainer's order, so that losses can be compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED, SEED = -100, 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    for name, kind in (("steps", int), ("batch", int), ("rate", float), ("length", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--fused", action="store_true")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    rows = []
    for line in asked.rows.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"][: asked.length]
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        rows.append((torch.tensor(ids), torch.tensor(labels[: len(ids)])))
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).train()
    fused = {"fused": True} if asked.fused else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.rate, weight_decay=0.0, **fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / asked.steps))
    order: list[int] = []
    for epoch in range(1 + asked.steps * asked.batch // len(rows)):  # as accelerate's sampler draws it
        order += torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED + epoch)).tolist()
    for step in range(asked.steps):
        batch = [rows[at] for at in order[step * asked.batch : (step + 1) * asked.batch]]
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence([row[part] for row in batch], True, value)
            for part, value in ((0, 0), (1, IGNORED))
        )
        widths = torch.tensor([[len(row[0])] for row in batch])
        mask = (torch.arange(ids.shape[1])[None] < widths).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"loss {float(loss.detach())}", flush=True)  # one line per step: the reader times steps by them


if __name__ == "__main__":
    main()
