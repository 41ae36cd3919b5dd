"""`fmstune data` shows what would be trained and what is wrong with it, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmstune.cli.main import main

QUESTION = "### Q: {question}\\n### A: {answer}"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fmstune(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["data", *arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def write(*rows: Any) -> str:
    Path("a.jsonl").write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return "a.jsonl"


def test_rows_are_shown_as_the_model_sees_them_with_what_is_trained_marked(fmstune: Any) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello — you"}]}
    code, out, err = fmstune(write(row, row), "--model", "demo", "--rows", "1")
    assert (code, err) == (0, "")
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello — you<|im_end|>⟧" in out
    assert "row 2" not in out
    assert "2 rows (messages)" in out
    assert not Path("runs").exists()


@pytest.mark.parametrize("method", ["orpo", "dpo"])
def test_a_method_that_also_learns_the_prompts_says_so(method: str, fmstune: Any) -> None:
    name = write({"prompt": "1+1=", "chosen": "2", "rejected": "3"})
    _, out, _ = fmstune(name, "--model", "demo", "--method", method)
    assert ("learnt   orpo also learns the prompts" in out) == (method == "orpo")


@pytest.mark.parametrize(
    ("method", "names"),
    [("dpo", ["chosen", "rejected"]), ("reward", ["chosen", "rejected"]), ("kto", ["a good answer"])],
)
def test_answers_are_shown_as_their_method_trains_on_them(
    method: str, names: list[str], fmstune: Any
) -> None:
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    labelled = {"prompt": "1+1=", "completion": "2", "label": True}
    name = write(labelled if method == "kto" else row)
    code, out, err = fmstune(name, "--model", "demo", "--method", method)
    assert (code, err) == (0, "")
    assert [line.split(" ·")[0] for line in out.splitlines() if line.startswith("row")] == [
        f"row 1, {each}" for each in names
    ]
    prompt = "⟦1+1=" if method == "reward" else "1+1=⟦"
    assert f"{prompt}2<|im_end|>⟧" in out
    assert "a.jsonl · 1 row (" in out


def test_lengths_duplicates_truncated_and_bad_rows_are_counted(fmstune: Any) -> None:
    rows = [{"question": f"{n}+1?", "answer": "one more " * n} for n in range(1, 9)]
    name = write(*rows, rows[0], {"question": "1?", "answer": ""}, "{")
    arguments = (name, "--model", "demo", "--template", QUESTION, "--set", "training.max_length=24")
    code, out, _ = fmstune(*arguments, "--skip-bad-rows", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["summary"]["rows"] == 9
    assert found["summary"]["skipped"] == 2
    assert found["summary"]["duplicates"] == 1
    assert found["summary"]["truncated"] > 0
    assert sum(each["rows"] for each in found["lengths"]) == 9
    assert max(each["longest"] for each in found["lengths"]) == 24
    assert 0 < found["padding_share"] < 0.5
    assert len(found["rows"]) == 3
    trained = [piece["text"] for piece in found["rows"][0]["pieces"] if piece["trained"]]
    assert trained == [" one more <|im_end|>"]
    assert ["line 11" in reason or "line 10" in reason for reason in found["bad_rows"]] == [True, True]
    _, out, _ = fmstune(*arguments, "--skip-bad-rows")
    assert "2 bad rows skipped" in out
    assert "skipped  a.jsonl line 11" in out


def test_a_bad_row_is_an_error_that_names_it(fmstune: Any) -> None:
    code, out, err = fmstune(write({"text": "fine"}, {"text": [3]}), "--model", "demo")
    assert (code, out) == (2, "")
    assert err.startswith("error: a.jsonl line 2: ")


def test_without_a_model_the_command_asks_for_one(fmstune: Any) -> None:
    code, _, err = fmstune(write({"text": "fine"}))
    assert code == 2
    assert "no model is given: use --model" in err


def test_the_configured_data_is_shown_without_an_argument(fmstune: Any) -> None:
    name = write({"text": "a text of its own"})
    Path("fmstune.toml").write_text(f'[model]\npath = "demo"\n[data]\ntrain = "{name}"\n')
    code, out, _ = fmstune()
    assert code == 0
    assert "a⟦ text of its own<|im_end|>⟧" in out  # nothing comes before the first token


def test_colour_marks_the_trained_text_on_a_terminal(fmstune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out, _ = fmstune(write({"prompt": "2+2? ", "completion": "4"}), "--model", "demo")
    assert "\x1b[32m" in out
    assert "⟦" not in out
