"""No secret in any input of a run is in any byte of its output."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.commands import ROOT
from tests.support.here import command
from tests.support.leaks import ENVIRONMENT, PARAMS_FILE, PLANTED, configuration
from tests.support.readers import read_aim

LEAKY = "tests.support.leaks:LeakyTracker"


@dataclass(frozen=True)
class Place:
    """A directory in which commands run with secrets in their environment and home."""

    folder: Path
    environment: Mapping[str, str]
    """Variables in addition to the test's own."""

    def fmstune(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user types it here."""
        return command(*arguments, cwd=self.folder, **self.environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("leaks")
    for name in ("home", "scratch", "work"):
        (folder / name).mkdir()
    (folder / "home" / ".netrc").write_text(f"machine h login me password {PLANTED['netrc']}\n")
    (folder / "work" / "fmstune.toml").write_text(configuration(folder / "collected"))
    (folder / "params.json").write_text(json.dumps(PARAMS_FILE))
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "scratch"), "PYTHONPATH": str(ROOT)}
    return Place(folder / "work", {**ENVIRONMENT, **own, "WANDB_MODE": "offline"})


def leaks(said: bytes) -> list[str]:
    """The secrets in these bytes, verbatim or as escaped by JSON, Python and URLs."""
    found = []
    for name, secret in PLANTED.items():
        forms = [secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), quote(secret)]
        if any(line.encode() in said for form in forms for line in form.splitlines()):
            found.append(name)
    return found


def written(place: Place) -> Iterator[tuple[str, bytes]]:
    """All files that commands wrote, without the inputs."""
    for path in place.folder.parent.rglob("*"):
        inputs = path.name in ("fmstune.toml", "params.json", ".netrc")
        if path.is_file() and not inputs:
            yield str(path.relative_to(place.folder.parent)), path.read_bytes()


@pytest.fixture(scope="module")
def run(place: Place) -> subprocess.CompletedProcess[str]:
    """A run with three trackers and secrets everywhere, which ends with an error."""
    arguments = [f"--tracker={name}" for name in (LEAKY, "file", "aim", "wandb")]
    arguments += [f"--set=trackers.'{LEAKY}'.db_pass={PLANTED['set']}", "--set=run.termination_log=cause"]
    arguments += [f"--param=deploy_key={PLANTED['param']}", f"--param=note=I use {PLANTED['param_note']}"]
    arguments += [
        "--params-file=../params.json",
        "--set=training.logging_steps=1",
        "--set=training.max_steps=4",
    ]
    arguments += ["--set=training.eval_steps=2", "--set=training.save_steps=2"]
    return place.fmstune("train", "--model=demo", "--data=demo", "--output-dir=out", *arguments)


def test_no_output_of_a_run_contains_a_secret(place: Place, run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 1, run.stderr
    files = dict(written(place))
    for expected in (
        "collected", "work/cause", "work/out/error.log", "work/out/config.toml", "work/out/tracking/aim.json",
        "work/out/tracking/journal.jsonl", "work/out/checkpoint-4/training_args.bin",
        "work/out/checkpoint-4/trainer_state.json", "work/out/checkpoint-4/tracking/aim.json",
        f"work/out/tracking/{quote(LEAKY)}.log", f"work/out/tracking/{quote(LEAKY, safe='')}.json",
    ):  # fmt: skip
        assert expected in files
    assert any(name.endswith(".wandb") for name in files)
    assert not leaks(run.stderr.encode() + run.stdout.encode())
    assert {name: found for name, said in files.items() if (found := leaks(said))} == {}


def test_the_content_of_the_trackers_is_complete_and_without_secrets(
    place: Place, run: subprocess.CompletedProcess[str]
) -> None:
    (held,) = read_aim(place.folder)
    assert not leaks(repr(held).encode())
    assert any(name.startswith("[redacted]") for name, _ in held.points)
    assert held.params["params"]["credentials"] == {"value": "[redacted]", "deep": [{"a": "[redacted]"}]}
    config = (place.folder / "out" / "config.toml").read_text()
    assert str(place.folder.parent / "collected") in config


def test_no_output_of_sync_and_check_contains_a_secret(
    place: Place, run: subprocess.CompletedProcess[str]
) -> None:
    synced = place.fmstune(
        "trackers", "sync", "out", "--json", f"--set=trackers.'{LEAKY}'.db_pass={PLANTED['set']}"
    )
    unwell = [f"--set=trackers.'{LEAKY}'.unwell=true", f"--set=trackers.'{LEAKY}'.db_pass={PLANTED['set']}"]
    checked = [place.fmstune("trackers", "check", LEAKY, *unwell, *json_) for json_ in ([], ["--json"])]
    assert [synced.returncode, *(each.returncode for each in checked)] == [1, 3, 3]
    assert "[redacted]" in synced.stdout
    for done in (synced, *checked):
        assert not leaks((done.stdout + done.stderr).encode())
    assert {name: found for name, said in written(place) if (found := leaks(said))} == {}


def test_config_explain_shows_no_secret(place: Place) -> None:
    done = place.fmstune(
        "config",
        "explain",
        "--model=demo",
        "--data=demo",
        "--params-file=../params.json",
        f"--param=pass={PLANTED['param']}",
    )
    assert done.returncode == 0, done.stderr
    assert "training.hub_token = '[redacted]'" in done.stdout
    assert not leaks((done.stdout + done.stderr).encode())


def test_sync_asks_for_an_option_that_contained_a_secret(
    place: Place, run: subprocess.CompletedProcess[str]
) -> None:
    elsewhere = dataclasses.replace(place, folder=place.folder.parent)  # without its fmstune.toml
    done = elsewhere.fmstune("trackers", "sync", "work/out")
    assert done.returncode == 1
    assert "its option api_key held a secret, which the ledger does not keep" in done.stdout
    assert f'→ give it again: --set trackers."{LEAKY}".api_key=…' in done.stdout
