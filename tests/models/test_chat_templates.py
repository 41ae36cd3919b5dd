"""A chat template by name: each answer is trained with an end token at which the model will stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.config.schema.tables import CHAT_TEMPLATES, DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.chat_templates import NAMED, named_template
from fmstune.models.load import load_tokenizer
from tests.support.chat_templates import tokenizer_with
from tests.support.readme_templates import KINDS, TOOLS
from tests.support.rendered import adding, chat

END = "<|im_end|>"
EXPECTED = {
    "alpaca": ("Be brief.\n\n### Instruction:\na\n\n### Response:\n", f"b{END}d{END}"),
    "chatml": (f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\na{END}\n", f"b{END}d{END}"),
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\na<end_of_turn>\n<start_of_turn>model\n",
        f"b<end_of_turn>{END}d<end_of_turn>{END}",
    ),
    "llama2": ("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\na [/INST]", f" b {END} d {END}"),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user",
        f"b<|eot_id|>{END}d<|eot_id|>{END}",
    ),
    "mistral": ("[INST] Be brief.\n\na [/INST]", f" b{END} d{END}"),
    "plain": ("Be brief.\n\nUser: a\nAssistant:", f" b{END} d{END}"),
    "zephyr": (f"<|system|>\nBe brief.{END}\n<|user|>\na{END}\n<|assistant|>\n", f"b{END}d{END}"),
}


def test_the_names_are_those_that_the_settings_know() -> None:
    assert set(NAMED) == set(CHAT_TEMPLATES) == set(EXPECTED)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_each_answer_and_its_end_token_are_trained(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo", chat_template=name))
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": chat("a", "b", "c", "d", system="Be brief.")}))
    row = prepare(DataConfig(train=str(path)), tokenizer, None, 1).train[0]
    begins, trained = EXPECTED[name]
    assert tokenizer.decode(row["input_ids"]).startswith(begins)
    assert tokenizer.decode([token for token in row["labels"] if token != IGNORED]) == trained


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_prompt_at_inference_is_what_preceded_the_answer_in_training(name: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo", chat_template=name))
    whole = tokenizer.apply_chat_template(chat("a", "b"), tokenize=False)
    asked = tokenizer.apply_chat_template(chat("a"), tokenize=False, add_generation_prompt=True)
    assert whole.startswith(asked)


@pytest.mark.parametrize("name", sorted({*CHAT_TEMPLATES} - {"chatml"}))
def test_tools_are_refused_with_the_row_and_not_dropped(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo", chat_template=name))
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": chat("a", "b"), "tools": [{"name": "f"}]}))
    with pytest.raises(DataError, match=r"line 1: .* chat template does not support tools; set one"):
        prepare(DataConfig(train=str(path)), tokenizer, None, 1)


def test_rendered_text_begins_as_the_tokenizer_begins_every_text() -> None:
    using = adding("<s>", "</s>")
    using.chat_template = named_template("plain", using)
    rendered = using.apply_chat_template(chat("a", "b"), tokenize=False)
    assert rendered == "<s>User: a\nAssistant: b</s>\n"


def test_a_file_takes_precedence_over_a_template_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatml").write_text("of my own")
    assert load_tokenizer(ModelConfig(path="demo", chat_template="chatml")).chat_template == "of my own"


FAMILIES = {"gemma": ("gemma", None), "llama3": ("llama3", None), "chatml": ("qwen2_5", "S")}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_template_equals_its_familys_own_token_by_token(name: str) -> None:
    family, system = FAMILIES[name]
    using = tokenizer_with(family)
    conversation = chat("a", "b", "c", "d", system=system)
    own = using.apply_chat_template(conversation, return_dict=False)
    template = named_template(name, using)
    assert using.apply_chat_template(conversation, chat_template=template, return_dict=False) == own
    asked = {"tokenize": False, "add_generation_prompt": True}
    prompt = using.apply_chat_template(conversation[:-1], chat_template=template, **asked)
    assert prompt == using.apply_chat_template(conversation[:-1], **asked)


def test_chatml_renders_tools_and_calls_as_hermes_and_qwen_do() -> None:
    using = tokenizer_with("qwen2_5")
    conversation = [{"role": "system", "content": "S"}, *KINDS["calls of tools"]]
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "it"}}}
    conversation[2] = conversation[2] | {"tool_calls": [call, call]}
    own = using.apply_chat_template(conversation, tools=TOOLS, tokenize=False)
    template = named_template("chatml", using)
    assert using.apply_chat_template(conversation, tools=TOOLS, chat_template=template, tokenize=False) == own
