"""A run keeps its two promises: tracking does not affect the training, and no tracked point is lost."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import ConfigError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.run import dry_run, run
from fmstune.run.tracking import TrackerCheckFailed
from tests.sample_trackers import collected
from tests.support.end_to_end import (
    aim_params,
    aim_points,
    journal_params,
    journal_points,
    wandb_params,
    wandb_points,
)
from tests.support.journals import open_journal
from tests.support.tracked import SHORT, rewrite_as_interrupted, tune
from tests.support.tuned import weights

COLLECTOR = "tests.sample_trackers:Collector"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_tracked_and_untracked_runs_have_bitwise_equal_weights_and_every_point_arrives(
    tmp_path: Path,
) -> None:
    tune("plain")
    result, shown = tune(
        "tracked", "trackers.wandb.mode=offline", trackers=("aim", "wandb"), params=("team=nlp", "a.b=1e-4")
    )
    assert weights("plain") == weights("tracked")
    points = journal_points(tmp_path / "tracked")
    assert aim_points(tmp_path) == points
    assert wandb_points(tmp_path) == points
    params = journal_params(tmp_path / "tracked")
    assert aim_params(tmp_path) == params
    assert wandb_params(tmp_path) == params
    assert params["params"] == {"team": "nlp", "a": {"b": 1e-4}}
    assert {"config", "model", "data", "packages"} <= params.keys()
    assert [(line.tracker, line.state) for line in result.delivery] == [
        ("aim", "complete"),
        ("wandb", "complete"),
    ]
    total = result.delivery[0].total
    assert f"aim      {total}/{total}" in shown


def test_the_journal_has_everything_the_trainer_logs_with_times_and_the_status() -> None:
    result, shown = tune("out")
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    names = {(event.stage, name) for event in events if event.kind == "metrics" for name in event.values}
    assert names >= {
        ("train", "loss"), ("train", "learning_rate"), ("train", "grad_norm"), ("train", "tokens_per_second"),
        ("train", "model_load_time"), ("train", "data_preprocessing_time"), ("train", "train_runtime"),
        ("eval", "loss"), ("eval", "runtime"),
    }  # fmt: skip
    assert (events[-1].kind, events[-1].status) == ("status", "finished")
    losses = [e.values["loss"] for e in events if e.stage == "train" and "loss" in e.values]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 1.5
    assert [e.step for e in events if e.stage == "eval"] == [6, 12]
    assert result.metrics["eval/loss"] < 6
    assert not list(Path("out", TRACKING_DIR).glob("*.json"))
    assert "saved    out" in shown


def test_the_trained_model_loads_with_plain_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tune("out")
    model = AutoModelForCausalLM.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    prompt = [{"role": "user", "content": "What does the lamp cost?"}]
    inputs = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**inputs, max_new_tokens=5).shape[1] > inputs["input_ids"].shape[1]
    assert "fmstune" in Path("out/README.md").read_text()


def test_an_adapter_loads_onto_its_base_model() -> None:
    from peft import PeftModel

    from fmstune import demo

    _, shown = tune("out", "lora.enabled=true", "lora.r=4")
    assert "% trained" in shown
    assert not Path("out/model.safetensors").exists()
    assert Path("out/adapter_config.json").exists()
    loaded = PeftModel.from_pretrained(demo.build_model(), "out")
    assert any("lora" in name for name, _ in loaded.named_parameters())


def test_a_resumed_run_ends_with_bitwise_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    tune("whole")
    tune("parts", 'training.save_strategy="steps"')
    import shutil

    for file in Path("parts").glob("*.safetensors"):
        file.unlink()
    shutil.rmtree("parts/checkpoint-12")
    rewrite_as_interrupted(Path("parts"))
    _, shown = tune("parts", resume="auto")
    assert "resume   from parts/checkpoint-6" in shown
    assert "changed since" not in shown
    finished, shown = tune("parts", 'training.save_strategy="no"', "training.weight_decay=0.1", resume="auto")
    assert "is already finished" in shown
    changed = "training.save_strategy ('steps' → 'no'), training.weight_decay (not set → 0.1)"
    assert f"not applied: {changed}. To train further with it, use --resume parts" in shown
    assert finished.directory == Path("parts")
    assert weights("parts") == weights("whole")
    kinds = [event.kind for event in JournalReader(Path("parts", TRACKING_DIR, JOURNAL_NAME))]
    assert kinds.count("resume") == 1


@pytest.mark.parametrize("parent_is_there", [True, False])
def test_a_run_resumed_elsewhere_continues_in_the_tracker_runs_of_its_checkpoint(
    parent_is_there: bool, tmp_path: Path
) -> None:
    import shutil

    trackers, sets = ("aim", COLLECTOR), f"trackers.'{COLLECTOR}'.path='{tmp_path}/c'"
    tune("first", sets, trackers=trackers)
    checkpoint = "first/checkpoint-6"
    if not parent_is_there:
        # The demo reaches its checkpoint before Aim's SDK is imported; in a longer run the ids are in it by
        # then.
        for ledger in Path("first", TRACKING_DIR).glob("*.json"):
            shutil.copy(ledger, Path(checkpoint, TRACKING_DIR))
        shutil.move(checkpoint, "checkpoint-6")
        shutil.rmtree("first")
        checkpoint = "checkpoint-6"
    result, shown = tune("second", sets, trackers=trackers, resume=checkpoint)
    assert all(line.state == "complete" for line in result.delivery), shown
    opened = [call for call in collected(tmp_path / "c") if call["call"] == "open"]
    assert len(opened) == 2
    assert opened[0]["id"] == opened[1]["id"]
    seqs = [call["seq"] for call in collected(tmp_path / "c") if call["seq"] is not None]
    alone, shown = tune("third", trackers=("aim",), resume="second")
    assert [line.tracker for line in alone.delivery] == ["aim"], (
        shown
    )  # the tracker that was left out is not behind
    assert seqs == sorted(set(seqs))
    points = {key: value for key, value in aim_points(tmp_path).items() if key[1] == "loss"}
    assert sorted(step for stage, _, step in points if stage == "train") == [2, 4, 6, 8, 10, 12]
    from fmstune.delivery.sync import sync

    moved = {"file": {"path": str(tmp_path / "moved.jsonl")}}
    (line,) = sync(Path("second"), "file", moved, lambda _: "fmstune.trackers.file_tracker:FileTracker")
    assert (line.state, line.delivered) == ("complete", result.delivery[0].delivered)
    again = {key: value for key, value in journal_points(Path("second")).items() if key[1] == "loss"}
    assert {key: points[key] for key in again} == again


def test_a_tracker_that_cannot_be_used_is_an_error_before_anything_is_created(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fmstune.training.build.load_inputs", fail_if_called)
    with pytest.raises(TrackerCheckFailed, match="there is no API key") as error:
        tune("out", trackers=("wandb",))
    assert error.value.exit_code == 3
    with pytest.raises(TrackerCheckFailed, match=r"cannot be loaded.*ModuleNotFoundError"):
        tune("out", trackers=("no.such:Tracker",))
    assert not Path("out").exists()


def fail_if_called(*args: object, **kwargs: object) -> None:
    raise AssertionError("the model was loaded")


def test_an_outage_at_the_start_is_a_warning_and_the_run_continues() -> None:
    result, shown = tune(
        "out", "trackers.aim.repo='aim://127.0.0.1:9'", "tracking.close_timeout=1", trackers=("aim",)
    )
    assert "warning  aim: 127.0.0.1:9: connection refused." in shown
    (line,) = result.delivery
    assert (line.state, line.delivered) == ("behind", 0)
    assert line.remedy == "fmstune trackers sync out"
    assert "→ fmstune trackers sync out" in shown
    assert Path("out/model.safetensors").exists()


def test_with_strict_tracking_an_outage_at_the_start_is_an_error() -> None:
    with pytest.raises(TrackerCheckFailed, match="connection refused"):
        tune("out", "trackers.aim.repo='aim://127.0.0.1:9'", "tracking.strict=true", trackers=("aim",))


def test_a_failed_training_is_failed_in_every_tracker_with_a_traceback_in_the_error_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmstune.training.methods.sft import FineTuner

    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the device caught fire with hf_abcdefghijklmnopqrstuvABCDEFGHIJKL")

    monkeypatch.setattr(FineTuner, "training_step", explode)
    with pytest.raises(RuntimeError, match="caught fire"):
        tune("out", f"trackers.'{COLLECTOR}'.path='{tmp_path}/c'", trackers=(COLLECTOR,))
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    assert events[-1].status == "failed"
    assert events[-1].error == "RuntimeError: the device caught fire with [redacted]"
    assert collected(tmp_path / "c")[-1]["status"] == "failed"
    log = Path("out/error.log").read_text()
    assert "Traceback" in log
    assert "hf_abc" not in log


def test_a_full_disk_under_the_journal_is_reported_once_and_the_run_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fmstune.run.recording.JOURNAL_NAME", "/dev/full")
    _, shown = tune("out")
    assert (
        shown.count(
            "the journal cannot be written (No space left on device); events wait in memory: /dev/full"
        )
        == 1
    )
    assert "could not be written to the journal, and are lost" in shown
    assert Path("out/model.safetensors").exists()


def test_a_directory_with_a_run_is_not_overwritten_without_the_flag() -> None:
    tune("out")
    before = weights("out")
    with pytest.raises(ConfigError, match=r"out holds a finished run: .*--overwrite"):
        tune("out")
    (Path("out") / "notes.txt").write_text("mine")
    tune("out", "training.seed=7", overwrite=True)
    assert weights("out") != before
    assert Path("out/notes.txt").read_text() == "mine"
    Path("other").mkdir()
    (Path("other") / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a run of fmstune"):
        tune("other")


def test_rerunning_the_resolved_configuration_gives_the_same_weights() -> None:
    tune("first", "training.seed=3", params=("team=nlp",))
    screen = RunConsole(Console(file=io.StringIO()))
    again = load(Path("first/config.toml"), [("training.output_dir", "second", "--output-dir")])
    run(again, screen)
    assert weights("first") == weights("second")


@pytest.mark.parametrize(
    ("status", "resume", "said"),
    [
        ("finished", None, "holds a finished run"),
        ("failed", None, "holds a run that is failed"),
        (None, "nowhere", "there is no such checkpoint or run"),
        (None, "out", "it has no checkpoint to resume from"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    status: str | None, resume: str | None, said: str, tmp_path: Path
) -> None:
    Path("out/tracking").mkdir(parents=True)
    if status:
        journal = open_journal(Path("out"))
        journal.append("status", {"status": status})
        journal.close()
    before = sorted(tmp_path.rglob("*"))
    config = load(None, [], ["model.path=demo", "data.train=demo", "training.output_dir=out"])
    with pytest.raises(ConfigError, match=said):
        dry_run(config, RunConsole(Console(quiet=True)), resume=resume)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_checks_everything_and_leaves_nothing(tmp_path: Path) -> None:
    config = load(None, [("tracking.trackers", ("aim",), "--tracker")], SHORT)
    shown = io.StringIO()
    dry_run(config, RunConsole(Console(file=shown, width=200)))
    assert "ready for 12 steps" in shown.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_no_file_of_skipped_rows_as_it_leaves_none() -> None:
    Path("x.jsonl").write_text('{"text": "a word"}\n' * 8 + '{"text": [5]}\n' * 5)
    config = load(None, [], ["model.path=demo", "data.train=x.jsonl", "data.skip_bad_rows=true"])
    shown = io.StringIO()
    dry_run(config, RunConsole(Console(file=shown, width=200)))
    assert "2 more rows are left out\n" in shown.getvalue()


def test_no_planted_secret_is_in_any_file_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("planted-env-0123456789", "planted-option-0123456789", "hf_plantedparam0123456789")
    monkeypatch.setenv("MY_SERVICE_TOKEN", secrets[0])
    tune(
        "out",
        f"trackers.'{COLLECTOR}'.path='{tmp_path}/c'",
        f"trackers.'{COLLECTOR}'.api_key='{secrets[1]}'",
        trackers=(COLLECTOR, "aim"),
        params=(f"hub_token={secrets[2]}", f"note=I use {secrets[0]}", "db=postgres://me:planted-pw@host/x"),
    )
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in (*secrets, "planted-pw")), path


def test_the_last_step_is_logged_even_in_a_run_shorter_than_the_logging_interval(
    tmp_path: Path,
) -> None:
    _, shown = tune("out", "training.max_steps=3", "training.logging_steps=5", "training.eval_strategy=no")
    points = journal_points(tmp_path / "out")
    (loss,) = [value for (stage, name, _), value in points.items() if (stage, name) == ("train", "loss")]
    assert f"step     3/3  loss {loss:.4g}" in shown
    assert ("train", "loss", 3) in points
    _, shown = tune("silent", 'training.logging_strategy="no"', "training.eval_strategy=no")
    assert "step  " not in shown
