"""A merge that is killed or finds no room leaves no half of a model, and nothing that takes space forever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fmstune import demo
from fmstune.errors import ConfigError, ModelError, RunError
from fmstune.models.locate import locate
from fmstune.models.merge import merge
from tests.support.file_systems import mounted

_KILLED = """
import os, pathlib, sys
from fmstune.models.locate import locate
from fmstune.models.merge import merge

renamed = pathlib.Path.rename
kills = int(sys.argv[1])

def rename(self, target):
    global kills
    kills -= 1
    if kills == 0:
        os.kill(os.getpid(), 9)
    return renamed(self, target)

pathlib.Path.rename = rename
merge(locate("adapter"), pathlib.Path("out/merged"), dtype="auto", base=None, trust_remote_code=False)
"""


@pytest.fixture(autouse=True)
def _adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.model_dir(), "base")
    demo.build_model(3).save_pretrained("base")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(task_type="CAUSAL_LM"))
    made.save_pretrained("adapter")


def merged(out: Path) -> None:
    merge(locate("adapter"), out, dtype="auto", base=None, trust_remote_code=False)


def killed(at: int) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(at)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_what_a_killed_merge_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed(1)
    assert [path.name.startswith(".merged-") for path in Path("out").iterdir()] == [True]
    merged(Path("out/merged"))
    assert [path.name for path in Path("out").iterdir()] == ["merged"]


def test_into_an_existing_directory_too_and_it_never_looks_like_a_model_by_halves(tmp_path: Path) -> None:
    Path("out/merged").mkdir(parents=True)
    killed(1)
    assert [path.name.startswith(".merged-") for path in Path("out/merged").iterdir()] == [True]
    merged(Path("out/merged"))
    files = sorted(path.name for path in Path("out/merged").iterdir())
    assert "config.json" in files
    shutil.rmtree("out")
    Path("out/merged").mkdir(parents=True)
    killed(len(files))
    moved = sorted(path.name for path in Path("out/merged").iterdir() if path.is_file())
    assert moved == [name for name in files if name != "config.json"]
    with pytest.raises(ModelError, match="holds no model"):
        locate("out/merged")
    with pytest.raises(ConfigError, match="is not empty"):
        merged(Path("out/merged"))


def test_another_merge_that_still_runs_keeps_its_files(tmp_path: Path) -> None:
    from fmstune.system.locks import acquire

    other = Path(".merged-0123")
    other.mkdir()
    lock = acquire(other / ".merging")
    assert lock is not None
    code = (
        "from pathlib import Path; from fmstune.models.merge import merge; from fmstune.models.locate import "
        "locate; merge(locate('adapter'), Path('merged'), dtype='auto', base=None, trust_remote_code=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert other.exists()
    lock.release()


def test_the_directory_has_the_permissions_of_the_umask() -> None:
    before = os.umask(0o027)
    try:
        merged(Path("merged"))
    finally:
        os.umask(before)
    assert Path("merged").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in Path("merged").iterdir()} == {0o640}


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_is_said_to_be_full_and_left_empty(tmp_path: Path, *, there: bool) -> None:
    with mounted(tmp_path / "disk", "size=1M") as disk:
        if there:
            (disk / "merged").mkdir()
        with pytest.raises(RunError, match=r"merged cannot be written: the disk is full .*; free some space"):
            merged(disk / "merged")
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        assert (disk / "merged").exists() == there
