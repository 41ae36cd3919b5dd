"""One run at a time in a process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import fmstune
from fmstune.delivery import recorder
from fmstune.errors import ConfigError, RunError
from tests.support.end_to_end import journal_points

DEMO: dict[str, Any] = {
    "model.path": "demo", "data.train": "demo", "training.max_steps": 3, "training.save_strategy": "no",
    "training.logging_steps": 1, "data.max_rows": 16,
}  # fmt: skip


def test_a_second_run_in_a_process_is_refused_and_the_first_keeps_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused: list[BaseException] = []

    class StartsAnother(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def second() -> None:
                try:
                    fmstune.train(settings=DEMO | {"training.output_dir": "second"}, quiet=True)
                except RunError as error:
                    refused.append(error)

            if state.global_step == 2:
                other = threading.Thread(target=second)
                other.start()
                other.join()

    fmstune.train(settings=DEMO | {"training.output_dir": "first"}, callbacks=[StartsAnother()], quiet=True)

    assert "another run is active in this process" in str(refused[0])
    assert not Path("second").exists()
    steps = [
        step for stage, name, step in journal_points(Path("first")) if (stage, name) == ("train", "loss")
    ]
    assert sorted(steps) == [1, 2, 3]
    assert recorder._active is None
    with pytest.raises(ConfigError):  # another run may start afterwards
        fmstune.train(settings={"training.nothing": 1})


def test_a_merged_model_is_written_to_a_symlinked_directory(tmp_path: Path) -> None:
    from fmstune.models.merge import _written_at_once

    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with _written_at_once(tmp_path / "link") as scratch:
        (scratch / "model").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model").read_text() == "x"


def test_the_remedy_for_aim_names_the_python_version_it_needs() -> None:
    from fmstune.trackers.aimstack_tracker import install_hint

    assert install_hint((3, 12)) == "pip install aim"
    assert "Python 3.12 and older" in install_hint((3, 13))
