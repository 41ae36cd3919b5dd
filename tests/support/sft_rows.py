"""Random rows in the formats of sft, with the tokens and weights that they are to be learnt with."""

from __future__ import annotations

import functools
import random
from typing import Any

from transformers import AutoTokenizer

from fmstune import demo
from tests.support.sft_oracle import Row

KINDS = ("tokens", "text", "prompt", "chat")
_WORDS = ("lamp", "costs", "nine", "euros", "red", "brass", "hello", "dear", "we", "have", "a", "table")


def some_rows(
    kind: str, count: int, chance: random.Random, *, weighted: bool = False, all_tokens: bool = False
) -> tuple[list[dict[str, Any]], list[Row]]:
    """Rows of a kind as they are written to a file, and as they are learnt. No two are the same; `weighted`
    rows and messages have various weights."""
    made = [_row(kind, number, chance, weighted, all_tokens) for number in chance.sample(range(1000), count)]
    return [row for row, _ in made], [learnt for _, learnt in made]


def _row(
    kind: str, number: int, chance: random.Random, weighted: bool, all_tokens: bool
) -> tuple[dict[str, Any], Row]:
    weight = chance.choice([0.25, 1.0, 3.0]) if weighted else 1.0
    of_row: dict[str, Any] = {"weight": weight} if weighted and chance.random() < 0.7 else {}
    weight = of_row.get("weight", 1.0)
    if kind == "tokens":
        ids = [number // 10 + 3, *(chance.randrange(3, 400) for _ in range(chance.randint(3, 14)))]
        labels = [each if chance.random() < 0.6 else -100 for each in ids[:-1]] + ids[-1:]
        weights = [0.0 if label == -100 else weight for label in labels]
        return {"input_ids": ids, "labels": labels, **of_row}, _learnt(ids, weights)
    if kind == "text":
        text = f"{number} {_text(chance, 9)}"
        ids = [*_ids(text), _end()]
        return {"text": text, **of_row}, _learnt(ids, [weight] * len(ids))
    if kind == "prompt":
        prompt, answer = f"{number} {_text(chance, 7)}", f" {_text(chance, 9)}"
        before, after = _ids(prompt), [*_ids(answer), _end()]
        weights = [weight if all_tokens else 0.0] * len(before) + [weight] * len(after)
        return {"prompt": prompt, "completion": answer, **of_row}, _learnt([*before, *after], weights)
    return _chat(number, chance, weighted, all_tokens, of_row)


def _chat(
    number: int, chance: random.Random, weighted: bool, all_tokens: bool, of_row: dict[str, Any]
) -> tuple[dict[str, Any], Row]:
    messages: list[dict[str, Any]] = []
    ids: list[int] = []
    weights: list[float] = []
    turns = chance.randint(1, 2)
    for turn in range(turns):
        for role in ("user", "assistant"):
            text = f"{number} {_text(chance, 5)}" if not messages else _text(chance, 6)
            message: dict[str, Any] = {"role": role, "content": text}
            own = of_row.get("weight", 1.0)
            if weighted and role == "assistant" and chance.random() < 0.5:
                # The last answer counts, so that the row is learnt.
                message["weight"] = chance.choice([0.5, 2.0] if turn == turns - 1 else [0, 0.5, 2.0])
                own *= message["weight"]
            around = of_row.get("weight", 1.0) if all_tokens else 0.0
            head, said, after = _ids(f"<|im_start|>{role}\n"), [*_ids(text), _end()], _ids("\n")
            ids += [*head, *said, *after]
            weights += [around] * len(head) + [own if role == "assistant" else around] * len(said)
            weights += [around] * len(after)
            messages.append(message)
    if not all_tokens:  # nothing is learnt after the end of the last answer
        del ids[-1], weights[-1]
    return {"messages": messages, **of_row}, _learnt(ids, weights)


def _learnt(ids: list[int], weights: list[float]) -> Row:
    return Row(tuple(ids), (0.0, *weights[1:]))


def _text(chance: random.Random, most: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(chance.randint(1, most)))


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_dir())


def _ids(text: str) -> list[int]:
    ids: list[int] = _tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def _end() -> int:
    end: int = _tokenizer().eos_token_id
    return end
