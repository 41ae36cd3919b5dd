"""The folder of a tokenizer's named chat templates belongs to the run like its other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fmstune import demo
from fmstune.run.artifacts import _files
from tests.support.tuned import tune

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with two chat templates."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.model_dir(), "model")
    demo.build_model(3).save_pretrained("model")
    template = Path("model/chat_template.jinja")
    named = [{"name": name, "template": template.read_text()} for name in ("default", "tool_use")]
    template.unlink()
    file = Path("model/tokenizer_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    return "model.path=model"


def test_it_is_uploaded_with_the_model_and_removed_with_the_run(model: str) -> None:
    tune("out", model, "data.train=demo")
    assert set(AutoTokenizer.from_pretrained("out").chat_template) == {"default", "tool_use"}
    for folder in (Path("out"), Path("out/checkpoint-6")):
        names = _files(folder)
        assert {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"} <= names.keys()
        assert all(path.is_file() for path in names.values())
    tune("out", overwrite=True)
    assert isinstance(AutoTokenizer.from_pretrained("out").chat_template, str)
