"""Defaults, the file, flags and `--set`: later ones win, and each value has its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.config.load.load import known_keys, load, load_trackers
from fmstune.config.load.toml_files import key_lines
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.schema.managed import TRAINING_DEFAULTS
from fmstune.config.schema.tables import DEMO_TRAINING, DataSource
from tests.support.loading import DEMO_FILE, load_text, refusal

OWN = '[model]\npath = "org/model"\n[data]\ntrain = "org/data"\n'
FLAGS: list[tuple[str, Any, str]] = [
    ("model.path", "org/model", "--model"),
    ("data.train", "org/data", "--data"),
]


class TestPrecedence:
    def test_set_overrides_flags_override_the_file_overrides_defaults(self, tmp_path: Path) -> None:
        text = OWN + "[training]\nseed = 1\nmax_steps = 1\nsave_total_limit = 1\nlogging_steps = 1\n"
        flags = [("training.seed", 2, "--seed"), ("training.max_steps", 2, "--max-steps")]
        config = load_text(tmp_path, text, ["training.seed=3"], flags=flags)
        assert (config.training["seed"], config.training["max_steps"]) == (3, 2)
        assert config.training["save_total_limit"] == 1
        assert config.training["disable_tqdm"] is TRAINING_DEFAULTS["disable_tqdm"]

    def test_the_later_of_two_sets_wins(self, tmp_path: Path) -> None:
        assert load(None, FLAGS, ["training.seed=1", "training.seed=2"], cwd=tmp_path).training["seed"] == 2

    def test_a_given_config_is_read_instead_of_the_one_in_the_current_directory(self, tmp_path: Path) -> None:
        (tmp_path / "fmstune.toml").write_text("nonsense")
        other = tmp_path / "other.toml"
        other.write_text(OWN)
        assert load(other, cwd=tmp_path).model.path == "org/model"

    def test_options_of_a_tracker_are_merged_key_by_key(self, tmp_path: Path) -> None:
        text = DEMO_FILE + '[trackers.aim]\nrepo = "a"\nexperiment = "b"\n'
        config = load_text(tmp_path, text, ["trackers.aim.repo=c"])
        assert config.trackers == {"aim": {"repo": "c", "experiment": "b"}}

    def test_a_tracker_named_by_its_path_is_quoted_in_set(self, tmp_path: Path) -> None:
        config = load(None, sets=['trackers."my.mod:Tracker".url=http://x'], cwd=tmp_path)
        assert config.trackers == {"my.mod:Tracker": {"url": "http://x"}}

    def test_a_settings_old_name_is_accepted_and_the_new_one_wins(self, tmp_path: Path) -> None:
        old = load_text(tmp_path, OWN + "[training]\ngradient_checkpointing = true\n").training
        both = load_text(
            tmp_path,
            OWN + "[training]\ngradient_checkpointing = true\nactivation_checkpointing = false\n",
        ).training
        assert old["activation_checkpointing"] is True
        assert both["activation_checkpointing"] is False
        assert "gradient_checkpointing" not in {**old, **both}


class TestOrigins:
    def test_each_value_has_its_source(self, tmp_path: Path) -> None:
        text = OWN + '[training]\nseed = 1\n[trackers.aim]\nrepo = "a"\n[params]\nteam = "x"\n'
        config = load_text(
            tmp_path,
            text,
            ["lora.r=4", 'trackers."m:T".url=x'],
            flags=[("data.eval", "org/e", "--eval-data")],
            params=["job=1"],
        )
        expected = {
            "training.seed": "fmstune.toml:6",
            "trackers.aim.repo": "fmstune.toml:8",
            "params.team": "fmstune.toml:10",
            "params.job": "--param",
            "lora.r": "--set",
            'trackers."m:T".url': "--set",
            "data.eval": "--eval-data",
            "lora.alpha": "default",
            "training.disable_tqdm": "default",
        }
        assert {key: config.origins[key] for key in expected} == expected

    def test_lines_are_counted_across_comments_multiline_strings_and_dotted_keys(self) -> None:
        text = '# a = 1\n[t]\nx = """\ny = 2\n"""\n"z" = 3\n[ "u" . v ]\nw.k = 1\n'
        assert key_lines(text) == {
            ("t",): 2,
            ("t", "x"): 3,
            ("t", "z"): 6,
            ("u", "v"): 7,
            ("u", "v", "w", "k"): 8,
        }


class TestValues:
    @pytest.mark.parametrize(
        ("assignment", "value"),
        [
            ("training.learning_rate=2e-5", 2e-5),
            ("training.packing=true", True),
            ('training.label_names=["a","b"]', ["a", "b"]),
            ("training.lr_scheduler_type=cosine", "cosine"),
            ('training.lr_scheduler_type="cosine"', "cosine"),
            ("training.lr_scheduler_kwargs={num_cycles = 1}", {"num_cycles": 1}),
            ("training.run_name=a=b", "a=b"),
            ("training.run_name=", ""),
            (" training . run_name = x ", "x"),
        ],
    )
    def test_set_parses_toml_values_and_otherwise_strings(
        self, tmp_path: Path, assignment: str, value: object
    ) -> None:
        name = assignment.partition("=")[0].replace(" ", "").partition(".")[2]
        assert load(None, sets=[assignment], cwd=tmp_path).training[name] == value

    def test_lists_become_tuples_where_the_schema_says_so(self, tmp_path: Path) -> None:
        config = load(None, sets=['lora.target_modules=["q","v"]', 'tracking.trackers=["aim"]'], cwd=tmp_path)
        assert config.lora.target_modules == ("q", "v")
        assert config.tracking.trackers == ("aim",)

    def test_a_byte_order_mark_is_accepted(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, "\ufeff" + DEMO_FILE).demo

    def test_relative_paths_stay_as_written(self, tmp_path: Path) -> None:
        (tmp_path / "d.jsonl").touch()
        config = load(None, sets=["model.path=demo", "data.train=d.jsonl"], cwd=tmp_path)
        assert (config.data.train, config.base_dir) == ((DataSource("d.jsonl"),), tmp_path)

    def test_every_known_key_is_recognised(self, tmp_path: Path) -> None:
        for key in known_keys():
            told = refusal(tmp_path, sets=[f"{key}=1979-05-27"])  # a date: no setting takes one
            assert "there is no setting" not in told


class TestDefaults:
    def test_lora_raises_the_default_learning_rate_but_not_an_explicit_one(self, tmp_path: Path) -> None:
        assert "learning_rate" not in load(None, FLAGS, cwd=tmp_path).training
        assert (
            load(None, FLAGS, ["lora.enabled=true"], cwd=tmp_path).training["learning_rate"]
            == METHODS[DEFAULT].lora_learning_rate
        )
        chosen = ["lora.enabled=true", "training.learning_rate=1e-3"]
        assert load(None, FLAGS, chosen, cwd=tmp_path).training["learning_rate"] == 1e-3

    @pytest.mark.parametrize("given", ["data.eval=org/eval", "data.eval_fraction=0.1"])
    def test_eval_data_is_used_each_epoch_by_default(self, tmp_path: Path, given: str) -> None:
        assert load(None, FLAGS, [given], cwd=tmp_path).training["eval_strategy"] == "epoch"
        chosen = load(None, FLAGS, [given, "training.eval_strategy=no"], cwd=tmp_path)
        assert chosen.training["eval_strategy"] == "no"

    def test_names_on_the_hub_are_left_to_the_hub(self, tmp_path: Path) -> None:
        config = load(None, FLAGS, cwd=tmp_path)
        assert (config.model.path, config.data.train) == ("org/model", (DataSource("org/data"),))
        assert config.output_dir is None


class TestDemo:
    def test_no_configuration_is_the_demo(self, tmp_path: Path) -> None:
        config = load(None, cwd=tmp_path)
        assert config.demo
        assert config.model.path == "demo"
        assert config.data.train == config.data.eval == (DataSource("demo"),)
        assert config.training == {**TRAINING_DEFAULTS, **DEMO_TRAINING}

    def test_demo_by_name_is_the_same_demo(self, tmp_path: Path) -> None:
        flags = [("model.path", "demo", "--model"), ("data.train", "demo", "--data")]
        named, unnamed = load(None, flags, cwd=tmp_path), load(None, cwd=tmp_path)
        assert (named.training, named.data, named.demo) == (unnamed.training, unnamed.data, True)
        assert unnamed.origins["model.path"] == "default"
        assert named.origins["model.path"] == "--model"

    def test_user_settings_override_the_demo(self, tmp_path: Path) -> None:
        config = load(None, sets=["training.max_steps=3", "lora.enabled=true"], cwd=tmp_path)
        assert config.training["max_steps"] == 3
        assert config.training["learning_rate"] == DEMO_TRAINING["learning_rate"]

    def test_requested_epochs_are_not_limited_by_the_steps_of_the_demo(self, tmp_path: Path) -> None:
        assert "max_steps" not in load(None, sets=["training.num_train_epochs=1"], cwd=tmp_path).training

    def test_a_demo_without_eval_data_runs_no_evals(self, tmp_path: Path) -> None:
        sets = ["model.path=demo", "data.train=demo", 'data.eval=""']
        assert "eval_strategy" not in load(None, sets=sets, cwd=tmp_path).training

    def test_the_demo_can_load_its_best_model(self, tmp_path: Path) -> None:
        assert load(None, sets=["training.load_best_model_at_end=true"], cwd=tmp_path).demo

    def test_the_demo_data_with_another_model_have_no_demo_settings(self, tmp_path: Path) -> None:
        flags = [("model.path", "org/model", "--model"), ("data.train", "demo", "--data")]
        config = load(None, flags, cwd=tmp_path)
        assert not config.demo
        assert "max_steps" not in config.training
        assert (config.data.eval, config.training["eval_strategy"]) == ((DataSource("demo"),), "epoch")


class TestTrackers:
    def test_trackers_are_read_without_a_model_and_data(self, tmp_path: Path) -> None:
        text = '[tracking]\ntrackers = ["aim"]\n[trackers.aim]\nrepo = "x"\n[trackers.wandb]\n'
        (tmp_path / "fmstune.toml").write_text(text)
        chosen, options, origins = load_trackers(None, ["trackers.aim.experiment=y"], tmp_path)
        assert chosen == ("aim",)
        assert options == {"aim": {"repo": "x", "experiment": "y"}, "wandb": {}}
        assert origins["trackers.aim.repo"] == "fmstune.toml:4"
        assert origins["trackers.aim.experiment"] == "--set"
        assert origins["trackers.wandb"] == "fmstune.toml:5"
