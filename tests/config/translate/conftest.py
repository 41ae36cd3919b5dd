"""A folder with the files that the translated configurations name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PAIRS = {
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"},
    },
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "body"}},
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps(PAIRS))
    for name in (
        "data/pairs.json",
        "data/texts.jsonl",
        "chats.jsonl",
        "chats/train.jsonl",
        "chats/valid.jsonl",
        "there/config.json",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
