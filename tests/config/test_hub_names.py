"""Names that may be on the hub are those that the hub accepts."""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmstune.config.paths.hub import may_be_on_the_hub


def accepted(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@settings(max_examples=1000)
@given(st.text("aZ09-_./ é~\n", max_size=8))
@example("a/b.git")
@example("a" * 97)
@example(f"{'a' * 97}/b")
def test_they_are_those_that_the_hub_accepts(name: str) -> None:
    assert may_be_on_the_hub(name, one_word=True) == accepted(name)
    assert may_be_on_the_hub(name) == (accepted(name) and "/" in name)
