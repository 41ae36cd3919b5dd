"""The copy that a checkpoint is written from: it is saved as the original was, whatever happens to that."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory as Folder
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.training.trl_compat.saving import large_files_later

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=3),
        st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda shape: torch.ones(shape)),
        st.sampled_from([torch.bfloat16, torch.int64, torch.bool]).map(torch.ones(4).to),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


@settings(max_examples=30)
@given(value=VALUES, shared=st.sampled_from(["nothing", "a tensor", "a view", "a set"]))
def test_a_copy_is_saved_like_the_original_whatever_happens_to_that(value: Any, shared: str) -> None:
    large = torch.arange(1 << 18, dtype=torch.float32)
    more = {"nothing": [], "a tensor": [large], "a view": [large[5:9]], "a set": [{1, 2}]}[shared]
    state = {"value": value, "large": large, "more": more}
    with Folder() as folder:
        torch.save(state, f"{folder}/now.pt")
        with large_files_later() as later:
            torch.save(state, f"{folder}/then.pt")
        assert len(later) == (shared in ("nothing", "a tensor"))
        for tensor in tensors(state):
            tensor.zero_()
        for each in later:
            each.write()
        # Among the names in it, the archive's own is that of the file.
        saved = [torch.load(f"{folder}/{name}.pt", weights_only=False) for name in ("now", "then")]
        assert repr(saved[0]) == repr(saved[1])
        assert torch.equal(saved[0]["large"], saved[1]["large"])
        assert float(saved[1]["large"][-1]) == (1 << 18) - 1
