"""An answer follows the tokens of its prompt as generation writes them, or the row is reported. Where they
share a token, the answer begins with that."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fmstune.config.schema.data import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.tokens.labels import NO_FIRST, REWORDED
from tests.support.chat_templates import tokenizer_with


def gpt2() -> Any:
    """A tokenizer with GPT-2's pattern and tokens of several blanks."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["a\n\n\n", "a\n\n", "a   ", "a  ", "Nine euros cost"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


GPT2 = gpt2()
TOKENIZERS = {"gpt2": GPT2, "qwen": tokenizer_with("qwen3"), "phi": tokenizer_with("phi3_5")}
BLANKS = st.text(st.sampled_from(" \n\t"), max_size=3)
WORD = st.sampled_from(["Nine", "9", "nine euros", ".", "…", "😀 yes"])
PROMPTS = st.tuples(st.sampled_from(["cost?", "Answer:", "#"]), BLANKS).map("".join)
ANSWERS = st.tuples(BLANKS, WORD).map("".join)
FEW = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(row: dict[str, Any], using: Any, folder: Path) -> tuple[list[int], str]:
    """The tokens before the answer of a row, and what is reported."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = prepare(DataConfig(train=str(path), cache=False), using, None, 0)
    ids, labels = data.train[0]["input_ids"], data.train[0]["labels"]
    begin = next(at for at, label in enumerate(labels) if label != -100)
    return ids[:begin], " ".join(each.what for each in data.summary.unused)


@FEW
@given(kind=st.sampled_from(sorted(TOKENIZERS)), prompt=PROMPTS, answer=ANSWERS)
def test_texts(kind: str, prompt: str, answer: str, tmp_path: Path) -> None:
    using = TOKENIZERS[kind]
    before, said = made({"prompt": prompt, "completion": answer}, using, tmp_path)
    if NO_FIRST not in said:
        shown = using.decode(before)  # without what the answer shares with it
        assert (before != using(shown)["input_ids"]) == (REWORDED in said)


@FEW
@given(blanks=BLANKS, answer=ANSWERS)
def test_chats(blanks: str, answer: str, tmp_path: Path) -> None:
    using = copy.copy(GPT2)
    using.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:BLANKS{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:BLANKS{% endif %}"
    ).replace("BLANKS", json.dumps(blanks)[1:-1].join(("{{ '", "' }}")))
    asked = {"role": "user", "content": "What does it cost?"}
    row = {"messages": [asked, {"role": "assistant", "content": answer}]}
    before, said = made(row, using, tmp_path)
    alone = using.apply_chat_template([asked], add_generation_prompt=True, return_dict=False)
    assert (before, said) == (alone, "")
