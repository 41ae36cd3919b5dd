"""Samples at evaluations: texts that the current model generates, as a table for the trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fmstune.config.schema.tables import SamplesConfig
from fmstune.console import RunConsole
from fmstune.data.tokens.table import IGNORED
from fmstune.models.generate import generate_texts
from fmstune.secrets.redaction import beginning
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import Table

_SHOWN = 60
_SENTINEL = "fmstune asks"
"""A question that is only searched for."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt: its last `question`, the whole `prompt` as people read it, the `text` as the model reads
    it, the answer in the data, and the named evaluation set that it is from."""

    question: str
    prompt: str
    text: str
    expected: str | None = None
    set_name: str = ""


class SampleCallback(TrainerCallback):
    """Generate answers at each evaluation, on world rank zero, without affecting the training."""

    def __init__(
        self,
        questions: Sequence[Question],
        most: int,
        tokenizer: PreTrainedTokenizerBase,
        tracker: Tracker,
        out: RunConsole,
    ) -> None:
        self._questions, self._most = questions, most
        self._tokenizer, self._tracker, self._out = tokenizer, tracker, out

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Generate, and track the table `samples` of the stage `eval`."""
        if not state.is_world_process_zero or not self._questions:
            return
        if args.fsdp or args.deepspeed:
            self._out.warn("no samples: the model is spread over several devices (fsdp, deepspeed)")
            self._questions = ()
            return
        texts = [question.text for question in self._questions]
        answers = generate_texts(model, self._tokenizer, texts, self._most)
        rows = [
            ({"set": question.set_name} if question.set_name else {})
            | ({} if question.question == question.prompt else {"question": question.question})
            | {"prompt": question.prompt, "answer": answer}
            | ({} if question.expected is None else {"expected": question.expected})
            for question, answer in zip(self._questions, answers, strict=True)
        ]
        self._tracker.track_table(Table("samples", tuple(rows), "eval", state.global_step, state.epoch))
        self._out.say("sample", f"{_short(self._questions[0].question)} → {_short(answers[0])}")


def questions(
    config: SamplesConfig, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Any], *, chats: bool
) -> list[Question]:
    """The configured prompts, and those of the first evaluation rows of the `sets` in turn, tokenised.
    `chats`: the run learns chats, so that the prompts are questions in them."""
    asked = [
        Question(prompt, prompt, _rendered(prompt, tokenizer) if chats else prompt)
        for prompt in config.prompts
    ]
    firsts = [
        (at, name, row)
        for name, rows in (sets.items() if config.rows else ())
        for at, row in enumerate(rows.select(range(min(config.rows, len(rows)))))
    ]
    for _, name, row in sorted(firsts, key=lambda first: first[0])[: config.rows]:
        prompt, answer = _parted(row)
        asked.append(
            Question(
                _last_question(tokenizer.decode(prompt), tokenizer),
                tokenizer.decode(prompt, skip_special_tokens=True),
                tokenizer.decode(prompt),
                None if answer is None else tokenizer.decode(answer, skip_special_tokens=True),
                name,
            )
        )
    return asked


def _parted(row: Any) -> tuple[list[int], list[int] | None]:
    """The tokens of a row's prompt and of its answer; for preferences the better answer, or none if the only
    answer is labelled as bad."""
    if "prompt_ids" in row:
        good = row.get("chosen_ids", row.get("completion_ids") if row.get("label") else None)
        return row["prompt_ids"], good
    ids, labels = row["input_ids"], row["labels"]
    begin = next((at for at, label in enumerate(labels) if label != IGNORED), len(ids))
    end = next((at for at in range(begin, len(ids)) if labels[at] == IGNORED), len(ids))
    return ids[:begin], ids[begin:end]


def _rendered(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        return prompt
    message = {"role": "user", "content": prompt}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def _last_question(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The last message of a rendered prompt: the text between the markup with which the chat template
    starts a question and the generation prompt. Any other text unchanged."""
    if not tokenizer.chat_template:
        return text.strip()
    before, _, after = _rendered(_SENTINEL, tokenizer).partition(_SENTINEL)
    # A system message in the template's own words may precede it: only the last mark counts.
    marks = [at for token in tokenizer.all_special_tokens if (at := before.rfind(token)) >= 0]
    # The last special token, or the last line: the template's own system message may precede it.
    begin = before[max(marks) if marks else before.rfind("\n", 0, -1) + 1 :]
    asked = text.removesuffix(after)
    at = asked.rfind(begin) if begin else -1
    return (asked[at + len(begin) :] if at >= 0 and asked != text else text).strip()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{beginning(line, _SHOWN - 1)}…"
