"""An invalid configuration is answered with what is wrong, where, and what to do."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.config.load.toml_files import key_lines
from fmstune.text import shown_path
from tests.support.loading import DEMO_FILE, refusal


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "[training]\n\nlerning_rate = 1",
            "fmstune.toml:7: there is no setting training.lerning_rate. Did you mean training.learning_rate?",
        ),
        (
            "[lora]\nlearning_rate = 1",
            "fmstune.toml:6: there is no setting lora.learning_rate. Did you mean training.learning_rate?",
        ),
        ("[training]\nzzz = 1", "fmstune.toml:6: there is no setting training.zzz."),
        (
            "[trainig]\nseed = 1",
            "fmstune.toml:5: there is no table or setting trainig. Did you mean [training]?",
        ),
        (
            "[dataset]\npath = 1",
            "fmstune.toml:5: there is no table or setting dataset. Did you mean [data]?",
        ),
        (
            "[training]\nlearning_rate = '2e-5'",
            "fmstune.toml:6: training.learning_rate = '2e-5' is a string; it takes a number. "
            "Write it without quotes.",
        ),
        (
            "[training]\nmax_steps = 3.0",
            "fmstune.toml:6: training.max_steps = 3.0 is a number; it takes an integer. Write 3.",
        ),
        (
            "[training]\npacking = 'True'",
            "fmstune.toml:6: training.packing = 'True' is a string; it takes true or false. Write true.",
        ),
        (
            "[training]\nlearning_rate = nan",
            "fmstune.toml:6: training.learning_rate = nan is not a finite number.",
        ),
        (
            "[training]\nlearning_rate = 0.0",
            "fmstune.toml:6: training.learning_rate = 0.0 is out of range; it must be more than 0.",
        ),
        (
            "[training]\nper_device_train_batch_size = -1",
            "fmstune.toml:6: training.per_device_train_batch_size = -1 is out of range; "
            "it must be at least 1.",
        ),
        (
            "[training]\nmax_length = 1",
            "fmstune.toml:6: training.max_length = 1 is out of range; it must be at least 2.",
        ),
        (
            "[training]\nsave_strategy = 'epochs'",
            "fmstune.toml:6: training.save_strategy = 'epochs' is not one of no, steps, epoch, best. "
            "Did you mean epoch?",
        ),
        (
            "[training]\npacking_strategy = 'bdf'",
            "fmstune.toml:6: training.packing_strategy = 'bdf' is not one of bfd, bfd_split, wrapped.",
        ),
        (
            "[training]\nreport_to = 'wandb'",
            "fmstune.toml:6: training.report_to is managed by fmstune: "
            "choose trackers with --tracker or [tracking] trackers.",
        ),
        (
            "[lora]\ndropout = 1.0",
            "fmstune.toml:6: lora.dropout = 1.0 is out of range; it must be at least 0 and below 1.",
        ),
        (
            "[model.x]\ny = 1",
            "fmstune.toml:5: there is no setting model.x.",
        ),
        (
            "[tracking]\ntrackers = 'aim'",
            "fmstune.toml:6: tracking.trackers = 'aim' is a string; it takes a list of strings. "
            'Write ["aim"].',
        ),
        (
            "[trackers]\naim = true",
            "fmstune.toml:6: trackers.aim is a table of options; write it as [trackers.aim]. "
            "Choose trackers with --tracker, or [tracking] trackers.",
        ),
        (
            "[training]\nmax_steps = 0",
            "fmstune.toml:6: training.max_steps = 0 is out of range; it must be more than 0, "
            "or -1 for whole epochs.",
        ),
        (
            "[training]\nsave_steps = 2.5",
            "fmstune.toml:6: training.save_steps = 2.5 is not a number of steps: "
            "use an integer, or a fraction of all steps below 1.",
        ),
        (
            "[training]\nfp16 = true\nbf16 = true",
            "fmstune.toml:6: set training.fp16 or training.bf16, not both.",
        ),
        (
            "[training]\ndataloader_prefetch_factor = 2",
            "fmstune.toml:6: training.dataloader_prefetch_factor needs workers: "
            "set training.dataloader_num_workers = 2.",
        ),
        (
            "[training]\nload_best_model_at_end = true\nsave_strategy = 'epoch'",
            "fmstune.toml:6: training.load_best_model_at_end needs a checkpoint for each evaluation, but "
            "training.eval_strategy = 'steps' and training.save_strategy = 'epoch': make them the same.",
        ),
        (
            "[training]\nload_best_model_at_end = true\nsave_steps = 30",
            "fmstune.toml:6: training.load_best_model_at_end needs checkpoints at evaluated steps: make "
            "training.save_steps = 30 a multiple of the steps between evaluations, 20.",
        ),
    ],
)
def test_an_invalid_line_of_the_file_is_reported_with_its_remedy(
    tmp_path: Path, table: str, message: str
) -> None:
    assert refusal(tmp_path, DEMO_FILE + table) == message


def test_workers_of_the_data_loader_are_refused_where_none_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(multiprocessing.current_process())["_config"], "daemon", True)
    assert refusal(tmp_path, DEMO_FILE + "[training]\ndataloader_num_workers = 2") == (
        "fmstune.toml:6: training.dataloader_num_workers: a worker of multiprocessing.Pool may start no "
        "processes; use concurrent.futures.ProcessPoolExecutor, or set training.dataloader_num_workers = 0."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = 1\n", "fmstune.toml:1: there is no table or setting lr. Did you mean training.learning_rate?"),
        ("lora = 3\n", "fmstune.toml:1: lora is a table; write it as [lora] with its settings below."),
        (
            "[model]\npath = demo\n",
            'fmstune.toml:2: invalid TOML: Invalid value. Did you mean "demo"?',
        ),
        (
            "[training]\npacking = True\n",
            "fmstune.toml:2: invalid TOML: Invalid value. Did you mean true?",
        ),
        (
            "model:\n  path: demo\n",
            "fmstune.toml:1: invalid TOML: Expected '=' after a key in a key/value pair. Write key = value.",
        ),
        (
            "[trackers.x]\napi_key = hunter2\n",
            "fmstune.toml:2: invalid TOML: Invalid value. Put a string in quotes.",
        ),
        ("a = 1\na = 2\n", "fmstune.toml:2: invalid TOML: Cannot overwrite a value."),
        (
            "# \u2028\n\nlora = 3\n",
            "fmstune.toml:3: lora is a table; write it as [lora] with its settings below.",
        ),
        ("a = " + "[" * 5000, "fmstune.toml: nested too deeply."),
    ],
)
def test_a_file_that_is_no_configuration_is_reported_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "training.lerning_rate=1",
            "--set: there is no setting training.lerning_rate. Did you mean training.learning_rate?",
        ),
        ("epochs=1", "--set: there is no setting epochs. Did you mean training.num_train_epochs?"),
        (
            "training=1",
            "--set: training is a table; set one of its settings, as in training.learning_rate=VALUE.",
        ),
        ("training.seed.x=1", "--set: there is no setting training.seed.x."),
        ("a", "--set 'a' is not of the form KEY=VALUE, such as training.learning_rate=2e-5."),
        ("=1", "--set '=1' is not of the form KEY=VALUE, such as training.learning_rate=2e-5."),
        ("a..b=1", "--set: 'a..b' is not a key; use one such as training.learning_rate."),
        (
            "training.run_name=7",
            "--set: training.run_name = 7 is an integer; it takes a string. Write 'training.run_name=\"7\"'.",
        ),
        (
            "training.hub_token=7",
            "--set: training.hub_token = [redacted] is an integer; it takes a string.",
        ),
        ("training.run_name=\udcff", "--set: 'training.run_name=\\udcff' is not UTF-8 text."),
    ],
)
def test_an_invalid_set_is_reported(tmp_path: Path, assignment: str, message: str) -> None:
    assert refusal(tmp_path, sets=[assignment]).startswith(message)


def test_an_invalid_flag_is_named_as_it_was_typed(tmp_path: Path) -> None:
    flags = [("training.learning_rate", -1.0, "--learning-rate")]
    assert refusal(tmp_path, flags=flags) == (
        "--learning-rate: training.learning_rate = -1.0 is out of range; it must be more than 0."
    )


def test_a_missing_config_suggests_the_closest_file(tmp_path: Path) -> None:
    (tmp_path / "tune.toml").write_text("")
    wrong = tmp_path / "tuen.toml"
    assert refusal(tmp_path, config_path=wrong) == (
        f"there is no file {shown_path(wrong)}. Did you mean {shown_path(tmp_path / 'tune.toml')}?"
    )


def test_a_config_in_a_missing_directory_reports_the_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path, config_path=tmp_path / "x" / "y.toml").endswith(
        f"Its directory {shown_path(tmp_path / 'x')} does not exist, either."
    )


def test_a_directory_as_config_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, config_path=tmp_path) == f"{shown_path(tmp_path)} is a directory; use a file."


def test_a_config_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes("[model]\npath = 'x'".encode("utf-16"))
    assert (
        refusal(tmp_path, config_path=path)
        == f"{shown_path(path)} is not UTF-8 text (byte 0); save it as UTF-8."
    )


def test_for_yaml_the_message_says_that_the_configuration_is_toml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: x")
    assert "fmstune reads TOML" in refusal(tmp_path, config_path=path)


def test_a_missing_model_and_missing_data_are_reported_together_with_their_flags(tmp_path: Path) -> None:
    assert refusal(tmp_path, "") == (
        "no model is given: use --model, or set `path` under [model] in fmstune.toml. "
        "no data is given: use --data, or set `train` under [data] in fmstune.toml. "
        "To try fmstune, use the built-in `demo`."
    )


@pytest.mark.parametrize(
    ("flag", "missing"), [("--model", "no data is given"), ("--data", "no model is given")]
)
def test_an_incomplete_configuration_is_refused(tmp_path: Path, flag: str, missing: str) -> None:
    key = {"--model": "model.path", "--data": "data.train"}[flag]
    assert refusal(tmp_path, flags=[(key, "org/name", flag)]).startswith(missing)


def test_eval_data_without_a_model_is_no_demo(tmp_path: Path) -> None:
    assert "no model is given" in refusal(tmp_path, flags=[("data.eval", "x.jsonl", "--eval-data")])


OWN = '[model]\npath = "org/model"\n[data]\ntrain = "org/data"\n'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("eval_strategy = 'steps'", "training.eval_strategy = 'steps' needs evaluation data"),
        ("load_best_model_at_end = true", "training.load_best_model_at_end = true needs evaluations"),
        ("eval_on_start = true", "training.eval_on_start = true needs evaluations"),
        ("save_strategy = 'best'", "training.save_strategy = 'best' needs evaluations"),
        ("lr_scheduler_type = 'greedy'", "training.lr_scheduler_type = 'greedy' needs evaluations"),
    ],
)
def test_settings_that_need_eval_data_ask_for_it(tmp_path: Path, table: str, message: str) -> None:
    told = refusal(tmp_path, f"{OWN}[training]\n{table}")
    assert told.startswith(f"fmstune.toml:6: {message}")
    assert "--eval-data" in told


def test_two_sources_of_eval_data_are_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, f'{OWN}eval = "org/other"\neval_fraction = 0.1')
    assert told.startswith("fmstune.toml:6: set data.eval or data.eval_fraction, not both")


def test_invalid_values_of_several_settings_are_reported_together(tmp_path: Path) -> None:
    assert refusal(tmp_path, sets=["training.seed=x", "lora.r=0"]) == (
        "--set: training.seed = 'x' is a string; it takes an integer. "
        "--set: lora.r = 0 is out of range; it must be at least 1."
    )


def test_problems_of_several_settings_are_reported_together(tmp_path: Path) -> None:
    told = refusal(tmp_path, OWN + "[training]\nmax_steps = 0\nfp16 = true\nbf16 = true")
    assert "max_steps" in told
    assert "fp16" in told


class TestPaths:
    """Missing files are reported before torch is imported."""

    def test_a_missing_data_file_suggests_the_closest_one(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").touch()
        text = '[model]\npath = "demo"\n[data]\ntrain = "trian.jsonl"'
        assert refusal(tmp_path, text) == (
            "fmstune.toml:4: data.train = 'trian.jsonl': there is no such file. Did you mean train.jsonl?"
        )

    def test_a_file_named_without_its_suffix_is_suggested(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").touch()
        flags = [("model.path", "demo", "--model"), ("data.train", "train", "--data")]
        assert refusal(tmp_path, flags=flags).endswith("Did you mean train.jsonl?")

    def test_a_path_of_three_parts_is_no_hub_name(self, tmp_path: Path) -> None:
        flags = [("model.path", "demo", "--model"), ("data.train", "our/data/x", "--data")]
        assert refusal(tmp_path, flags=flags).startswith("--data: data.train = 'our/data/x': there is no su")

    def test_a_folder_with_the_name_of_a_hub_owner_hides_no_hub_name(self, tmp_path: Path) -> None:
        (tmp_path / "org").mkdir()
        flags = [("model.path", "org/model", "--model"), ("data.train", "org/data", "--data")]
        assert load(None, flags, cwd=tmp_path).model.path == "org/model"

    def test_a_missing_model_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "tuned").mkdir()
        flags = [("model.path", "./tuend", "--model"), ("data.train", "org/data", "--data")]
        assert refusal(tmp_path, flags=flags) == (
            "--model: model.path = './tuend': there is no such directory. Did you mean tuned?"
        )

    def test_a_missing_chat_template_is_refused(self, tmp_path: Path) -> None:
        told = refusal(tmp_path, sets=["model.chat_template=chat.jinja"])
        assert told == "--set: model.chat_template = 'chat.jinja': there is no such file."

    @pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "a\0b.jsonl", "/" + "y" * 300 + "/z.csv"])
    def test_a_name_that_no_file_can_have_is_refused_as_well(self, tmp_path: Path, name: str) -> None:
        flags = [("model.path", "demo", "--model"), ("data.train", name, "--data")]
        assert "there is no such file" in refusal(tmp_path, flags=flags)


def test_a_config_that_is_a_broken_symlink_is_an_error_and_no_demo_run(tmp_path: Path) -> None:
    (tmp_path / "fmstune.toml").symlink_to("gone.toml")
    assert refusal(tmp_path) == f"{tmp_path}/fmstune.toml is a link to gone.toml, which does not exist."
    (tmp_path / "fmstune.toml").unlink()
    (tmp_path / "fmstune.toml").symlink_to("fmstune.toml")
    assert "fmstune.toml cannot be read: Too many levels of symbolic links" in refusal(tmp_path)


@pytest.mark.parametrize(
    "comment",
    ['# """', "# '''", 'a = "#" # """', "b = 'x' # it''' is", 'c = """one""" # """', "d = \"\\\"\" # '''"],
)
def test_quotes_in_a_comment_do_not_hide_later_lines(comment: str) -> None:
    assert key_lines(f"[params]\n{comment}\n[training]\nseed = 1\n")["training", "seed"] == 4


def test_keys_within_a_multiline_string_are_ignored() -> None:
    text = '[params]\na = """ # no comment\nseed = 1\n"""\n[training]\nseed = 2\n'
    assert key_lines(text) == {("params",): 1, ("params", "a"): 2, ("training",): 5, ("training", "seed"): 6}
