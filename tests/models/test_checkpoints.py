"""A checkpoint that is truncated anywhere is detected before a run resumes from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.models.checkpoints import damage, newest_checkpoint, newest_weights, obstacle
from fmstune.run.directory import claim
from tests.support.checkpoints import write_checkpoint
from tests.support.journals import open_journal
from tests.support.unprivileged import unprivileged

RESUMED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
"""What the Trainer resumes from, by the file names that it uses."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint-4")


def test_a_complete_checkpoint_has_no_obstacle(whole: Path) -> None:
    assert obstacle(whole) is None


@settings(max_examples=60)
@given(name=st.sampled_from(RESUMED), part=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_truncated_anywhere_is_reported(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, part: float
) -> None:
    cut = tmp_path_factory.mktemp("cut") / "checkpoint-4"
    shutil.copytree(whole, cut)
    os.truncate(cut / name, int(part * (cut / name).stat().st_size))
    said = obstacle(cut)
    assert said is not None
    assert name in said or name == "trainer_state.json"


@pytest.mark.parametrize("name", RESUMED)
def test_a_missing_file_is_detected(whole: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "checkpoint-4"
    shutil.copytree(whole, copy)
    (copy / name).unlink()
    assert obstacle(copy) is not None


def test_a_missing_shard_is_reported(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint-4"
    shutil.copytree(whole, copy)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    assert damage(copy) == "its model-2.safetensors is damaged or incomplete"


def test_optimizer_directories_of_deepspeed_and_fsdp_are_recognised(whole: Path, tmp_path: Path) -> None:
    for kept in ("global_step4", "optimizer_0"):
        copy = tmp_path / kept / "checkpoint-4"
        shutil.copytree(whole, copy)
        (copy / "optimizer.pt").unlink()
        (copy / kept).mkdir()
        assert obstacle(copy) is None


def harm_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes(b"")


def harm_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "resumed", "weights"),
    [(harm_optimizer, 2, 4), (harm_weights, 2, 2), (shutil.rmtree, 2, 2)],
)
def test_the_newest_complete_checkpoint_is_used_and_damaged_ones_are_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], object],
    resumed: int,
    weights: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("out")
    (run / "tracking").mkdir(parents=True)
    open_journal(run).close()
    write_checkpoint(run / "checkpoint-2", 2)
    harm(write_checkpoint(run / "checkpoint-4"))
    assert newest_checkpoint(run) == run / f"checkpoint-{resumed}"
    assert newest_weights(run) == run / f"checkpoint-{weights}"
    config = load(None, [("training.output_dir", "out", "--output-dir")])
    for how in ("auto", "out"):
        found = claim(config, how, overwrite=False)
        assert found.step == resumed
        left = (run / "checkpoint-4").exists()
        assert [told.split(": its ")[0] for told in found.unusable] == (
            ["out/checkpoint-4 is skipped"] if left else []
        )


def test_a_checkpoint_with_only_weights_is_a_model_and_cannot_be_resumed(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-4")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    assert damage(checkpoint) is None
    with pytest.raises(ConfigError, match=r"no state of the optimizer.*use --model .*checkpoint-4"):
        claim(load(None), str(checkpoint), overwrite=False)
    with pytest.raises(ConfigError, match="no checkpoint to resume from: of checkpoint-4, it contains no"):
        claim(load(None), str(tmp_path), overwrite=False)


@pytest.mark.parametrize(
    ("closed", "said"), [("", "it cannot be read"), ("optimizer.pt", "its optimizer.pt cannot be read")]
)
def test_a_checkpoint_that_may_not_be_read_is_not_called_incomplete(
    tmp_path: Path, closed: str, said: str
) -> None:
    write_checkpoint(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / closed).chmod(0)
    code = """
from pathlib import Path
from fmstune.models.checkpoints import obstacle
print(obstacle(Path("checkpoint-4")))
"""
    done = unprivileged(code, tmp_path)
    assert done.stdout.startswith(f"{said}: Permission denied. `chmod u+rw"), done
