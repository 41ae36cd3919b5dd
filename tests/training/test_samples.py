"""Samples: the model generates answers at each eval, without affecting the training."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.cli.main import main
from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import ConfigError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.report.commands import next_commands
from fmstune.report.show import view
from fmstune.run.run import run
from tests.support.tuned import weights

pytestmark = pytest.mark.usefixtures("small_demo")

SETS = ["training.max_steps=4", "training.eval_steps=2"]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tune(output: str, *sets: str) -> str:
    config = load(None, [("training.output_dir", output, "--output-dir")], [*SETS, *sets])
    screen = io.StringIO()
    run(config, RunConsole(Console(file=screen, width=200)))
    return screen.getvalue()


def test_each_eval_has_a_table_and_the_weights_equal_those_without_it() -> None:
    tune("plain", "lora.enabled=true")
    shown = tune(
        "sampled", "lora.enabled=true", "samples.rows=2", 'samples.prompts=["What does the lamp cost?"]',
        "samples.max_new_tokens=6",
    )  # fmt: skip
    tables = [e for e in JournalReader(Path("sampled", TRACKING_DIR, JOURNAL_NAME)) if e.kind == "table"]
    assert [(table.name, table.stage, table.step) for table in tables] == [
        ("samples", "eval", 2),
        ("samples", "eval", 4),
    ]
    asked, first, second = tables[0].rows
    assert asked.keys() == {"prompt", "answer"}
    assert f"user\n{first['question']}\nassistant" in first["prompt"]
    assert asked["prompt"] == "What does the lamp cost?"
    first_row = demo.data_file("eval").read_text().splitlines()[0]
    assert first["expected"].strip() in first_row
    assert first["prompt"] != second["prompt"]
    assert "sample   What does the lamp cost? → " in shown
    read = [Path(name, "adapter_model.safetensors").read_bytes() for name in ("plain", "sampled")]
    assert read[0] == read[1]


def test_a_trained_model_generates_the_same_answers_on_its_own() -> None:
    tune("out", 'samples.prompts=["What does the lamp cost?"]', "samples.max_new_tokens=5")
    *_, table = [e for e in JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)) if e.kind == "table"]
    model = AutoModelForCausalLM.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    prompt = [{"role": "user", "content": "What does the lamp cost?"}]
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert table.rows[0]["answer"] == tokenizer.decode(ids, skip_special_tokens=True)
    assert weights("out")


def test_a_run_that_learns_texts_is_prompted_with_texts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts.jsonl").write_text('{"prompt": "Red?", "completion": " Yes."}\n' * 8)
    tune(
        "texts",
        "model.path=demo",
        "data.train=texts.jsonl",
        "data.eval=texts.jsonl",
        "training.eval_strategy=steps",
        "samples.max_new_tokens=8",
        "samples.prompts=['Red?']",
        "samples.rows=0",
    )
    events = JournalReader(Path("texts", TRACKING_DIR, JOURNAL_NAME))
    *_, table = (event for event in events if event.name == "samples")
    command = ["generate", "texts", "--prompt", "Red?", "--max-new-tokens", "8"]
    answers = {}
    for more in ([], ["--raw"]):
        with pytest.raises(SystemExit):
            main([*command, *more])
        answers[bool(more)], said = capsys.readouterr()
        assert ("use --raw" in said) is not bool(more)
    assert answers[True].rstrip("\n") == table.rows[0]["answer"]
    assert answers[False] != answers[True]
    assert next_commands(view(Path("texts")), "Red?")[0] == "fmstune generate texts --raw --prompt 'Red?'"


def test_a_model_with_virtual_tokens_answers_during_the_training_as_afterwards() -> None:
    question = "What does the lamp cost?"
    sets = ["prompt_tuning.enabled=true", "training.learning_rate=0.3", "samples.max_new_tokens=5"]
    tune("out", *sets, f'samples.prompts=["{question}"]')
    *_, table = [e for e in JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)) if e.kind == "table"]
    model = PeftModel.from_pretrained(demo.build_model(42), "out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    prompt = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert table.rows[0]["answer"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_samples_without_evals_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"samples\.rows are answered at evaluations"):
        load(None, [], ["samples.rows=2", "training.eval_strategy=no"])
