"""`fmstune env` prints what a bug report needs, quickly and without secrets."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fmstune.cli.main import main
from fmstune.resources import gpus
from fmstune.trackers.registry import list_trackers
from tests.support.fake_nvml import FakeNvml


def env(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["env", *arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_it_imports_no_compute_library(tmp_path: Path) -> None:
    code = (
        "import sys; from fmstune.cli.main import main\n"
        "try: main(['env', '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'numpy', 'aim', 'wandb', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_json_output_matches_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    found = json.loads(env(capsys, "--json"))
    for name in ("fmstune", "torch", "transformers", "tokenizers"):
        assert found["packages"][name] == importlib.metadata.version(name)
    assert found["torch"] == {"build": f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu"}
    assert found["trackers"] == [dataclasses.asdict(entry) for entry in list_trackers()]
    assert {str(tmp_path), str(tmp_path / "hub")} <= set(found["disk"])
    assert found["environment"]["NCCL_DEBUG"] == "INFO"
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_secrets_in_the_environment_are_hidden(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:Tr0ub4dor3@hub.example")
    monkeypatch.setenv("AIM_ACCESS", "hf_" + "abcdefgh" * 4 + "ij")  # a token in an innocuous variable
    shown = env(capsys, *arguments)
    assert "[redacted]" in shown
    assert "hub.example" in shown
    for secret in ("0123456789abcdef", "Tr0ub4dor3", "abcdefghabcdefgh"):
        assert secret not in shown


def test_with_torch_it_reports_the_devices_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(env(capsys, "--torch", "--json"))["torch"]
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert shown["device"] == (expected.type if expected else "cpu")


def test_gpus_are_listed_and_one_that_does_not_respond_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    nvml: Any = FakeNvml(gpus=2)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert env(capsys).count("gpu      NVIDIA H100 80GB HBM3 · 85,899 MB · driver 580.65\n") == 2
    broken: Any = SimpleNamespace(nvmlInit=lambda: (_ for _ in ()).throw(RuntimeError("Driver Not Loaded")))
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert "gpu      RuntimeError: Driver Not Loaded\n" in env(capsys)
