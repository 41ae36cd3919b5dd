"""The fields read from TRL's source equal those of its class."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest

from fmstune import transformers_compat
from fmstune.config.check.typed import check_value
from fmstune.config.methods.known import METHODS
from fmstune.config.schema import training as module
from fmstune.config.schema.managed import OWNED_TRAINING, RENAMED_TRAINING, TRAINING_BOUNDS, TRAINING_DEFAULTS
from fmstune.config.schema.tables import DEMO_TRAINING
from fmstune.config.schema.training import training_fields
from fmstune.errors import ConfigError


@pytest.fixture(scope="module")
def real() -> dict[str, dataclasses.Field[Any]]:
    from trl import SFTConfig

    return {f.name: f for f in dataclasses.fields(SFTConfig) if f.init}


def test_every_field_of_sft_config_is_found_and_no_other(real: dict[str, Any]) -> None:
    assert set(training_fields()) == set(real)


def test_every_type_equals_that_of_sft_config(real: dict[str, Any]) -> None:
    import transformers.training_args
    import trl.trainer.sft_config

    names = {**vars(typing), **vars(transformers.training_args), **vars(trl.trainer.sft_config)}
    read = {name: eval(field.annotation, names) for name, field in training_fields().items()}
    declared = {
        name: eval(field.type, names) if isinstance(field.type, str) else field.type
        for name, field in real.items()
    }
    declared["fsdp"] = bool | str | None  # as its help says; the annotation is for the command line
    assert read == declared


def test_every_literal_default_equals_that_of_sft_config(real: dict[str, Any]) -> None:
    different = {
        name
        for name, field in training_fields().items()
        if field.default != real[name].default and real[name].default is not dataclasses.MISSING
    }
    assert different <= {"optim"}  # an expression that depends on the version of torch


def test_every_default_is_valid_for_its_own_type() -> None:
    for name, field in training_fields().items():
        if field.default is not None:
            check_value(field.default, field.annotation, where="", key=name, choices=field.choices)


def test_enumerations_are_read_with_all_their_values() -> None:
    from transformers import SchedulerType
    from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
    from transformers.training_args import OptimizerNames

    fields = training_fields()
    for name, enum in (
        ("lr_scheduler_type", SchedulerType),
        ("eval_strategy", IntervalStrategy),
        ("save_strategy", SaveStrategy),
        ("hub_strategy", HubStrategy),
        ("optim", OptimizerNames),
    ):
        assert set(fields[name].choices or ()) == {member.value for member in enum}


def test_help_exists_and_has_no_argparse_escapes() -> None:
    texts = [field.help for field in training_fields().values()]
    assert all(texts)
    assert not any("%%" in text for text in texts)


def test_our_tables_name_existing_fields() -> None:
    for table in (TRAINING_DEFAULTS, DEMO_TRAINING, RENAMED_TRAINING):
        assert all(set(table) <= set(training_fields(method)) for method in METHODS)
    assert set(TRAINING_BOUNDS) <= {name for method in METHODS for name in training_fields(method)}
    assert set(OWNED_TRAINING) - {"local_rank"} <= {
        name for each in METHODS for name in training_fields(each)
    }


def test_they_are_read_in_a_fraction_of_the_import_time() -> None:
    training_fields.cache_clear()
    begin = time.process_time()
    training_fields()
    assert time.process_time() - begin < 1.5  # 0.05 s on a core of 2025, where the import takes 5 s


def test_a_typo_is_reported_without_torch_and_within_half_a_second() -> None:
    code = (
        "import sys, time\n"
        "from fmstune.config.load.load import load\n"
        "from fmstune.errors import ConfigError\n"
        "try: load(None, sets=['training.lerning_rate=1'])\n"
        "except ConfigError as error: print(error)\n"
        "heavy = {'torch', 'transformers', 'trl', 'typer', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, verdict = done.stdout.splitlines()
    assert "Did you mean training.learning_rate?" in told
    assert verdict == "[]"


def test_the_configuration_imports_only_leaves_and_toml() -> None:
    folder = Path(module.__file__).parents[1]
    leaves = (
        "fmstune.config",
        "fmstune.errors",
        "fmstune.text",
        "fmstune.access",
        "fmstune.layout",
        "fmstune.secrets",
    )
    leaves += ("fmstune.transformers_compat",)  # it imports the libraries where it uses them
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.partition(".")[0]
                allowed = top in sys.stdlib_module_names or top in ("tomli", "tomli_w", "yaml")
                assert allowed or name.startswith(leaves), f"{file.name} imports {name}"


def test_a_class_split_at_the_wrong_line_is_read_from_its_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'class A:\n    """\n    def f(): an example.\n    """\n\n    x: int = 1\n'
    monkeypatch.setattr(transformers_compat, "library_source", lambda *_: source)
    assert [type(node).__name__ for node in module._class_body("p", "f", "A")] == ["Expr", "AnnAssign"]


@pytest.mark.parametrize(
    ("package", "file", "name", "message"),
    [
        ("no_such_package", "x.py", "X", "the package no_such_package is not installed: "),
        ("trl", "no_such_file.py", "X", "the installed trl has no no_such_file.py: "),
        ("trl", "trainer/sft_config.py", "NoSuchClass", "the installed trl has no NoSuchClass: "),
    ],
)
def test_an_incompatible_installation_is_reported_with_a_remedy(
    package: str, file: str, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match="pip install") as caught:
        module._class_body(package, file, name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("settings", [TRAINING_DEFAULTS, TRAINING_DEFAULTS | DEMO_TRAINING])
def test_values_that_fmstune_sets_are_accepted(settings: dict[str, Any], tmp_path: Path) -> None:
    from trl import SFTConfig

    made = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **settings)
    for name, value in settings.items():
        assert getattr(made, name) == value
        found = training_fields()[name]
        check_value(value, found.annotation, where="", key=name, choices=found.choices)


def test_names_that_fmstune_controls_or_renames_are_fields() -> None:
    # local_rank has been removed from some versions; refusing it does no harm.
    assert set(OWNED_TRAINING) - {"local_rank"} <= {
        name for each in METHODS for name in training_fields(each)
    }
    assert set(RENAMED_TRAINING.values()) <= set(training_fields())
