"""Shortcuts in a step change nothing: batches equal those of TRL, printed lines those of rich."""

from __future__ import annotations

import io

import accelerate.optimizer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.console import RunConsole
from fmstune.training.speed.flat_batches import flat_batch
from fmstune.training.trl_compat.loop import cached_lookups

TOKENS = st.integers(0, 50_000)


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, list[int]]]:
    """Rows of a table, all with labels or none."""
    labelled = draw(st.booleans())
    found = []
    for ids in draw(st.lists(st.lists(TOKENS, min_size=1, max_size=9), min_size=1, max_size=6)):
        labels = [each if draw(st.booleans()) else -100 for each in ids]
        found.append({"input_ids": ids, "labels": labels} if labelled else {"input_ids": ids})
    return found


@given(rows())
def test_a_padding_free_batch_equals_that_of_trl_including_dtypes(
    given_rows: list[dict[str, list[int]]],
) -> None:
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(given_rows)
    ours = flat_batch(given_rows)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value
            assert type(ours[name]) is type(value)


def test_labels_and_tokens_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="4 labels for 3 tokens"):
        flat_batch([{"input_ids": [1, 2], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}])


def test_whether_a_package_is_installed_is_cached_until_the_training_ends() -> None:
    before = accelerate.optimizer.is_lomo_available
    with cached_lookups():
        assert accelerate.optimizer.is_lomo_available() == before()
        assert accelerate.optimizer.is_lomo_available is not before
    assert accelerate.optimizer.is_lomo_available is before


@given(st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from(":\t\r\x07 "), max_size=40))
def test_a_line_in_a_file_equals_that_of_rich(text: str) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    RunConsole(Console(file=ours)).say("step", text)
    Console(file=theirs).print(f"{'step':<8} {text}", highlight=False, markup=False, soft_wrap=True)
    assert ours.getvalue() == theirs.getvalue()
