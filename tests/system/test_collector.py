"""Python's garbage collector is paused while libraries are imported, only in fmstune's own processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fmstune.cli.main import main
from fmstune.config.schema.tables import ModelConfig
from fmstune.models.load import load_tokenizer
from fmstune.system import collector


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    yield
    collector._usual = None
    gc.set_threshold(*threshold)
    if not frozen:
        gc.unfreeze()


def test_it_runs_as_often_as_usual_once_a_tokenizer_is_loaded() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    collector.collect_rarely()
    assert gc.get_threshold() > usual
    load_tokenizer(ModelConfig(path="demo"))
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() > frozen


def test_the_collector_of_a_program_that_calls_fmstune_is_left_alone() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(SystemExit):
        main(["trackers", "list", "--json"])
    load_tokenizer(ModelConfig(path="demo"))
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() <= frozen
