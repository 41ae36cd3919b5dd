"""No tracker's SDK is imported into the training process, unless user code imports it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmstune.training.sdks import SDKS, sdks_deferred
from tests.support.commands import FAST, ROOT, fmstune

FAULTS = ("import time; time.sleep(3600)", "raise SystemExit('good-bye')", "raise RuntimeError('broken')")

LOOKS = """
import json, sys
from transformers import TrainerCallback
from fmstune.config.methods.known import METHODS
from fmstune.training.methods.trained import trained_by
from fmstune.training.sdks import SDKS

def look(name, **more):
    found = [sdk for sdk in SDKS if any(module.partition(".")[0] == sdk for module in sys.modules)]
    with open(name, "w") as file:
        json.dump({"imported": found, **more}, file)

class Looks(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        for method in METHODS:
            trained_by(method)
        look("seen.json")

class Uses(Looks):
    def on_train_end(self, args, state, control, **kwargs):
        look("seen.json")
        import wandb
        from trl.trainer import base_trainer
        look("used.json", run=callable(wandb.init), trl=base_trainer.wandb.init is wandb.init)
"""


def train(cwd: Path, callback: str, *arguments: str, path: str = "", fresh: bool = False) -> dict[str, Any]:
    """Train two steps of the demo in a subprocess; returns what a callback has recorded at the end."""
    (cwd / "looks.py").write_text(LOOKS)
    sets = ("--set", f'run.callbacks=["looks:{callback}"]', "--set", "training.save_strategy=no", *FAST)
    modules = os.pathsep.join(filter(None, [path, str(ROOT)]))
    steps = ("--max-steps", "2", "--output-dir", "out")
    done = fmstune("train", *steps, *sets, *arguments, cwd=cwd, fresh=fresh, PYTHONPATH=modules)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads((cwd / "seen.json").read_text())
    return seen


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with SDKs that say in the file `imported` that they are imported, and then fail."""
    packages = tmp_path / "packages"
    for number, name in enumerate(SDKS):
        (packages / name).mkdir(parents=True)
        said = f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n"
        (packages / name / "__init__.py").write_text(said + FAULTS[number % len(FAULTS)])
        information = packages / f"{name}-99.0.dist-info"  # accelerate and transformers look for it
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    return packages


def test_packages_that_hang_raise_or_exit_at_import_are_never_imported(
    packages: Path, tmp_path: Path
) -> None:
    # `fresh`: a warm interpreter has imported everything within `sdks_deferred`.
    seen = train(tmp_path, "Looks", path=str(packages), fresh=True)

    assert seen["imported"] == []
    assert not (tmp_path / "imported").exists()


def test_other_commands_import_none_either(packages: Path, tmp_path: Path) -> None:
    path = os.pathsep.join((str(packages), str(ROOT)))
    train(tmp_path, "Looks", "--lora")
    for command in ("generate out --prompt Hi --max-new-tokens 1", "merge out merged"):
        done = fmstune(*command.split(), cwd=tmp_path, fresh=True, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()


def test_with_a_tracker_only_its_shipper_imports_the_sdk(tmp_path: Path) -> None:
    seen = train(tmp_path, "Uses", "--tracker", "wandb", "--set", "trackers.wandb.mode=offline")

    assert seen["imported"] == []
    assert json.loads((tmp_path / "used.json").read_text()) == {
        "imported": ["wandb"],
        "run": True,
        "trl": True,
    }


def missing() -> str:
    """An SDK that is not installed."""
    return next(each for each in reversed(SDKS) if importlib.util.find_spec(each) is None)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed SDK with a submodule, not yet imported."""
    name = missing()
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(
        "loaded = True\ndef run():\n    return 'real'\nclass Model:\n    pass\n"
    )
    (package / "deep.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_library_that_imports_an_sdk_gets_it_on_first_use(sdk: str) -> None:
    library: dict[str, Any] = {}
    code = (
        f"import {sdk}\nfrom {sdk} import run\nfrom {sdk}.deep import answer\nthere = hasattr({sdk}, 'run')"
    )
    with sdks_deferred():
        exec(code, library)
        assert importlib.util.find_spec(sdk) is not None, "it still counts as installed"
    assert library["there"]
    assert sdk not in sys.modules

    assert (library["run"](), library[sdk].run(), library[sdk].deep.answer) == ("real", "real", 42)
    assert sys.modules[sdk].loaded
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = library[sdk].nothing


def test_importing_an_sdk_outside_of_it_returns_the_real_module(sdk: str) -> None:
    with sdks_deferred():
        exec(f"import {sdk}")
    module = importlib.import_module(sdk)
    with sdks_deferred():
        assert importlib.import_module(sdk) is module, "one that is imported already stays"
    assert module.run() == "real"


def test_another_thread_always_gets_the_real_module(sdk: str) -> None:
    found: list[Any] = []
    with sdks_deferred():
        exec(f"import {sdk}")
        other = threading.Thread(target=lambda: found.append(importlib.import_module(sdk).run()))
        other.start()
        other.join()
    assert found == ["real"]


def test_a_package_that_is_not_installed_is_not_found() -> None:
    with sdks_deferred():
        assert importlib.util.find_spec(missing()) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(missing())
