"""The installed command as users run it: real processes, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from fmstune.layout import TRACKING_DIR
from tests.support.aim_servers import begin_repository
from tests.support.commands import FAST, ROOT, fmstune, start
from tests.support.end_to_end import aim_points, journal_points
from tests.support.here import command
from tests.support.journals import events, last_step
from tests.support.ranks import start_ranks, wait_for_ranks
from tests.support.readers import read_aim
from tests.support.user_errors import GUARD
from tests.support.waiting import wait_for

UNSAVED = ["--set", "training.save_strategy=no"]


def test_the_first_command_of_the_readme_works_in_an_empty_directory(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guard = tmp_path_factory.mktemp("guard")
    (guard / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(guard), str(ROOT)])
    line = ("train", "--tracker", "aim", "--param", "team=nlp")
    done = fmstune(*line, cwd=tmp_path, fresh=True, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    imported = {line for line in done.stderr.splitlines() if line.startswith("IMPORTED")}
    assert "IMPORTED torch" in imported
    assert not imported & {"IMPORTED aim", "IMPORTED wandb"}, "only shippers import SDKs"
    assert done.stdout == f"{next((tmp_path / 'runs').iterdir()).relative_to(tmp_path)}\n"
    assert "no model and data given: tuning the demo model on demo data" in done.stderr
    assert "Warning" not in done.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    assert aim_points(tmp_path) == journal_points(directory)
    (run,) = read_aim(tmp_path)
    assert run.params["params"] == {"team": "nlp"}
    assert "\naim      " in done.stderr


def test_checking_wandb_without_a_key_fails_and_touches_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = command("trackers", "check", "wandb", cwd=tmp_path, HOME=str(home))
    assert done.returncode == 3
    assert "no credentials: there is no API key" in done.stdout
    assert "wandb login" in done.stdout
    assert list(home.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_check_has_a_time_limit_whatever_the_tracker_does(tmp_path: Path) -> None:
    name = "tests.sample_trackers:Collector"
    began = time.monotonic()
    done = command(
        "trackers", "check", name, "file", "--timeout", "0.5", "--json",
        "--set", f"trackers.'{name}'.fault=hang", "--set", f"trackers.'{name}'.at=check",
        cwd=tmp_path,
    )  # fmt: skip
    assert time.monotonic() - began < 300  # rather than forever
    assert done.returncode == 3
    states = {found["tracker"]: found["state"] for found in json.loads(done.stdout)}
    assert states == {name: "unreachable", "file": "ok"}


def test_without_a_name_the_configured_trackers_are_checked(tmp_path: Path) -> None:
    (tmp_path / "fmstune.toml").write_text('[tracking]\ntrackers = ["file"]\n[trackers.aim]\nrepo = "."\n')
    done = command("trackers", "check", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [found["tracker"] for found in json.loads(done.stdout)] == ["file", "aim"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_a_checkpoint_and_the_run_can_be_resumed(
    signum: int, code: int, tmp_path: Path
) -> None:
    out, arguments = tmp_path / "out", ["--tracker", "file", "--output-dir", "out", *FAST, *UNSAVED]
    trainer = start("train", *arguments, "--max-steps", "400", cwd=tmp_path)
    wait_for(lambda: last_step(out) >= 5)
    trainer.send_signal(signum)
    _, shown = trainer.communicate()
    assert trainer.returncode == code, shown
    assert shown.splitlines()[-1].startswith("error: interrupted by SIG")
    (checkpoint,) = out.glob("checkpoint-*")
    assert events(out)[-1].status == "interrupted"
    assert json.loads((out / TRACKING_DIR / "file.json").read_text())["closed"]
    if signum != signal.SIGTERM:
        return
    step = int(checkpoint.name.partition("-")[2])
    done = command("train", *arguments, "--max-steps", str(step + 1), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resume   from out/checkpoint-{step};" in done.stderr
    assert events(out)[-1].status == "finished"
    assert sorted(s for _, name, s in journal_points(out) if name == "loss") == list(range(1, step + 2))


def test_a_killed_trainer_loses_nothing_and_its_run_is_interrupted_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    out, arguments = tmp_path / "out", ["--tracker", "aim", "--output-dir", "out", *FAST]
    begin_repository(tmp_path)
    trainer = start(
        "train", *arguments, "--max-steps", "400", "--set", "training.save_steps=10", cwd=tmp_path
    )
    wait_for(lambda: last_step(out) >= 20)
    trainer.kill()
    trainer.communicate()
    wait_for(lambda: json.loads((out / TRACKING_DIR / "aim.json").read_text())["closed"])
    assert aim_points(tmp_path) == journal_points(out)
    (run,) = read_aim(tmp_path)
    assert run.params["status"] == "interrupted"
    done = fmstune("trackers", "sync", "out", "--json", cwd=tmp_path, light=True)
    assert done.returncode == 0
    (line,) = json.loads(done.stdout)
    assert (line["tracker"], line["state"]) == ("aim", "complete")
    steps = last_step(out) + 1
    done = command("train", *arguments, *UNSAVED, "--max-steps", str(steps), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"resume   from out/checkpoint-\d+0; steps logged before are replaced in aim", done.stderr
    )
    (run,) = read_aim(tmp_path)
    assert run.params["status"] == "finished"
    assert [step for step, _ in run.points["loss", "train"]] == list(range(1, steps + 1))
    assert aim_points(tmp_path) == journal_points(out)


def test_undelivered_events_are_delivered_by_sync_and_moved_by_sync_to(tmp_path: Path) -> None:
    begin_repository(tmp_path)
    options = ["--set", "trackers.aim.repo=aim://127.0.0.1:9", "--set", "tracking.close_timeout=1"]
    arguments = ["--tracker", "aim", "--output-dir", "out", "--max-steps", "3", *FAST, *options]
    done = command("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "→ fmstune trackers sync out" in done.stderr
    still = command("trackers", "sync", "out", cwd=tmp_path)
    assert still.returncode == 1
    assert "connection refused" in still.stdout
    done = command("trackers", "sync", "out", "--set", f"trackers.aim.repo={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert aim_points(tmp_path) == journal_points(tmp_path / "out")
    done = command(
        "trackers", "sync", "out", "--to", "file", "--set", "trackers.file.path=moved.csv", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "moved.csv").read_text().count(",loss,") == 3
    # A relative path is relative to where `sync` is called; what the run was tracked with stays in place.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    to_csv = ["--to", "file", "--set", "trackers.file.path=again.csv"]
    (tmp_path / "out" / TRACKING_DIR / "file.json").unlink()
    assert command("trackers", "sync", "../out", *to_csv, cwd=elsewhere).returncode == 0
    assert (elsewhere / "again.csv").read_text().count(",loss,") == 3
    assert command("trackers", "sync", "../out", cwd=elsewhere).returncode == 0
    assert [path.name for path in elsewhere.iterdir()] == ["again.csv"]


def test_a_redacted_secret_of_a_configuration_has_to_be_given_again(tmp_path: Path) -> None:
    text = '[trackers."tests.sample_trackers:Collector"]\napi_key = "[redacted]"\n'
    (tmp_path / "config.toml").write_text(f'[model]\npath = "demo"\n[data]\ntrain = "demo"\n{text}')
    done = fmstune("train", "config.toml", cwd=tmp_path, light=True)
    assert done.returncode == 2
    assert "api_key is [redacted] in place of a secret; set it again" in done.stderr


def test_syncing_a_directory_without_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = fmstune("trackers", "sync", "nothing", cwd=tmp_path, light=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing holds no run of fmstune")


def test_two_ranks_write_one_journal_and_one_run_per_tracker_even_when_interrupted(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    begin_repository(tmp_path)
    arguments = ["train", "--tracker", "aim", "--output-dir", "out", "--max-steps", "400", *FAST, *UNSAVED]
    ranks = start_ranks(2, *arguments, cwd=tmp_path)
    wait_for(lambda: last_step(out) >= 5)
    for rank in ranks:
        rank.terminate()
    done, other = wait_for_ranks(ranks)
    assert (done.returncode, other.returncode) == (143, 143), done.stderr
    (run,) = read_aim(tmp_path)
    steps = last_step(out)
    assert run.params["status"] == events(out)[-1].status == "interrupted"
    assert [step for step, _ in run.points["loss", "train"]] == list(range(1, steps + 1))
    assert aim_points(tmp_path) == journal_points(out)
    assert done.stderr.count("step     5/400") == 1
    assert (out / f"checkpoint-{steps}" / "model.safetensors").exists()
