"""A machine on which torch cannot compile is reported before anything else is done, in one sentence."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fmstune.config.load.load import load
from fmstune.config.rules.installed import compiles_with_inductor
from fmstune.errors import ConfigError, Interrupted, RunError
from fmstune.system.compiler import compile_failure, require_compiler
from fmstune.training.callbacks.stopping import StopCallback
from fmstune.training.memory.outlook import explained

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the compiler that is broken here is g++")


@pytest.fixture
def _broken_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A C++ compiler that reports its version, and compiles nothing."""
    import torch._inductor.config

    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *--version*|*help*) exec g++ "$@";; esac\n'
        'echo "in file included from a.h:1" >&2\n'
        'echo "a.h:4:10: fatal error: omp.h: No such file or directory" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_broken_compiler")
def test_a_broken_compiler_is_reported_with_its_message_before_the_model_is_loaded() -> None:
    config = load(None, sets=["training.torch_compile=true", "model.path=org/none", "data.train=org/none"])
    with pytest.raises(ConfigError) as caught:
        require_compiler(config)
    assert str(caught.value) == (
        "--set: training.torch_compile: torch cannot compile on this machine: a.h:4:10: fatal error: omp.h: "
        "No such file or directory. Fix that, or leave it out."
    )


@pytest.mark.usefixtures("_broken_compiler")
def test_nothing_is_compiled_if_the_run_compiles_nothing() -> None:
    require_compiler(load(None))
    require_compiler(load(None, sets=["training.torch_compile_backend=eager"]))


@pytest.mark.usefixtures("_broken_compiler")
def test_a_model_that_cannot_be_compiled_is_reported_in_one_sentence() -> None:
    with pytest.raises(Exception, match="compile") as caught:
        torch.compile(lambda values: values.cos() + 1)(torch.ones(8))
    told = compile_failure(caught.value)
    assert told is not None
    assert told.endswith("omp.h: No such file or directory. Leave out training.torch_compile.")
    assert compile_failure(RuntimeError("another")) is None


def test_each_setting_that_enables_compilation_is_known() -> None:
    for name, value in (("", True), ("_mode", "max-autotune"), ("_backend", "inductor")):
        assert compiles_with_inductor({f"torch_compile{name}": value})
    assert not compiles_with_inductor({})
    assert not compiles_with_inductor({"torch_compile": True, "torch_compile_backend": "eager"})


@pytest.mark.usefixtures("_broken_compiler")
@pytest.mark.parametrize(
    ("signum", "raised"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Interrupted), (None, RunError)]
)
def test_a_compiler_that_a_signal_to_stop_has_ended_is_no_failure(
    signum: int | None, raised: type[Exception]
) -> None:
    """Ctrl-C reaches every process of a terminal."""
    stop = StopCallback()
    stop.signum = signum
    trainer: Any = SimpleNamespace(args=SimpleNamespace(torch_compile=True))
    with pytest.raises(raised), explained(trainer, stop):
        torch.compile(lambda values: values.cos() + 2)(torch.ones(8))
