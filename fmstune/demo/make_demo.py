"""Create the demo's files, reproducibly: `python -m fmstune.demo.make_demo [FOLDER]`.

A tiny model learns the task within seconds: a shop assistant answers in fixed sentences about prices, colours
and opening hours, and adds small numbers.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 7
TRAIN_ROWS, EVAL_ROWS = 400, 60
VOCABULARY = 1024

Message = dict[str, str]

_THINGS = [
    "apple",
    "pear",
    "lamp",
    "chair",
    "table",
    "book",
    "pencil",
    "carpet",
    "mirror",
    "kettle",
    "basket",
    "candle",
    "blanket",
    "clock",
]
_COLOURS = ["red", "blue", "green", "yellow", "white", "black", "orange", "brown"]
_TOWNS = ["Aalen", "Bergen", "Cadiz", "Dover", "Essen", "Faro", "Graz", "Hull", "Izmir", "Jena"]
_SYSTEM = "You are the assistant of a small shop. Answer in one sentence."

_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def rows() -> list[list[Message]]:
    """All conversations, without duplicates, in random order."""
    chance = random.Random(SEED)
    found: dict[str, list[Message]] = {}
    while len(found) < TRAIN_ROWS + EVAL_ROWS:
        messages = [message for _ in range(chance.choice((1, 1, 1, 2))) for message in _exchange(chance)]
        if chance.random() < 0.25:
            messages.insert(0, {"role": "system", "content": _SYSTEM})
        found[json.dumps(messages)] = messages
    return list(found.values())


def _exchange(chance: random.Random) -> Iterator[Message]:
    question, answer = chance.choice((_price, _colour, _hours, _sum))(chance)
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": answer}


def _price(chance: random.Random) -> tuple[str, str]:
    thing = chance.choice(_THINGS)
    price = 3 + 2 * _THINGS.index(thing)
    ask = chance.choice(("How much is the {}?", "What does the {} cost?", "What is the price of the {}?"))
    return ask.format(thing), f"The {thing} costs {price} euros."


def _colour(chance: random.Random) -> tuple[str, str]:
    thing, colour = chance.choice(_THINGS), chance.choice(_COLOURS)
    have = (_THINGS.index(thing) + _COLOURS.index(colour)) % 2 == 0
    answer = f"Yes, we have a {colour} {thing}." if have else f"Sorry, we have no {colour} {thing}."
    return f"Do you have a {colour} {thing}?", answer


def _hours(chance: random.Random) -> tuple[str, str]:
    town = chance.choice(_TOWNS)
    hour = 8 + _TOWNS.index(town) % 4
    return f"When does the shop in {town} open?", f"The shop in {town} opens at {hour} in the morning."


def _sum(chance: random.Random) -> tuple[str, str]:
    first, second = chance.randrange(10), chance.randrange(10)
    return f"What is {first} plus {second}?", f"{first} plus {second} is {first + second}."


def make(folder: Path) -> None:
    """Write the demo's data, tokenizer and configuration into `folder`."""
    conversations = rows()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", conversations[:TRAIN_ROWS]), ("eval", conversations[TRAIN_ROWS:])):
        lines = [json.dumps({"messages": messages}) + "\n" for messages in part]
        (data / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    _make_model(folder / "model", conversations[:TRAIN_ROWS])


def _make_model(folder: Path, conversations: list[list[Message]]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{m['role']}\n{m['content']}\n" for messages in conversations for m in messages]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(fast),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.05,
    ).save_pretrained(folder)
    GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id).save_pretrained(folder)
    # The version of the library that wrote it does not belong to the model.
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        del config["transformers_version"]
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
